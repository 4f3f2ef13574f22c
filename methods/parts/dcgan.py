"""A generator of images from codes, and a discriminator of pairs of both.

Radford, Metz & Chintala, Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks, ICLR 2016; with the code at every layer, as in the release of Donahue, Krähenbühl & Darrell,
Adversarial Feature Learning, ICLR 2017. Kernels of 5, strides of 2, to 4 to 7 pixels.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import initialize

_SLOPE = 0.2  # of the discriminator's leaky ReLU


def widths(side: int, size: int) -> list[int]:
    """Maps after each halving, from ``size``, doubled up to eight times it."""
    halvings = max(2, int(math.log2(side / 4)))  # the first alone reads no code
    return [size * 2 ** min(k, 3) for k in range(halvings)]


class Generator(nn.Module):
    """Codes (N, dim) to images (N, 3, side, side) in [0, 1]."""

    def __init__(self, side: int, dim: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        maps = widths(side, size)[::-1]
        self.side, self.start = side, math.ceil(side / 2 ** len(maps))
        self.first = nn.Linear(dim, maps[0] * self.start**2, bias=False)
        self.flat_norm = nn.BatchNorm1d(maps[0] * self.start**2)
        self.lifts, self.codes, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for inner, outer in itertools.pairwise(maps):
            self.lifts.append(nn.ConvTranspose2d(inner, outer, 5, 2, 2, 1, bias=False))
            self.codes.append(nn.Linear(dim, outer, bias=False))
            self.norms.append(nn.BatchNorm2d(outer))
        self.last = nn.ConvTranspose2d(maps[-1], 3, 5, 2, 2, 1)
        initialize(self, generator)

    def forward(self, codes: Tensor) -> Tensor:
        flat = F.relu(self.flat_norm(self.first(codes)))
        maps = flat.view(len(codes), -1, self.start, self.start)
        for lift, code, norm in zip(self.lifts, self.codes, self.norms, strict=True):
            maps = F.relu(norm(lift(maps) + code(codes)[:, :, None, None]))
        images: Tensor = self.last(maps)[..., : self.side, : self.side].sigmoid()
        return images


class JointDiscriminator(nn.Module):
    """Images (N, 3, side, side) in [0, 1] and codes (N, dim) to logits (N,)."""

    def __init__(self, side: int, dim: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        maps = widths(side, size)
        self.first = nn.Conv2d(3, maps[0], 5, 2, 2)
        self.convs, self.codes, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for inner, outer in itertools.pairwise(maps):
            self.convs.append(nn.Conv2d(inner, outer, 5, 2, 2, bias=False))
            self.codes.append(nn.Linear(dim, outer, bias=False))
            self.norms.append(nn.BatchNorm2d(outer))
        self.last = nn.Linear(maps[-1] * math.ceil(side / 2 ** len(maps)) ** 2, 1)
        initialize(self, generator)

    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        maps = F.leaky_relu(self.first(images * 2 - 1), _SLOPE)
        for conv, code, norm in zip(self.convs, self.codes, self.norms, strict=True):
            maps = F.leaky_relu(norm(conv(maps) + code(codes)[:, :, None, None]), _SLOPE)
        logits: Tensor = self.last(maps.flatten(1))[:, 0]
        return logits
