"""What turns an encoder's maps into pictures and classes of pixels."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pixel_classifier(channels: int, classes: int, factor: int, generator: torch.Generator) -> nn.Sequential:
    """Scores of ``classes`` at ``factor`` times the resolution: (N, channels, h, w) to (N, classes, fh, fw).

    A 1x1 convolution, weights N(0, .01), whose channels become the pixels of a cell.
    """
    conv = nn.Conv2d(channels, classes * factor**2, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * 0.01)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
    return nn.Sequential(conv, nn.PixelShuffle(factor)) if factor > 1 else nn.Sequential(conv)


class ChannelwiseLinear(nn.Module):
    """A fully connected layer within each map: (N, C, side, side) to the same (Pathak et al., section 3.1)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, side**2, side**2))
        self.bias = nn.Parameter(torch.zeros(channels, side**2))

    def forward(self, maps: Tensor) -> Tensor:
        mixed = torch.einsum("ncs,cst->nct", maps.flatten(2), self.weight) + self.bias
        return mixed.view_as(maps)


class Painter(nn.Module):
    """Maps (N, channels, maps, maps) to pictures (N, 3, side, side) in [-1, 1].

    A channel-wise layer, a 1x1 convolution across channels, and up-convolutions that double the size, with batch
    norm and ReLU; what is then not quite ``side`` is resized.

    :param width: maps of the last layer but one; those before have twice as many each, up to 8 ``width``.
    """

    def __init__(self, channels: int, maps: int, side: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.side = side
        doublings = max(1, round(math.log2(side / maps)))
        widths = [width * 2 ** min(3, level) for level in reversed(range(doublings))]
        layers: list[nn.Module] = [ChannelwiseLinear(channels, maps)]
        layers += [nn.Conv2d(channels, widths[0], 1), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.ConvTranspose2d(inner, outer, 4, 2, 1), nn.BatchNorm2d(outer), nn.ReLU()]
        layers += [nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1), nn.Tanh()]
        self.layers = small_weights(nn.Sequential(*layers), generator)

    def forward(self, maps: Tensor) -> Tensor:
        painted: Tensor = self.layers(maps).float()
        if painted.shape[-1] == self.side:
            return painted
        return F.interpolate(painted, (self.side, self.side), mode="bilinear")


def small_weights(layers: nn.Sequential, generator: torch.Generator, std: float = 0.02) -> nn.Sequential:
    """DCGAN's initial weights, in place: N(0, std), biases 0, norms as they are."""
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, ChannelwiseLinear)):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # each has one
    return layers


def at_centers(images: Tensor, height: int, width: int) -> Tensor:
    """The pixels (N, C, height, width) in the middle of a map's cells, as they are."""
    for dim, count in ((2, height), (3, width)):
        places = ((torch.arange(count, device=images.device) + 0.5) * images.shape[dim] / count).long()
        images = images.index_select(dim, places)
    return images


def rows(maps: Tensor) -> Tensor:
    """(N, C, H, W) to float32 (N H W, C): a row a pixel."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).float()
