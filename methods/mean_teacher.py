"""Mean Teacher: the average of a student's own past weights is the better teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.contracts import Backbone, DataShape, Frame, Model, Run, TrainingSet
from methods._apart import ApartLoop
from methods._loop import Batch, State
from methods.parts import looks, teacher, views
from methods.parts.consistency import labeled_fraction, squared_distance, supervised_term
from methods.parts.decay import shrink
from methods.parts.ramps import ramp_up, warm_up


@dataclass(frozen=True)
class MeanTeacher(ApartLoop):
    """A student learns from labels and from its teacher; the model handed back is the teacher.

    The defaults are CIFAR-10's with Conv-Large: cost 100 M / N, average .999 throughout (SVHN: cost 1; ``early``
    average and beta2 .99); the PyTorch release has a constant cost of 100. Both run in train mode; the teacher's
    batch-norm statistics are those of its own forward passes, never averaged.

    :param average: the highest weight of the past in the teacher; ``early_average``: while the cost rises, 0:
        the same; ``early_beta2``: likewise, in the place of Adam's second beta.
    :param weight: of the consistency at the end of its ramp, times M / N (the labeled part) if ``by_labels``.
    :param ramp: part of the training over which the weight rises, ``linear`` (MixMatch's code) or by
        exp(-5 (1 - t)^2).
    :param compared: rows that the consistency is about, see :mod:`methods.parts.looks`: ``all``, the paper's,
        ``unlabeled`` (Oliver et al.) or ``apart`` (MixMatch's code).
    :param decay: the part of itself that every kernel loses in a step (MixMatch's code).
    """

    paper: ClassVar[str] = "Tarvainen & Valpola, Mean teachers are better role models, NIPS 2017"
    variants: ClassVar[tuple[str, ...]] = ("student",)
    distributed: ClassVar[bool] = True
    apart: ClassVar[bool] = False

    lr: float = 0.003
    weight_decay: float = 0.0
    batch_size: int = 100
    optimizer: str = "adam"
    last_beta1: float = 0.5
    schedule: str = "ramps"
    drops: tuple[float, ...] = (40 / 150, 125 / 150)
    augment: str = "translate_flip"
    average: float = 0.999
    early_average: float = 0.0
    early_beta2: float = 0.0
    weight: float = 100.0
    by_labels: bool = True
    ramp: float = 40 / 150
    linear: bool = False
    compared: str = "all"
    decay: float = 0.0

    def __post_init__(self) -> None:
        looks.check("mean_teacher", self.compared, self.labeled_batch)

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The teacher, and its like as the variant ``student``."""
        return teacher.with_student(backbone, shape, generator)

    def learner(self, model: Model) -> nn.Module:
        """Gradients reach the student alone."""
        return teacher.student_of(model)

    def frames(self, shape: DataShape) -> tuple[Frame, Frame]:
        """A view for the student and one for the teacher, with draws of their own."""
        return self.view(shape), self.view(shape)

    def passes(self, shape: DataShape) -> float:
        """The teacher's pass has no gradient."""
        if self.compared == "apart":
            return self.cost(shape, 1, 4 / 3)
        return views.area(shape, self.crop) * 4 / 3

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """M / N. The student starts where the model stands, which may have come from another training."""
        teacher.start(model)
        return {"labeled": labeled_fraction(data.labels).to(run.device)}

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 1: the student's cross-entropy, plus w(t) |student - teacher|^2 by softmax."""
        student = teacher.student_of(model)
        known, scores, taught = looks.two_looks(
            self.compared, self.rows, student, torch.no_grad()(model.forward), batch.views
        )
        rise = warm_up if self.linear else ramp_up
        weight = self.weight * rise(done / total, self.ramp)
        if self.by_labels:
            weight = weight * state["labeled"]
        if self.early_average and done / total < self.ramp:
            batch.kept["average"] = torch.tensor(self.early_average, dtype=torch.float64)
        return {
            "class": supervised_term(known, batch.targets[: len(known)]),
            "consistency": weight * squared_distance(scores, taught),
        }

    def adjust(self, optimizer: torch.optim.Optimizer, done: int, total: int) -> None:
        """Adam's second beta is another one while the weight rises."""
        super().adjust(optimizer, done, total)
        if self.early_beta2 and self.optimizer == "adam":
            beta2 = self.early_beta2 if done / total < self.ramp else self.betas[1]
            for group in optimizer.param_groups:
                group["betas"] = (group["betas"][0], beta2)

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """Eq. 2: theta' = a theta' + (1 - a) theta."""
        shrink(teacher.student_of(model), self.decay)
        early = batch.kept.get("average")
        teacher.follow(model, done, self.average if early is None else float(early))
