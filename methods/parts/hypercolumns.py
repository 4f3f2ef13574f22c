"""All layers of a network at a few places of an image.

Hariharan et al., Hypercolumns, CVPR 2015, read at sparse locations as in Larsson et al., ECCV 2016, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def hypercolumns(layers: Iterable[Tensor], places: Tensor) -> Tensor:
    """Maps (N, C, h, w) of any sizes, read bilinearly at places (N, P, 2): (N P, sum of C).

    :param places: y and x as fractions of the image's height and width, 0 and 1 at its borders. Between the
        border and the middle of the outermost cells, these count.
    """
    return torch.cat([_read(maps, places) for maps in layers], 1)


def _read(maps: Tensor, places: Tensor) -> Tensor:
    count, channels, height, width = maps.shape
    y, above, below = _between(places[..., 0], height)
    x, left, right = _between(places[..., 1], width)
    first = torch.arange(count, device=maps.device)[:, None] * (height * width)
    # Picked rows, not grid_sample: their gradient is the same at every run on a GPU too.
    rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    corners = torch.stack(
        [first + row * width + column for row in (above, below) for column in (left, right)]
    )
    weights = torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x]).flatten(1)
    picked = rows.index_select(0, corners.flatten()).view(4, -1, channels)
    return (picked * weights.unsqueeze(2).to(picked.dtype)).sum(0)


def _between(places: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """How far (N, P) each place is from one cell's middle to the next one's, and both cells."""
    position = (places * count - 0.5).clamp(0, count - 1)
    before = position.floor()
    return position - before, before.long(), (before.long() + 1).clamp(max=count - 1)
