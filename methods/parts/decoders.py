"""What turns an encoder's maps into pictures and classes of pixels."""

from __future__ import annotations

import torch
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


def at_centers(images: Tensor, height: int, width: int) -> Tensor:
    """The pixels (N, C, height, width) in the middle of a map's cells, as they are."""
    for dim, count in ((2, height), (3, width)):
        places = ((torch.arange(count, device=images.device) + 0.5) * images.shape[dim] / count).long()
        images = images.index_select(dim, places)
    return images


def rows(maps: Tensor) -> Tensor:
    """(N, C, H, W) to float32 (N H W, C): a row a pixel."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).float()
