"""Temporal ensembling: agree with what earlier epochs said of the same image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.contracts import Backbone, DataShape, Model, Run, TrainingSet
from methods._loop import Batch, SemiLoop, State
from methods.parts import heads
from methods.parts.consistency import labeled_fraction, supervised_term
from methods.parts.ramps import ramp_up


@dataclass(frozen=True)
class TemporalEnsembling(SemiLoop):
    """Cross-entropy on the labeled images plus the squared distance to an image's averaged past predictions.

    Defaults of CIFAR-10; CIFAR-100: weight 100; SVHN: rate .001; wrong labels: weight 300, from half of them on
    3000, rate .001. An image's average is corrected by how often that image was seen, the paper's epochs where
    all are seen in each; in its first one it has no target and no term (w = 0). Softmax outputs are averaged
    (a port of others averages scores); dividing them by their sum, as the release does with Tiny Images, is
    the same correction.

    :param average: alpha, the weight of the past in an image's average prediction.
    :param weight: of the distance at the end of its ramp, times M / N (the labeled part) if ``by_labels``.
    :param ramp: part of the training over which the weight rises.
    """

    paper: ClassVar[str] = "Laine & Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017"
    distributed: ClassVar[bool] = True

    lr: float = 0.003
    weight_decay: float = 0.0
    batch_size: int = 100
    optimizer: str = "adam"
    last_beta1: float = 0.5
    schedule: str = "ramps"
    drops: tuple[float, ...] = (80 / 300, 250 / 300)
    augment: str = "translate_flip"
    average: float = 0.6
    weight: float = 30.0
    by_labels: bool = True
    ramp: float = 80 / 300

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder and a linear classifier."""
        encoder = backbone.build(generator=generator)
        return Model(encoder, heads.linear(encoder.dim, shape.classes, generator))

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """Z = 0, how often each image was seen, and M / N."""
        return {
            "ensemble": torch.zeros(len(data), data.classes, device=run.device),
            "seen": torch.zeros(len(data), dtype=torch.int64, device=run.device),
            "labeled": labeled_fraction(data.labels).to(run.device),
        }

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Algorithm 2: -1/|B| sum over the labeled of log z[y], plus w(t) 1/(C |B|) sum |z - z~|^2."""
        (view,) = batch.views
        scores = model(view)
        probabilities = scores.float().softmax(1)
        batch.kept["probabilities"] = probabilities.detach()
        targets, known = self.targets(state, batch.index)
        distance = ((probabilities - targets).square().mean(1) * known).mean()
        weight = self.weight * ramp_up(done / total, self.ramp)
        if self.by_labels:
            weight = weight * state["labeled"]
        return {"class": supervised_term(scores, batch.targets), "consistency": weight * distance}

    def targets(self, state: State, index: Tensor) -> tuple[Tensor, Tensor]:
        """z~ = Z / (1 - alpha^t), and whether an image has been seen at all."""
        seen = state["seen"][index]
        bias = 1 - self.average ** seen.clamp_min(1)[:, None]
        return state["ensemble"][index] / bias, seen > 0

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """Z = alpha Z + (1 - alpha) z, of the images just seen."""
        z = batch.kept["probabilities"]
        state["ensemble"][batch.index] = state["ensemble"][batch.index].lerp(z, 1 - self.average)
        state["seen"][batch.index] += 1
