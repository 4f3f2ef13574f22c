"""The mean color of an image: what is known without shape or place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.augment import unit
from bench.contracts import Backbone, DataShape, Encoder, Method, Model, Run, TrainingSet


class _Unit(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return unit(images)


@dataclass(frozen=True)
class MeanColor(Method):
    """Three numbers an image: the means of red, green and blue, in [0, 1]."""

    paper: ClassVar[str] = "Swain & Ballard, Color Indexing, IJCV 1991 (reduced to one color)"
    depends_on: ClassVar[tuple[str, ...]] = ("data",)

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """An encoder without weights, with one tap: ``color``, maps (N, 3, 1, 1)."""
        encoder = Encoder(
            input=_Unit(),
            trunk=nn.Sequential(),
            layers=("color",),
            channels={"color": 3},
            strides={"color": shape.side or 1},
            dim=3,
            top=nn.Flatten(),
        )
        encoder.trunk.add_module("color", nn.AdaptiveAvgPool2d(1))
        return Model(encoder)

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Nothing is learned."""
        run.snapshot(1, 1, model)
        return model.to(run.device)
