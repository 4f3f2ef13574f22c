"""The upper bound (all labels) and the baseline of semi-supervised learning (a few)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts import Backbone, DataShape, Model, Needs, TrainingSet
from methods._loop import Batch, Loop, State
from methods.parts import heads


@dataclass(frozen=True)
class Supervised(Loop):
    """Cross-entropy on the labeled images; where some are hidden, an epoch is a pass over the shown ones.

    The paper drops the rate by hand, three times; here at 1/3, 2/3 and 8/9 of the training.

    :param dropout: before the classifier.
    """

    paper: ClassVar[str] = "Krizhevsky, Sutskever & Hinton, ImageNet Classification with Deep CNNs, NIPS 2012"
    sees_labels: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(labels=True)
    distributed: ClassVar[bool] = True

    lr: float = 0.01
    schedule: str = "step"
    drops: tuple[float, ...] = (1 / 3, 2 / 3, 8 / 9)
    augment: str = "crop_flip"
    dropout: float = 0.5

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder and a linear classifier."""
        encoder = backbone.build(generator=generator)
        return Model(encoder, heads.linear(encoder.dim, shape.classes, generator, dropout=self.dropout))

    def samples(self, data: TrainingSet) -> Tensor:
        """The labeled images."""
        if data.labels is None:
            return torch.arange(0)
        return (data.labels >= 0).nonzero().flatten().cpu()

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """-log p(y | x), mean over the batch."""
        (view,) = batch.views
        return {"class": F.cross_entropy(model(view).float(), batch.targets)}
