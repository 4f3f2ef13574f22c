"""Wide residual networks in the form of the semi-supervised studies: WRN-28-2."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.backbones._noise import GaussianNoise
from bench.backbones._parts import HALF, Normalize, activation, fresh, front, scaled
from bench.contracts import Backbone, BenchError, Encoder

__all__ = ["WideResNet"]

_GROUPS = ("group1", "group2", "group3")


class PreActivation(nn.Module):
    """norm, activation, 3x3, norm, activation, 3x3, plus the input, by 1x1 where its size changes.

    :param both: the shortcut starts after the first activation too (the first block of all, in Oliver's code).
    """

    def __init__(
        self, channels: int, width: int, stride: int, *, slope: float, momentum: float, both: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, momentum=momentum)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        changes = channels != width or stride != 1
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if changes else nn.Identity()
        self.act, self.both = activation(slope), both

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.norm1(x))
        short: Tensor = self.shortcut(inner if self.both else x)
        deep: Tensor = self.conv2(self.act(self.norm2(self.conv1(inner))))
        return short + deep


@dataclass(frozen=True)
class WideResNet(Backbone):
    """WRN-28-2 with leaky ReLU; taps group1..group3 (32, 64, 128 maps; strides 1, 2, 4), average (N, 128).

    Blocks are pre-activated: group1 and group2 are tapped as sums of the residual stream, whose norm and ReLU
    belong to the next block; group3 includes the last norm and ReLU. 1,467,610 parameters with a 10-way head.

    :param depth: 6n + 4 convolutions; ``widen``: factor on 16, 32 and 64 maps.
    :param momentum: share of the new batch in the running statistics (0.001 is TensorFlow's decay 0.999).
    :param noise: deviation of the noise on the input in train mode: Oliver et al. .15 on CIFAR-10.
    """

    name: ClassVar[str] = "wide_resnet_28_2"
    paper: ClassVar[str] = (
        "Zagoruyko & Komodakis, BMVC 2016, as in Oliver et al., NeurIPS 2018, and MixMatch, 2019"
    )
    depth: int = 28
    widen: int = 2
    slope: float = 0.1
    momentum: float = 0.001
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise BenchError(f"wide_resnet_28_2.depth must be 6n + 4 (10, 16, 22, 28...), not {self.depth}")

    def build(
        self,
        *,
        generator: torch.Generator,
        in_channels: int = 3,
        width: float = 1.0,
        stem_stride: int | None = None,
        input: nn.Module | None = None,  # noqa: A002 - the contract's own word
    ) -> Encoder:
        """An encoder without a top; ``width`` multiplies ``widen`` and the stem."""
        source, channels = front(input, in_channels, lambda: Normalize(HALF))
        stem, *widths = scaled((16, 16 * self.widen, 32 * self.widen, 64 * self.widen), width)
        stride = stem_stride or 1
        trunk = fresh(lambda: self._trunk(channels, stem, widths, stride), generator)
        return Encoder(
            input=source,
            trunk=trunk,
            layers=_GROUPS,
            channels=dict(zip(_GROUPS, widths, strict=True)),
            strides={name: stride * 2**i for i, name in enumerate(_GROUPS)},
            dim=widths[-1],
        )

    def _trunk(self, channels: int, stem: int, widths: list[int], stride: int) -> nn.Sequential:
        trunk: OrderedDict[str, nn.Module] = OrderedDict()
        if self.noise:
            trunk["noise"] = GaussianNoise(self.noise)
        trunk["conv1"] = nn.Conv2d(channels, stem, 3, stride, 1, bias=False)
        before = stem
        for place, width in enumerate(widths):
            trunk[_GROUPS[place]] = nn.Sequential(*self._group(before, width, place))
            before = width
        return nn.Sequential(trunk)

    def _group(self, before: int, width: int, place: int) -> list[nn.Module]:
        parts: list[nn.Module] = []
        for number in range((self.depth - 4) // 6):
            first = number == 0
            stride = 2 if first and place > 0 else 1
            parts.append(
                PreActivation(
                    before, width, stride, slope=self.slope, momentum=self.momentum, both=first and place == 0
                )
            )
            before = width
        if place == len(_GROUPS) - 1:
            parts += [nn.BatchNorm2d(width, momentum=self.momentum), activation(self.slope)]
        return parts
