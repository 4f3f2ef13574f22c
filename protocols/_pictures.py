"""Grids of images: what protocols show beside their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import CenterCrop, Chain, Resize, unit
from bench.contracts import BenchError, Images

# Okabe & Ito's colors, told apart with every kind of color vision.
OKABE_ITO = (
    (0.0, 0.447, 0.698),  # blue
    (0.902, 0.624, 0.0),  # orange
    (0.0, 0.620, 0.451),  # green
    (0.800, 0.475, 0.655),  # purple
    (0.835, 0.369, 0.0),  # vermilion
    (0.337, 0.706, 0.914),  # sky
    (0.941, 0.894, 0.259),  # yellow
    (0.0, 0.0, 0.0),  # black
)
SAME, OTHER, QUERY = OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[7]


def thumbnails(images: Images, rows: Tensor, side: int) -> Tensor:
    """Images (n, 3, side, side) in [0, 1] on the CPU, each the middle of its resized version."""
    frame = Chain((Resize(side), CenterCrop(side)))
    found = [view for (view,) in images.views(list(rows.split(64)), [frame], 0, 0)]  # type: ignore[no-untyped-call]
    return unit(torch.cat(found)).float().cpu()


def framed(tiles: Tensor, colors: Sequence[tuple[float, float, float]], width: int = 2) -> Tensor:
    """Each of the tiles (n, 3, s, s) within a border of its color: (n, 3, s + 2 width, s + 2 width)."""
    if len(colors) != len(tiles):
        raise BenchError(f"{len(tiles)} tiles need as many colors, not {len(colors)}")
    out = F.pad(tiles, (width,) * 4)
    border = F.pad(torch.zeros_like(tiles[:, :1]), (width,) * 4, value=1.0)
    return torch.where(border.bool(), torch.tensor(colors)[:, :, None, None], out)


def grid(tiles: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Tiles (n, 3, s, s), row after row, on white: (3, H, W)."""
    rows = math.ceil(len(tiles) / columns)
    cell = F.pad(tiles, (gap,) * 4, value=1.0)
    side = cell.shape[-1]
    whole = cell.new_ones(rows * columns, 3, side, side)
    whole[: len(cell)] = cell
    return whole.view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4).reshape(3, rows * side, -1)
