"""Interpolation consistency training: between two images, predict between the teacher's two predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import Backbone, BenchError, DataShape, Model, Run, TrainingSet
from bench.training import Schedule, set_rate
from methods._apart import ApartLoop
from methods._loop import Batch, State
from methods.parts import teacher
from methods.parts.decay import shrink
from methods.parts.mixing import mix, partners, shares
from methods.parts.network import classify, inputs, one_hot
from methods.parts.ramps import ramp_up, warm_up


@dataclass(frozen=True)
class InterpolationConsistency(ApartLoop):
    """Cross-entropy on mixed labeled images plus the distance of student and mixed teacher on mixed unlabeled ones.

    Defaults of CIFAR-10 (SVHN: alpha .1). MixMatch's code: Adam at .002, weight 50 (in its ablation 1000),
    ``per_sample`` and ``dominant``, labeled images not mixed. The teacher is the model handed back; its
    batch-norm statistics are those of its own passes.

    :param mixed: what is mixed of the teacher: ``probabilities``, the paper's (and MixMatch's code), or
        ``scores``, as released.
    :param alpha: of Beta(alpha, alpha); ``per_sample``: a lambda for each image, else one for all;
        ``dominant``: max(lambda, 1 - lambda) in its place.
    :param mix_labeled: labeled images are mixed with each other, as released.
    :param weight: of the distance; ``ramp``: part of the training over which it rises, ``linear`` or by
        exp(-5 (1 - t)^2).
    :param average: the highest weight of the past in the teacher.
    :param span: a cosine schedule's length, in trainings: it is cut off before it reaches zero.
    :param decay: the part of itself that every kernel loses in a step (MixMatch's code: 4e-5).
    """

    paper: ClassVar[str] = (
        "Verma, Lamb, Kannala, Bengio & Lopez-Paz, Interpolation Consistency Training for Semi-Supervised"
        " Learning, IJCAI 2019"
    )
    variants: ClassVar[tuple[str, ...]] = ("student",)

    lr: float = 0.1
    weight_decay: float = 1e-4
    batch_size: int = 200
    labeled_batch: int = 100
    everything: bool = True
    schedule: str = "cosine"
    span: float = 450 / 400
    augment: str = "translate_flip"
    mixed: str = "probabilities"
    alpha: float = 1.0
    per_sample: bool = False
    dominant: bool = False
    mix_labeled: bool = True
    weight: float = 100.0
    ramp: float = 100 / 400
    linear: bool = False
    average: float = 0.999
    decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixed not in {"probabilities", "scores"}:
            raise BenchError(f'ict.mixed must be "probabilities" or "scores", not {self.mixed!r}')

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The teacher, and its like as the variant ``student``."""
        return teacher.with_student(backbone, shape, generator)

    def learner(self, model: Model) -> nn.Module:
        """Gradients reach the student alone."""
        return teacher.student_of(model)

    def passes(self, shape: DataShape) -> float:
        """The teacher's pass has no gradient."""
        return self.cost(shape, 1, 4 / 3)

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """Nothing but the student's start."""
        teacher.start(model)
        return {}

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Algorithm 1: CE plus w(t) |f(Mix(u, u')) - Mix(f'(u), f'(u'))|^2, mean over rows and classes."""
        student = teacher.student_of(model)
        x, labels = inputs(student, batch.views[0]), one_hot(batch.targets[: self.rows], student)
        known, u = x[: self.rows], x[self.rows :]
        if self.mix_labeled:
            share, other = self._pairs(known)
            known, labels = mix(known, known[other], share), mix(labels, labels[other], share)
        scores = classify(student, known).float()
        with torch.no_grad():
            taught = classify(model, u).float()
        share, other = self._pairs(u)
        if self.mixed == "probabilities":
            taught = taught.softmax(1)
        target = mix(taught, taught[other], share)
        if self.mixed == "scores":
            target = target.softmax(1)
        found = classify(student, mix(u, u[other], share)).float().softmax(1)
        rise = warm_up if self.linear else ramp_up
        weight = self.weight * rise(done / total, self.ramp)
        return {"class": F.cross_entropy(scores, labels), "consistency": weight * F.mse_loss(found, target)}

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return shares(x, self.alpha, per_sample=self.per_sample, dominant=self.dominant), partners(x)

    def adjust(self, optimizer: torch.optim.Optimizer, done: int, total: int) -> None:
        """A cosine that would end later than the training."""
        super().adjust(optimizer, done, total)
        if self.schedule == "cosine":
            set_rate(
                optimizer, self.lr * Schedule("cosine", warmup=self.warmup)(done, round(total * self.span))
            )

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """The teacher: theta' = a theta' + (1 - a) theta."""
        shrink(teacher.student_of(model), self.decay)
        teacher.follow(model, done, self.average)
