"""Mean Teacher: the average of a student's own past weights is the better teacher."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.contracts import Backbone, DataShape, Frame, Model, Run, TrainingSet
from methods._loop import Batch, SemiLoop, State
from methods.parts import ema, heads, views
from methods.parts.consistency import labeled_fraction, squared_distance, supervised_term
from methods.parts.ramps import ramp_up


@dataclass(frozen=True)
class MeanTeacher(SemiLoop):
    """A student learns from labels and from its teacher; the model handed back is the teacher.

    The defaults are CIFAR-10's with Conv-Large: cost 100 M / N, average .999 throughout (SVHN: cost 1, .99
    while the cost rises, then .999); the PyTorch release has a constant cost of 100. Both run in train mode;
    the teacher's batch-norm statistics are those of its own forward passes, never averaged.

    :param average: the highest weight of the past in the teacher.
    :param weight: of the consistency at the end of its ramp, times M / N (the labeled part) if ``by_labels``.
    :param ramp: part of the training over which the weight rises.
    """

    paper: ClassVar[str] = "Tarvainen & Valpola, Mean teachers are better role models, NIPS 2017"
    variants: ClassVar[tuple[str, ...]] = ("student",)

    lr: float = 0.003
    weight_decay: float = 0.0
    batch_size: int = 100
    optimizer: str = "adam"
    last_beta1: float = 0.5
    schedule: str = "ramps"
    drops: tuple[float, ...] = (40 / 150, 125 / 150)
    augment: str = "translate_flip"
    average: float = 0.999
    weight: float = 100.0
    by_labels: bool = True
    ramp: float = 40 / 150

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The teacher, and its like as the variant ``student``."""
        encoder = backbone.build(generator=generator)
        student = Model(encoder, heads.linear(encoder.dim, shape.classes, generator))
        teacher = copy.deepcopy(student)
        return Model(teacher.encoder, teacher.head, variants={"student": student})

    def learner(self, model: Model) -> nn.Module:
        """Gradients reach the student alone."""
        return _student(model)

    def frames(self, shape: DataShape) -> tuple[Frame, Frame]:
        """A view for the student and one for the teacher, with draws of their own."""
        return self.view(shape), self.view(shape)

    def passes(self, shape: DataShape) -> float:
        """The teacher's pass has no gradient."""
        return views.area(shape, self.crop) * 4 / 3

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """M / N. The student starts where the model stands, which may have come from another training."""
        student = _student(model)
        student.encoder.load_state_dict(model.encoder.state_dict())
        return {"labeled": labeled_fraction(data.labels).to(run.device)}

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 1: the student's cross-entropy, plus w(t) |student - teacher|^2 by softmax."""
        first, second = batch.views
        scores = _student(model)(first)
        with torch.no_grad():
            taught = model(second)
        weight = self.weight * ramp_up(done / total, self.ramp)
        if self.by_labels:
            weight = weight * state["labeled"]
        return {
            "class": supervised_term(scores, batch.targets),
            "consistency": weight * squared_distance(scores, taught),
        }

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """Eq. 2: theta' = a theta' + (1 - a) theta."""
        taught = list(_student(model).parameters())
        own = itertools.islice(model.parameters(), len(taught))  # a model's variants come last
        ema.average(own, taught, ema.rate(done, self.average))


def _student(model: Model) -> Model:
    student = model.variants["student"]
    assert isinstance(student, Model)
    return student
