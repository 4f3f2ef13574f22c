"""A model that is the average of a student's past weights, and has the student as its variant.

Tarvainen & Valpola, Mean teachers are better role models, NIPS 2017, section 2.
"""

from __future__ import annotations

import copy
import itertools

import torch

from bench.contracts import Backbone, DataShape, Model
from methods.parts import ema, heads


def with_student(backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
    """The average, an encoder with a linear classifier, and its like as the variant ``student``."""
    encoder = backbone.build(generator=generator)
    student = Model(encoder, heads.linear(encoder.dim, shape.classes, generator))
    average = copy.deepcopy(student)
    return Model(average.encoder, average.head, variants={"student": student})


def student_of(model: Model) -> Model:
    """The variant that gradients reach."""
    student = model.variants["student"]
    assert isinstance(student, Model)
    return student


def start(model: Model) -> None:
    """The student starts where the model stands, which may have come from another training."""
    student_of(model).encoder.load_state_dict(model.encoder.state_dict())


def follow(model: Model, done: int, highest: float) -> None:
    """Eq. 2 after step ``done``: theta' = a theta' + (1 - a) theta."""
    taught = list(student_of(model).parameters())
    own = itertools.islice(model.parameters(), len(taught))  # a model's variants come last
    ema.average(own, taught, ema.rate(done, highest))


def follow_statistics(model: Model) -> None:
    """Running statistics are the student's, for an average that never runs in train mode."""
    student = student_of(model)
    ema.copy_buffers(model.encoder, student.encoder)
    if model.head is not None and student.head is not None:
        ema.copy_buffers(model.head, student.head)
