"""Pi-model: two noisy looks at the same image should be classified alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.contracts import Backbone, DataShape, Frame, Model, Run, TrainingSet
from methods._loop import Batch, SemiLoop, State
from methods.parts import heads, views
from methods.parts.consistency import labeled_fraction, squared_distance, supervised_term
from methods.parts.ramps import ramp_up


@dataclass(frozen=True)
class PiModel(SemiLoop):
    """Cross-entropy on the labeled images plus the squared distance of two predictions of every image.

    The input noise (sigma .15) and the dropout of .5 are the backbone's (``conv_large``). The release lets
    the gradient flow through both branches; Oliver et al. and MixMatch's baseline stop it in one.

    :param weight: of the consistency at the end of its ramp, times M / N (the labeled part) if ``by_labels``.
    :param ramp: part of the training over which the weight rises; ``stop_gradient``: in the second branch.
    """

    paper: ClassVar[str] = "Laine & Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017"

    lr: float = 0.003
    weight_decay: float = 0.0
    batch_size: int = 100
    optimizer: str = "adam"
    last_beta1: float = 0.5
    schedule: str = "ramps"
    drops: tuple[float, ...] = (80 / 300, 250 / 300)
    augment: str = "translate_flip"
    weight: float = 100.0
    by_labels: bool = True
    ramp: float = 80 / 300
    stop_gradient: bool = False

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder and a linear classifier."""
        encoder = backbone.build(generator=generator)
        return Model(encoder, heads.linear(encoder.dim, shape.classes, generator))

    def frames(self, shape: DataShape) -> tuple[Frame, Frame]:
        """Two views; the flip is drawn once for both (section 3), so not here."""
        return self.view(shape, flip=False), self.view(shape, flip=False)

    def passes(self, shape: DataShape) -> float:
        """Two branches; one without gradient counts a third."""
        return views.area(shape, self.crop) * (4 / 3 if self.stop_gradient else 2)

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """M / N."""
        return {"labeled": labeled_fraction(data.labels).to(run.device)}

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Algorithm 1: -1/|B| sum over the labeled of log z[y], plus w(t) 1/(C |B|) sum |z - z'|^2."""
        first, second = self._flip_both(batch)
        scores = model(first)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            other = model(second)
        weight = self.weight * ramp_up(done / total, self.ramp)
        if self.by_labels:
            weight = weight * state["labeled"]
        return {
            "class": supervised_term(scores, batch.targets),
            "consistency": weight * squared_distance(scores, other),
        }

    def _flip_both(self, batch: Batch) -> list[Tensor]:
        if not batch.flip or self.augment == "none":
            return batch.views
        mirrored = batch.draws().coin(0.5).view(-1, 1, 1, 1)
        return [torch.where(mirrored, view.flip(3), view) for view in batch.views]
