"""Conv-Large, the 13-layer network of the semi-supervised studies on CIFAR-10 and SVHN."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.backbones._noise import GaussianNoise
from bench.backbones._parts import CIFAR, Normalize, activation, fresh, front, scaled, sequential_encoder
from bench.contracts import Backbone, BenchError, Encoder

__all__ = ["ConvLarge"]

# (maps, kernel, padding) of the convolutions of each stage.
_STAGES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((128, 3, 1),) * 3,
    ((256, 3, 1),) * 3,
    ((512, 3, 0), (256, 1, 0), (128, 1, 0)),
)


class UnitConv(nn.Conv2d):
    """A convolution whose filters all have norm ``sqrt(2)``, whatever the length of its weight vectors.

    The direction of weight normalization (Salimans & Kingma, NeurIPS 2016); the gain is the norm's that
    follows. sqrt(2) is He's scale, so that a gain of 1 neither shrinks nor blows up what passes.
    """

    def forward(self, x: Tensor) -> Tensor:
        length = self.weight.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        weight = self.weight * (math.sqrt(2.0) / length)
        return F.conv2d(x, weight, None, self.stride, self.padding)


class MeanOnlyNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - torch has no public name for it
    """Mean-only batch norm (Salimans & Kingma 2016, section 4): gain x (x - mean) + bias, per map.

    A batch norm in all but the division: running mean, momentum and freezing work as elsewhere.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's own name
        if input.ndim != 4:
            raise ValueError(f"expected maps (N, C, H, W), got {input.ndim} dimensions")

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        mean = self.running_mean
        if self.training or mean is None:
            now = x.float().mean((0, 2, 3))
            if self.training and self.track_running_stats and mean is not None:
                self._follow(mean, now.detach())
            mean = now
        gain, bias = self.weight.view(-1, 1, 1), self.bias.view(-1, 1, 1)
        return gain * (x - mean.view(-1, 1, 1)) + bias

    def _follow(self, running: Tensor, now: Tensor) -> None:
        """Follow as torch does: by ``momentum``, or by the average of all batches where it is None."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = 1.0 / int(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
        running.lerp_(now, share)


@dataclass(frozen=True)
class ConvLarge(Backbone):
    """Conv-Large: three stages of three convolutions, tapped at their ends; global average (N, 128).

    ``block1`` (128 maps, stride 1), ``block2`` (256, 2), ``block3`` (128, 4), each before its pool. The noise
    is added to the network's input, whose deviation is about 1, and is the trunk's first child.

    :param width: times the maps of every layer, for images smaller than CIFAR's; 1: the paper's.
    :param noise: deviation of the input noise in train mode.
    :param dropout: after each of the two pools.
    :param slope: of the leaky ReLU.
    :param normalization: "batch" (VAT and Mean Teacher's PyTorch code; biases kept, as in the published count
        of 3,123,850 with a 10-way head) or "weight" (weight norm with mean-only batch norm as in Laine &
        Aila, but from He's scale instead of their data-dependent initialization).
    :param momentum: share of the new batch in the running statistics: VAT's 0.01, Laine & Aila's 0.001.
    """

    name: ClassVar[str] = "conv_large"
    paper: ClassVar[str] = (
        "Laine & Aila, Temporal ensembling for semi-supervised learning, ICLR 2017, table 5"
    )
    width: float = 1.0
    noise: float = 0.15
    dropout: float = 0.5
    slope: float = 0.1
    normalization: str = "batch"
    momentum: float = 0.01

    def __post_init__(self) -> None:
        if self.normalization not in {"batch", "weight"}:
            raise BenchError(
                f"conv_large.normalization must be 'batch' or 'weight', not {self.normalization!r}"
            )

    def build(
        self,
        *,
        generator: torch.Generator,
        in_channels: int = 3,
        width: float = 1.0,
        stem_stride: int | None = None,
        input: nn.Module | None = None,  # noqa: A002 - the contract's own word
    ) -> Encoder:
        """An encoder without a top; images of 12 px or more at stride 1."""
        source, channels = front(input, in_channels, lambda: Normalize(CIFAR))
        trunk = fresh(lambda: self._trunk(channels, width * self.width, stem_stride or 1), generator)
        return sequential_encoder(source, trunk, ["block1", "block2", "block3"])

    def _trunk(self, channels: int, width: float, stride: int) -> nn.Sequential:
        trunk: OrderedDict[str, nn.Module] = OrderedDict(noise=GaussianNoise(self.noise))
        for number, stage in enumerate(_STAGES, 1):
            layers: list[nn.Module] = []
            for maps, kernel, padding in stage:
                (out,) = scaled((maps,), width)
                layers += self._convolution(channels, out, kernel, stride, padding)
                channels, stride = out, 1
            trunk[f"block{number}"] = nn.Sequential(*layers)
            if number < len(_STAGES):
                trunk[f"pool{number}"] = nn.MaxPool2d(2)
                trunk[f"drop{number}"] = nn.Dropout(self.dropout)
        return nn.Sequential(trunk)

    def _convolution(
        self, channels: int, out: int, kernel: int, stride: int, padding: int
    ) -> Sequence[nn.Module]:
        if self.normalization == "weight":
            conv: nn.Module = UnitConv(channels, out, kernel, stride, padding, bias=False)
            norm: nn.Module = MeanOnlyNorm(out, momentum=self.momentum)
        else:
            conv = nn.Conv2d(channels, out, kernel, stride, padding)
            norm = nn.BatchNorm2d(out, eps=1e-6, momentum=self.momentum)
        return conv, norm, activation(self.slope)
