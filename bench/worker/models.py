"""A record's method and backbone, and the untrained model that they build."""

from __future__ import annotations

from typing import Any

import torch

from bench import registry
from bench.backbones import _whitening as whitening
from bench.contracts import Backbone, DataShape, Method, Model
from bench.records import BenchError, Training
from bench.session import Session


def method_of(training: Training) -> Method:
    """The method with its settings."""
    return registry.load("method", training.method)  # type: ignore[no-any-return]


def backbone_of(training: Training) -> Backbone:
    """The backbone with its settings, its input whitened as the training says."""
    if training.backbone.name == "none":
        return _NoBackbone()
    backbone: Backbone = registry.load("backbone", training.backbone)
    side = registry.facts(training.data.dataset).image_side
    return whitening.named(backbone, training.data.whitening, side)


class _NoBackbone(Backbone):
    name = "none"
    paper = ""

    def build(self, **_: Any) -> Any:
        raise BenchError("this method said that it needs no backbone, and asks for one")


def build(method: Method, backbone: Backbone, shape: DataShape, session: Session) -> Model:
    """The untrained model, on the session's device; whatever its randomness comes from, the training's seed decides."""
    torch.manual_seed(
        session.generator("global").initial_seed()
    )  # a plain nn.Linear draws from torch's own generator
    model = method.build(backbone, shape, session.generator("weights"))
    model.to(session.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    return model
