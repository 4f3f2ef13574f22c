"""The pixels themselves: what a linear classifier reads without any features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.augment import unit
from bench.contracts import Backbone, DataShape, Encoder, Method, Model, Run, TrainingSet


class _AreaResize(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(unit(images), (self.side, self.side), mode="area")


@dataclass(frozen=True)
class RawPixels(Method):
    """Images averaged down to ``side`` x ``side`` pixels and flattened, in [0, 1]."""

    paper: ClassVar[str] = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
    depends_on: ClassVar[tuple[str, ...]] = ("data",)

    side: int = 32

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """An encoder without weights, with one tap: ``pixels``, maps (N, 3, side, side)."""
        encoder = Encoder(
            input=_AreaResize(self.side),
            trunk=nn.Sequential(),
            layers=("pixels",),
            channels={"pixels": 3},
            strides={"pixels": max(1, (shape.side or self.side) // self.side)},
            dim=3 * self.side**2,
            top=nn.Flatten(),
        )
        encoder.trunk.add_module("pixels", nn.Identity())
        return Model(encoder)

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Nothing is learned."""
        run.snapshot(1, 1, model)
        return model.to(run.device)
