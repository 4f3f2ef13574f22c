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
    one = torch.eye(cells, device=draws.key.device)[None, None]
    stretch = F.interpolate(one, (side, cells), mode="bicubic")[
        0, 0
    ]  # of one axis; the other one's is the same
    with torch.autocast(stretch.device.type, enabled=False):  # ties would change the area
        smooth = (stretch @ draws.normal(cells, cells) @ stretch.T).flatten(1)
    lowest = smooth.topk(max(1, round(area * side * side)), 1, largest=False, sorted=False).values
    limit = lowest.amax(1, keepdim=True)
    return (smooth <= limit).view(-1, 1, side, side)


def emphasized(hole: Tensor, overlap: int, emphasis: float, known: float) -> Tensor:
    """How much each pixel (N, 1, H, W) weighs: 1 in the hole, ``emphasis`` within ``overlap`` pixels of it.

    :param known: the weight of all others.
    """
    removed = hole.float()
    places = torch.arange(hole.shape[-1], device=hole.device)
    band = ((places[:, None] - places).abs() <= overlap).float()
    near = (band @ removed @ band > 0).float()  # a product takes a fifth of a pooling's time
    weights = removed + emphasis * (near - removed)
    return weights + known * (1 - near) if known else weights
