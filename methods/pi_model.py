"""Pi-model: two noisy looks at the same image should be classified alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.contracts import DataShape, Frame, Model, Run, TrainingSet
from methods._apart import ApartLoop
from methods._loop import Batch, State
from methods.parts import looks, views
from methods.parts.consistency import labeled_fraction, squared_distance, supervised_term
from methods.parts.decay import shrink
from methods.parts.ramps import ramp_up, warm_up


@dataclass(frozen=True)
class PiModel(ApartLoop):
    """Cross-entropy on the labeled images plus the squared distance of two predictions of every image.

    The input noise (sigma .15) and the dropout of .5 are the backbone's (``conv_large``). The release lets
    the gradient flow through both branches; Oliver et al. and MixMatch's baseline stop it in one.

    :param weight: of the consistency at the end of its ramp, times M / N (the labeled part) if ``by_labels``.
    :param ramp: part of the training over which the weight rises, ``linear`` (MixMatch's code) or by
        exp(-5 (1 - t)^2).
    :param stop_gradient: in the second branch.
    :param compared: rows that the consistency is about, see :mod:`methods.parts.looks`: ``all``, the paper's,
        ``unlabeled`` (Oliver et al.) or ``apart`` (MixMatch's code).
    :param decay: the part of itself that every kernel loses in a step (MixMatch's code).
    """

    paper: ClassVar[str] = "Laine & Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017"
    distributed: ClassVar[bool] = True
    apart: ClassVar[bool] = False

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
    linear: bool = False
    stop_gradient: bool = False
    compared: str = "all"
    decay: float = 0.0

    def __post_init__(self) -> None:
        looks.check("pi_model", self.compared, self.labeled_batch)

    def frames(self, shape: DataShape) -> tuple[Frame, Frame]:
        """Two views; the flip is drawn once for both (section 3), so not here."""
        return self.view(shape, flip=False), self.view(shape, flip=False)

    def passes(self, shape: DataShape) -> float:
        """Two branches; one without gradient counts a third."""
        both = 4 / 3 if self.stop_gradient else 2
        return self.cost(shape, 1, both) if self.compared == "apart" else views.area(shape, self.crop) * both

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """M / N."""
        return {"labeled": labeled_fraction(data.labels).to(run.device)}

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Algorithm 1: -1/|B| sum over the labeled of log z[y], plus w(t) 1/(C |B|) sum |z - z'|^2."""
        other = torch.no_grad()(model.forward) if self.stop_gradient else model
        known, scores, others = looks.two_looks(
            self.compared, self.rows, model, other, self._flip_both(batch)
        )
        rise = warm_up if self.linear else ramp_up
        weight = self.weight * rise(done / total, self.ramp)
        if self.by_labels:
            weight = weight * state["labeled"]
        return {
            "class": supervised_term(known, batch.targets[: len(known)]),
            "consistency": weight * squared_distance(scores, others),
        }

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """Decay apart from the gradient."""
        shrink(model, self.decay)

    def _flip_both(self, batch: Batch) -> list[Tensor]:
        if not (batch.flip and self.mirror) or self.augment == "none":
            return batch.views
        mirrored = batch.draws().coin(0.5).view(-1, 1, 1, 1)
        return [torch.where(mirrored, view.flip(3), view) for view in batch.views]
