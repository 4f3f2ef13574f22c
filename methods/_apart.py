"""The base class of methods that treat labeled and unlabeled images of a batch in two ways."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bench import distributed
from bench.contracts import Backbone, BenchError, DataShape, Model, Run, TrainingSet
from methods._loop import Batch, Loop, SemiLoop
from methods.parts import heads, views
from methods.parts.normalization import unrecorded


@dataclass(frozen=True)
class ApartLoop(SemiLoop):
    """A semi-supervised loop whose batches begin with the labeled rows; the others pass as unlabeled.

    :param labeled_batch: how many rows are labeled: all labeled images where there are fewer.
    :param everything: the labeled images pass as unlabeled ones too; else only those whose label is hidden.
    """

    apart: ClassVar[bool] = True  # the rows cannot do without their order

    everything: bool = False

    def __post_init__(self) -> None:
        if self.apart and not 0 < self.labeled_batch < self.batch_size:
            name = type(self).__module__.rpartition(".")[2]
            raise BenchError(
                f"{name}.labeled_batch must be at least 1 and less than batch_size = {self.batch_size},"
                f" not {self.labeled_batch}"
            )

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder and a linear classifier."""
        encoder = backbone.build(generator=generator)
        return Model(encoder, heads.linear(encoder.dim, shape.classes, generator))

    def samples(self, data: TrainingSet) -> Tensor:
        """The images that pass as unlabeled."""
        return torch.arange(len(data)) if self.everything else super().samples(data)

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Descend, with ``labeled_batch`` as large as it comes to be: steps and their cost follow from it."""
        rows = self.labeled_per_batch(data)
        if self.labeled_batch and not rows:
            raise BenchError("this method needs labels, and its data show none (labels = 0)")
        return Loop.train(replace(self, labeled_batch=rows), model, data, run)

    @property
    def rows(self) -> int:
        """How many rows of this process's batch are labeled: the first ones."""
        return self.labeled_batch // distributed.current().size

    def cost(self, shape: DataShape, labeled: float, unlabeled: float) -> float:
        """Encoder passes per image, from those that a labeled and an unlabeled one take."""
        part = self.labeled_batch / self.batch_size
        return views.area(shape, self.crop) * (part * labeled + (1 - part) * unlabeled)

    def both(self, model: Model, batch: Batch, *, joint: bool) -> tuple[Tensor, Tensor]:
        """Scores of the labeled and of the unlabeled rows: in one pass, or one after the other.

        Of two passes, the labeled one moves batch norm's running statistics.
        """
        view = batch.views[0]
        if joint:
            scores = model(view)
            return scores[: self.rows], scores[self.rows :]
        labeled = model(view[: self.rows])
        with unrecorded(model):
            return labeled, model(view[self.rows :])
