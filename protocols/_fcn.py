"""A fully convolutional network of an encoder: a score a class for every pixel."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import Encoder
from protocols._dense import Below, drawn, learned


@dataclass(frozen=True)
class Fcn:
    """A network's settings, as ``voc_segmentation`` names them.

    :param top: scores on the last maps, above the encoder's fully connected layers; else on ``layer``, above a
        3x3 convolution of ``width`` maps.
    :param settled: batch norms keep the statistics that they came with.
    """

    top: bool
    layer: str
    width: int
    dilation: int
    dropout: float
    pad: int
    freeze: str
    settled: bool


class Segmenter(nn.Module):
    """Images (N, 3, H, W) to scores (N, C, H, W)."""

    def __init__(self, p: Fcn, encoder: Encoder, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.classes, self.pad, fcn = classes, p.pad, p.top
        top = learned(encoder.top) if fcn else None
        self.below = Below(encoder, "" if fcn else p.layer, p.freeze, settled=p.settled, rest=fcn)
        self.top, width, grid = convolutional(top) if top else (nn.Sequential(), self.below.channels, 1)
        if not fcn:
            self.top = nn.Sequential(
                nn.Conv2d(width, p.width, 3, padding=p.dilation, dilation=p.dilation),
                nn.ReLU(),
                nn.Dropout2d(p.dropout),
            )
            drawn(self.top, (2 / (9 * width)) ** 0.5, 0.0, generator)
            width = p.width
        self.score = nn.Conv2d(width, classes, 1)
        drawn(self.score, 0.0, 0.0, generator)  # as FCN's: zero
        self.stride = self.below.stride
        # The first cell's middle in the image, of which ``pad`` pixels more than there are were seen.
        self.first = self.below.first + (grid - 1) / 2 * self.stride - self.pad

    def forward(self, images: Tensor) -> Tensor:
        prepared = F.pad(self.below.input(images), (self.pad,) * 4)
        maps = self.score(self.top(self.below(prepared)))
        down, across = (
            interpolation(size, count, self.stride, self.first).to(maps)
            for size, count in zip(images.shape[2:], maps.shape[2:], strict=True)
        )
        scores: Tensor = down @ maps @ across.T
        return scores

    def train(self, mode: bool = True) -> Segmenter:
        """Fully connected layers' batch norms are settled with the others."""
        super().train(mode)
        if self.below.settled:
            for part in self.top.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()
        return self


def interpolation(size: int, count: int, stride: int, first: float) -> Tensor:
    """Bilinear upsampling as a matrix (size, count): cell i lies at ``first + stride * i``, borders repeat.

    A fixed deconvolution with a bilinear kernel of 2 stride - 1 gives the same wherever two cells meet.
    """
    at = ((torch.arange(size) - first) / stride).clamp(0, count - 1)
    return (1 - (at[:, None] - torch.arange(count)).abs()).clamp(min=0)


def convolutional(top: nn.Module) -> tuple[nn.Sequential, int, int]:
    """Fully connected layers as convolutions: (the layers, their last width, the side of the first kernel)."""
    grid, first, width, parts = 1, True, 0, list[nn.Module]()
    for part in top.children():
        if isinstance(part, nn.AdaptiveAvgPool2d):
            grid = _side(part)
        elif isinstance(part, nn.Linear):
            side = grid if first else 1
            conv = nn.Conv2d(part.in_features // side**2, part.out_features, side, bias=part.bias is not None)
            shape = (part.out_features, -1, side, side)
            conv.load_state_dict(
                {k: v.view(shape) if k == "weight" else v for k, v in part.state_dict().items()}
            )
            first, width = False, part.out_features
            parts.append(conv)
        elif isinstance(part, nn.BatchNorm1d):
            norm = nn.BatchNorm2d(part.num_features, part.eps, part.momentum, part.affine)
            norm.load_state_dict(part.state_dict())
            parts.append(norm)
        elif not isinstance(part, nn.Flatten):
            parts.append(copy.deepcopy(part))
    return nn.Sequential(*parts).requires_grad_(), width, grid


def _side(pool: nn.AdaptiveAvgPool2d) -> int:
    """The side of the pool's square grid."""
    size: Any = pool.output_size
    return int(size if isinstance(size, int) else size[0])
