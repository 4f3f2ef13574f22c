"""What is cut out of an image: regions of pixels, every image with a draw of its own.

Pathak et al., Context Encoders, CVPR 2016, section 3.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts import BenchError, Draws

KINDS = ("central", "block", "region")


def holes(
    kind: str, draws: Draws, side: int, *, blocks: int, block: float, area: float, cells: int
) -> Tensor:
    """Bool (N, 1, side, side), true where a pixel is removed.

    ``central``: the square of half the side. ``block``: ``blocks`` squares of ``block`` of the side, anywhere,
    which may overlap. ``region``: ``area`` of the pixels in smooth random shapes, about ``cells`` of them a side.
    """
    if kind == "central":
        hole = torch.zeros(len(draws), 1, side, side, dtype=torch.bool, device=draws.key.device)
        hole[..., side // 4 : side - side // 4, side // 4 : side - side // 4] = True
        return hole
    if kind == "block":
        return _blocks(draws, side, blocks, max(1, round(block * side)))
    if kind == "region":
        return _regions(draws, side, area, cells)
    raise BenchError(f"mask {kind!r} is not known: write {', '.join(KINDS)}")


def _blocks(draws: Draws, side: int, blocks: int, length: int) -> Tensor:
    places = torch.arange(side, device=draws.key.device)

    def inside() -> Tensor:
        start = draws.integers(side - length + 1, blocks).unsqueeze(2)
        return (places >= start) & (places < start + length)

    return (inside().unsqueeze(3) & inside().unsqueeze(2)).any(1, keepdim=True)


def _regions(draws: Draws, side: int, area: float, cells: int) -> Tensor:
    """Where smooth noise is lowest: the pattern of the released code, at the quantile instead of a threshold."""
    noise = draws.normal(1, cells, cells)
    smooth = F.interpolate(noise, (side, side), mode="bicubic").flatten(1)
    rank = max(1, round(area * side * side)) - 1
    return (smooth <= smooth.sort(1).values[:, rank, None]).view(-1, 1, side, side)


def emphasized(hole: Tensor, overlap: int, emphasis: float, known: float) -> Tensor:
    """How much each pixel (N, 1, H, W) weighs: 1 in the hole, ``emphasis`` within ``overlap`` pixels of it.

    :param known: the weight of all others.
    """
    removed = hole.float()
    near = F.max_pool2d(removed, 2 * overlap + 1, 1, overlap)
    return removed + emphasis * (near - removed) + known * (1 - near)
