"""The smallest network."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.contracts import Backbone, Encoder, initialize


class Unit(nn.Module):
    def forward(self, images):
        return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class DotNet(Backbone):
    """One convolution with ReLU."""

    name: ClassVar[str] = "dot_net"
    paper: ClassVar[str] = "ours"

    width: int = 4

    def build(self, *, generator, **_):
        trunk = nn.Sequential()
        trunk.add_module("conv1", nn.Sequential(nn.Conv2d(3, self.width, 3, 2, 1), nn.ReLU()))
        initialize(trunk, generator)
        return Encoder(
            input=Unit(),
            trunk=trunk,
            layers=("conv1",),
            channels={"conv1": self.width},
            strides={"conv1": 2},
            dim=self.width,
        )
