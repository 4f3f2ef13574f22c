"""Mixup: between two images, predict between their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import Backbone, DataShape, Model, Run, TrainingSet
from methods._apart import ApartLoop
from methods._loop import Batch, State
from methods.parts import teacher
from methods.parts.decay import shrink
from methods.parts.mixing import mix, partners, shares
from methods.parts.network import classify, inputs, one_hot
from methods.parts.normalization import unrecorded


@dataclass(frozen=True)
class Mixup(ApartLoop):
    """Cross-entropy on mixed labeled images and, with guessed labels, on mixed unlabeled ones.

    The semi-supervised form and the defaults are those of MixMatch's baseline (SVHN: alpha .25); the paper's own
    is supervised: ``weight`` 0, alpha 1, not ``dominant``, and in its release one lambda a batch. The model
    handed back is the average of the student's weights.

    :param alpha: of Beta(alpha, alpha); ``per_sample``: a lambda for each image, else one for all.
    :param dominant: max(lambda, 1 - lambda) in lambda's place.
    :param weight: of the unlabeled term; ``decay``: the part of itself that every kernel loses in a step.
    :param average: the highest weight of the past in the model.
    """

    paper: ClassVar[str] = (
        "Zhang, Cisse, Dauphin & Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018;"
        " semi-supervised in Berthelot et al., MixMatch, NeurIPS 2019"
    )
    variants: ClassVar[tuple[str, ...]] = ("student",)

    lr: float = 0.002
    weight_decay: float = 0.0
    batch_size: int = 128
    labeled_batch: int = 64
    optimizer: str = "adam"
    augment: str = "pad_crop_flip"
    alpha: float = 0.75
    per_sample: bool = True
    dominant: bool = True
    weight: float = 1.0
    decay: float = 4e-5
    average: float = 0.999

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The average, and its like as the variant ``student``."""
        return teacher.with_student(backbone, shape, generator)

    def learner(self, model: Model) -> nn.Module:
        """Gradients reach the student alone."""
        return teacher.student_of(model)

    def passes(self, shape: DataShape) -> float:
        """The guess is a pass without gradient."""
        return self.cost(shape, 1, 4 / 3 if self.weight else 0)

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """Nothing but the student's start."""
        teacher.start(model)
        return {}

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 2, and the same with the student's own predictions as labels."""
        student = teacher.student_of(model)
        x = inputs(student, batch.views[0])
        known = one_hot(batch.targets[: self.rows], student)
        terms = {"class": self._mixed(student, x[: self.rows], known)}
        if self.weight:
            with unrecorded(student):
                with torch.no_grad():
                    guessed = classify(student, x[self.rows :]).float().softmax(1)
                terms["guess"] = self.weight * self._mixed(student, x[self.rows :], guessed)
        return terms

    def _mixed(self, student: Model, x: Tensor, labels: Tensor) -> Tensor:
        share = shares(x, self.alpha, per_sample=self.per_sample, dominant=self.dominant)
        other = partners(x)
        return F.cross_entropy(
            classify(student, mix(x, x[other], share)).float(), mix(labels, labels[other], share)
        )

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """Decay apart from the gradient, then the average."""
        shrink(teacher.student_of(model), self.decay)
        teacher.follow(model, done, self.average)
        teacher.follow_statistics(model)
