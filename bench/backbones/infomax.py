"""The small convolutional encoder of Deep InfoMax."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.backbones._parts import HALF, Normalize, activation, fresh, front, scaled, sequential_encoder
from bench.contracts import Backbone, BenchError, Encoder

__all__ = ["InfoMax"]

_GRID = 4  # the last maps' side at 32 px


@dataclass(frozen=True)
class InfoMax(Backbone):
    """DIM's basic32x32: 4x4 convolutions of stride 2 with batch norm and ReLU, then a layer of ``units``.

    Taps conv1..conv3 (64, 128, 256 maps; 16, 8, 4 px a side for images of 32 px); DIM's local features are
    conv2's. The fully connected layer reads a 4x4 grid, an adaptive average at other image sizes;
    features (N, units x width). The 64-d output Y and the critics belong to the method.

    :param units: the fully connected layer, with batch norm and ReLU.
    """

    name: ClassVar[str] = "infomax"
    paper: ClassVar[str] = (
        "Hjelm et al., Learning deep representations by mutual information estimation, ICLR 2019"
    )
    widths: tuple[int, ...] = (64, 128, 256)
    units: int = 1024

    def __post_init__(self) -> None:
        if not self.widths:
            raise BenchError("infomax needs one width or more")

    def build(
        self,
        *,
        generator: torch.Generator,
        in_channels: int = 3,
        width: float = 1.0,
        stem_stride: int | None = None,
        input: nn.Module | None = None,  # noqa: A002 - the contract's own word
    ) -> Encoder:
        """An encoder whose top is the fully connected layer."""
        source, channels = front(input, in_channels, lambda: Normalize(HALF))
        widths = scaled(self.widths, width)
        (units,) = scaled((self.units,), width)
        trunk = fresh(lambda: _trunk(channels, widths, stem_stride or 2), generator)
        top = fresh(lambda: _top(widths[-1], units), generator)
        return sequential_encoder(source, trunk, list(dict(trunk.named_children())), dim=units, top=top)


def _trunk(channels: int, widths: tuple[int, ...], stride: int) -> nn.Sequential:
    trunk: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(widths, 1):
        conv = nn.Conv2d(channels, width, 4, stride if number == 1 else 2, 1, bias=False)
        trunk[f"conv{number}"] = nn.Sequential(conv, nn.BatchNorm2d(width), activation())
        channels = width
    return nn.Sequential(trunk)


def _top(channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            grid=nn.AdaptiveAvgPool2d(_GRID),
            flat=nn.Flatten(),
            fc=nn.Linear(channels * _GRID**2, units, bias=False),
            norm=nn.BatchNorm1d(units),
            relu=activation(),
        )
    )
