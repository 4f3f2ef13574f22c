"""Residual networks on torchvision's blocks."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from bench.backbones._parts import IMAGENET, Normalize, fresh, front, scaled
from bench.contracts import Backbone, BenchError, Encoder

__all__ = ["ResNet18", "ResNet50"]

_LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class _ResNet(Backbone):
    block: ClassVar[type[BasicBlock | Bottleneck]]
    depths: ClassVar[tuple[int, ...]]
    stem: str = "7x7"

    def __post_init__(self) -> None:
        if self.stem not in {"7x7", "3x3"}:
            raise BenchError(f"{self.name}.stem must be '7x7' or '3x3', not {self.stem!r}")

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
        source, channels = front(input, in_channels, lambda: Normalize(IMAGENET))
        planes = scaled((64, 128, 256, 512), width)
        stride = stem_stride or (2 if self.stem == "7x7" else 1)
        trunk = fresh(lambda: self._trunk(channels, planes, stride), generator)
        first = stride * (2 if self.stem == "7x7" else 1)
        outs = [p * self.block.expansion for p in planes]
        return Encoder(
            input=source,
            trunk=trunk,
            layers=_LAYERS,
            channels=dict(zip(_LAYERS, [planes[0], *outs], strict=True)),
            strides=dict(zip(_LAYERS, [stride, *(first * 2**i for i in range(4))], strict=True)),
            dim=outs[-1],
        )

    def _trunk(self, channels: int, planes: tuple[int, ...], stride: int) -> nn.Sequential:
        large = self.stem == "7x7"
        kernel = 7 if large else 3
        conv = nn.Conv2d(channels, planes[0], kernel, stride, kernel // 2, bias=False)
        trunk: OrderedDict[str, nn.Module] = OrderedDict()
        trunk["conv1"] = nn.Sequential(conv, nn.BatchNorm2d(planes[0]), nn.ReLU())
        if large:
            trunk["maxpool"] = nn.MaxPool2d(3, 2, 1)
        before = planes[0]
        for place, (width, depth) in enumerate(zip(planes, self.depths, strict=True)):
            trunk[_LAYERS[place + 1]] = self._layer(before, width, depth, 1 if place == 0 else 2)
            before = width * self.block.expansion
        return nn.Sequential(trunk)

    def _layer(self, before: int, planes: int, depth: int, stride: int) -> nn.Sequential:
        out = planes * self.block.expansion
        shortcut = None
        if stride != 1 or before != out:
            shortcut = nn.Sequential(conv1x1(before, out, stride), nn.BatchNorm2d(out))
        rest = [self.block(out, planes) for _ in range(depth - 1)]
        return nn.Sequential(self.block(before, planes, stride, shortcut), *rest)


@dataclass(frozen=True)
class ResNet18(_ResNet):
    """ResNet-18; taps conv1 (after ReLU, before the pool), layer1..layer4; global average (N, 512).

    :param stem: "7x7" with stride 2 and max pool (ImageNet), or "3x3" with stride 1 and no pool (CIFAR, as
        in Instance Discrimination, Wu et al., CVPR 2018).
    """

    name: ClassVar[str] = "resnet18"
    paper: ClassVar[str] = "He et al., Deep residual learning for image recognition, CVPR 2016"
    block: ClassVar[type[BasicBlock | Bottleneck]] = BasicBlock
    depths: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)


@dataclass(frozen=True)
class ResNet50(_ResNet):
    """ResNet-50 (stride in the 3x3); taps conv1 (after ReLU, before the pool), layer1..layer4; mean (N, 2048).

    :param stem: "7x7" with stride 2 and max pool (ImageNet), or "3x3" with stride 1 and no pool (CIFAR).
    """

    name: ClassVar[str] = "resnet50"
    paper: ClassVar[str] = "He et al., Deep residual learning for image recognition, CVPR 2016"
    block: ClassVar[type[BasicBlock | Bottleneck]] = Bottleneck
    depths: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)
