"""Network in Network as RotNet trains it on CIFAR."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.backbones._parts import CIFAR, Normalize, activation, fresh, front, scaled, sequential_encoder
from bench.contracts import Backbone, BenchError, Encoder

__all__ = ["NIN"]


@dataclass(frozen=True)
class NIN(Backbone):
    """RotNet's NIN: blocks of one spatial and two 1x1 convolutions, each with batch norm and ReLU.

    Taps ``block1``.. are the paper's ConvB1..: 96 maps at half the side, then 192 at a quarter. Block 1
    ends with its max pool, block 2 with its average pool. Features: the global average (N, 192).

    :param blocks: 3, 4 or 5 in the paper.
    """

    name: ClassVar[str] = "nin"
    paper: ClassVar[str] = (
        "Gidaris et al., Unsupervised representation learning by predicting rotations, ICLR 2018"
    )
    blocks: int = 4

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise BenchError(f"nin needs 2 blocks or more, not {self.blocks}")

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
        source, channels = front(input, in_channels, lambda: Normalize(CIFAR))
        trunk = fresh(lambda: self._trunk(channels, width, stem_stride or 1), generator)
        return sequential_encoder(source, trunk, [f"block{n}" for n in range(1, self.blocks + 1)])

    def _trunk(self, channels: int, width: float, stride: int) -> nn.Sequential:
        trunk: OrderedDict[str, nn.Module] = OrderedDict()
        for number in range(1, self.blocks + 1):
            widths = scaled((192, 160, 96) if number == 1 else (192, 192, 192), width)
            parts = _block(channels, widths, 5 if number <= 2 else 3, stride if number == 1 else 1)
            if number == 1:
                parts.append(nn.MaxPool2d(3, 2, padding=1))
            elif number == 2:
                parts.append(nn.AvgPool2d(3, 2, padding=1))
            trunk[f"block{number}"] = nn.Sequential(*parts)
            channels = widths[-1]
        return nn.Sequential(trunk)


def _block(channels: int, widths: tuple[int, ...], kernel: int, stride: int) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for place, width in enumerate(widths):
        size, step = (kernel, stride) if place == 0 else (1, 1)
        conv = nn.Conv2d(channels, width, size, step, size // 2, bias=False)
        parts += [conv, nn.BatchNorm2d(width), activation()]
        channels = width
    return parts
