"""Square pieces of images on a grid: where they lie, and cutting them out, for whole batches at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.augment import Chain, ColorJitter, RandomCrop, Resize, ResizedCrop
from bench.contracts import BenchError, DataShape, Draws, Frame
from methods.parts import views

if TYPE_CHECKING:
    from methods._loop import Loop


def frame(loop: Loop, shape: DataShape, side: int) -> Frame:
    """The view that tiles are cut from, of ``side`` pixels.

    :param loop: its ``augment`` ``window``: anywhere in the image, never mirrored, at its own scale or, where
        ``scale`` says from which to which part of the image's area, resampled to ``side``; else as
        ``views.geometry`` has it. ``jitter``: strengths of :class:`bench.augment.ColorJitter`, or ().
    """
    colors = (ColorJitter(*loop.jitter),) if loop.jitter else ()
    if loop.augment == "window":
        return Chain((*_window(shape, side, loop.scale), *colors))
    between = loop.scale or (1.0, 1.0)
    pieces = views.geometry(loop.augment, shape, side, between, flip=loop.mirror, padding=loop.padding)
    return Chain((*pieces, *colors))


def _window(shape: DataShape, side: int, scale: Sequence[float]) -> tuple[Frame, ...]:
    if scale:
        return (ResizedCrop(side, (scale[0], scale[1]), (1.0, 1.0)),)
    if side == shape.side:
        return ()
    return (RandomCrop(side),) if shape.side else (Resize(side * 8 // 7), RandomCrop(side))


def scattered(draws: Draws, rows: int, step: int, room: int) -> Tensor:
    """Corners (N, rows^2, 2), down and right, of tiles on a grid, each with a shift of its own.

    Tile (i, j) begins at (i, j) ``step`` + 0 ... ``room`` pixels, row after row. A gap g and a jitter of +-r
    around tiles of side s are ``step = s + g``, ``room = 2 r``; tiles of side s anywhere in cells of side c
    are ``step = c``, ``room = c - s``.
    """
    moved = draws.integers(room + 1, rows * rows, 2)
    at = torch.arange(rows, device=moved.device) * step
    return torch.cartesian_prod(at, at) + moved


def cut(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Tiles (N, K, C, side, side) of images (N, C, H, W), without resampling.

    :param corners: int64 (N, K, 2), or (N, K, C, 2) for channels that are cut apart.
    """
    n, channels, height, width = images.shape
    if corners.ndim == 3:
        corners = corners[:, :, None].expand(-1, -1, channels, -1)
    k = corners.shape[1]
    planes = torch.arange(n * channels, device=images.device).view(n, 1, channels) * (height * width)
    first = planes + corners[..., 0] * width + corners[..., 1]
    rows = first[..., None] + torch.arange(side, device=images.device) * width
    flat = images.reshape(-1)
    runs = flat.as_strided((flat.numel() - side + 1, side), (1, 1))  # whole rows are copied, not pixels
    return runs.index_select(0, rows.reshape(-1)).view(n, k, channels, side, side)


@functools.lru_cache(maxsize=4)
def _field(side: int) -> Tensor:
    """Standard normal numbers (1, 1, 4 side, 4 side), the same ones for ever."""
    return torch.randn(1, 1, 4 * side, 4 * side, generator=torch.Generator().manual_seed(side))


def noise(draws: Draws, count: int, channels: int, side: int) -> Tensor:
    """Standard normal noise (N count, channels, side, side): windows at random places of one fixed field.

    Numbers of their own for each pixel would take as long as a layer of the network.
    """
    corners = draws.integers(3 * side + 1, count, channels, 2)
    field = _field(side).to(corners.device)
    return cut(field, corners.view(1, -1, 2), side).view(-1, channels, side, side)


def channels_apart(corners: Tensor, draws: Draws, shift: int, *, still: Tensor) -> Tensor:
    """Corners (N, K, 2) to (N, K, 3, 2): every channel moves by -``shift`` ... ``shift`` pixels on its own.

    So that a lens which bends the colors apart tells nothing. The images ``still`` (bool (N,)) stay together.
    """
    moved = draws.integers(2 * shift + 1, corners.shape[1], 3, 2) - shift
    return corners[:, :, None] + moved.masked_fill(still[:, None, None, None], 0)


def room(name: str, tile: int, cell: int, shift: int = 0) -> int:
    """Pixels that a tile can move inside its cell while its channels are shifted by up to ``shift`` each way.

    :raises BenchError: the tile does not fit.
    """
    left = cell - tile - 2 * shift
    if left < 0:
        raise BenchError(
            f"{name}: tiles of {tile} pixels with channels shifted by {shift} need cells of at least "
            f"{tile + 2 * shift} pixels, not {cell}"
        )
    return left
