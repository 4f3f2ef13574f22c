"""Changing the size of images by the product with one matrix a side: exact, batched, each image its own filter."""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.contracts import BenchError

_FILTERS = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FILTERS = tuple(_FILTERS)


@functools.lru_cache(maxsize=64)
def matrix(old: int, new: int, name: str) -> Tensor:
    """What Pillow's filter ``name`` does to a row of ``old`` pixels: (new, old). Antialiased; rows sum to 1.

    :raises BenchError: an unknown filter.
    """
    if name not in _FILTERS:
        raise BenchError(f"filter {name!r} is not known: write {', '.join(FILTERS)}")
    columns = Image.fromarray(np.eye(old, dtype=np.float32))
    return torch.from_numpy(np.array(columns.resize((old, new), _FILTERS[name])))


@functools.lru_cache(maxsize=16)
def through(side: int, least: int, most: int) -> Tensor:
    """For each size t from ``least`` to ``most``: shrink to t pixels and enlarge again, (sizes, side, side)."""
    sizes = range(least, most + 1)
    return torch.stack([matrix(t, side, "bilinear") @ matrix(side, t, "bilinear") for t in sizes])


def resample(images: Tensor, matrices: Tensor) -> Tensor:
    """Images (N, C, s, s), each by its own matrix (N, t, s) on both sides: (N, C, t, t)."""
    rows = matrices[:, None] @ images  # then the channels are rows too: one product an image
    return (rows.flatten(1, 2) @ matrices.mT).view(*rows.shape[:3], -1)
