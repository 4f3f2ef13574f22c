"""A small network that makes tiles from features, and one that tells them from real ones (after DCGAN).

Radford, Metz & Chintala, ICLR 2016; without batch norm in the discriminator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import initialize

_FIRST = 4  # side of the decoder's first maps


class TileDecoder(nn.Module):
    """Features (N, dim) to tiles (N, channels, side, side), doubling 4 x 4 maps until they are as large."""

    def __init__(self, dim: int, channels: int, side: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        doublings = max(1, (side - 1).bit_length() - 2)
        widths = [width * 2**i for i in reversed(range(doublings))]
        self.side = side
        self.first = nn.Linear(dim, widths[0] * _FIRST**2)
        self.rest = nn.Sequential()
        for inner, outer in zip(widths, [*widths[1:], channels], strict=True):
            self.rest.extend([nn.ReLU(), nn.ConvTranspose2d(inner, outer, 4, 2, 1)])
        initialize(self, generator)

    def forward(self, features: Tensor) -> Tensor:
        tiles: Tensor = self.rest(self.first(features).unflatten(1, (-1, _FIRST, _FIRST)))
        if tiles.shape[-1] == self.side:
            return tiles
        return F.interpolate(tiles, (self.side, self.side), mode="bilinear", antialias=True)


def discriminator(channels: int, side: int, width: int, generator: torch.Generator) -> nn.Sequential:
    """Tiles (N, channels, side, side) to scores (N, 1): high where they are real."""
    stack = nn.Sequential()
    while side > _FIRST:
        stack.extend([nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)])
        channels, width, side = width, 2 * width, side // 2
    stack.extend([nn.Flatten(), nn.Linear(channels * side**2, 1)])
    initialize(stack, generator)
    return stack
