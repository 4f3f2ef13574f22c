"""A small AlexNet for small images."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.backbones._parts import MaxPool, Normalize, activation, fresh, front, scaled, sequential_encoder
from bench.contracts import Backbone, BenchError, Encoder

__all__ = ["AlexNetSmall"]

_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")


@dataclass(frozen=True)
class AlexNetSmall(Backbone):
    """Five convolutions for images of 32 to 64 px; taps conv1..conv5 after ReLU.

    conv1 is 5x5 with stride 2, the others 3x3; 2x2 max pools follow 1, 2 and 5: 48 px give maps of
    24, 12, 6, 6, 6 and a last grid of 3.

    :param widths: maps of conv1..conv5.
    :param stem_stride: conv1's stride; ``build``'s argument of that name overrides it.
    :param dropout: after the last pool, as before a classifier; consistency methods live on such noise.
    :param grid: the last maps are averaged to grid x grid and flattened, (N, widths[-1] grid^2); 1: their average.
    """

    name: ClassVar[str] = "alexnet_small"
    paper: ClassVar[str] = "ours, after Krizhevsky et al., NeurIPS 2012"
    widths: tuple[int, ...] = (32, 64, 96, 96, 64)
    stem_stride: int = 2
    grid: int = 1
    dropout: float = 0.0
    batch_norm: bool = True  # type: ignore[misc]  # a setting here, a class's trait in the contract

    def __post_init__(self) -> None:
        if len(self.widths) != len(_LAYERS):
            raise BenchError(f"alexnet_small needs five widths, not {list(self.widths)}")

    def build(
        self,
        *,
        generator: torch.Generator,
        in_channels: int = 3,
        width: float = 1.0,
        stem_stride: int | None = None,
        input: nn.Module | None = None,  # noqa: A002 - the contract's own word
    ) -> Encoder:
        """An encoder without a top."""
        source, channels = front(input, in_channels, Normalize)
        widths = scaled(self.widths, width)
        trunk = fresh(lambda: self._trunk(channels, widths, stem_stride or self.stem_stride), generator)
        if self.grid == 1:
            return sequential_encoder(source, trunk, _LAYERS)
        top = nn.Sequential(nn.AdaptiveAvgPool2d(self.grid), nn.Flatten())
        return sequential_encoder(source, trunk, _LAYERS, dim=widths[-1] * self.grid**2, top=top)

    def _trunk(self, channels: int, widths: tuple[int, ...], stride: int) -> nn.Sequential:
        trunk: OrderedDict[str, nn.Module] = OrderedDict()
        for number, width in enumerate(widths, 1):
            kernel = 5 if number == 1 else 3
            step = stride if number == 1 else 1
            conv = nn.Conv2d(channels, width, kernel, step, kernel // 2, bias=not self.batch_norm)
            norm = [nn.BatchNorm2d(width)] if self.batch_norm else []
            trunk[f"conv{number}"] = nn.Sequential(conv, *norm, activation())
            if number in (1, 2, 5):
                trunk[f"pool{number}"] = MaxPool(2)
            channels = width
        if self.dropout:
            trunk["drop"] = nn.Dropout(self.dropout)
        return nn.Sequential(trunk)
