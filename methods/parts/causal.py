"""A grid of vectors, read from the top to the bottom.

In the style of PixelCNN (van den Oord, Kalchbrenner & Kavukcuoglu, Pixel Recurrent Neural Networks, ICML 2016),
as CPC (2018, section 3.2) uses it: all of a row is known before the next one is predicted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import initialize


class _Block(nn.Module):
    """A residual of 1x1, 2x3 and 1x1 convolutions; the second sees a place's own row and the one above."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(dim, width, 1), nn.Conv2d(width, dim, 1)
        self.causal = nn.Conv2d(width, width, (2, 3))

    def forward(self, maps: Tensor) -> Tensor:
        known = F.pad(F.relu(self.narrow(F.relu(maps))), (1, 1, 1, 0))
        found: Tensor = maps + self.wide(F.relu(self.causal(known)))
        return found


class RowContext(nn.Module):
    """(N, dim, rows, columns) to the same: each place sums up its row and the ``blocks`` rows above."""

    def __init__(self, dim: int, width: int, blocks: int, generator: torch.Generator) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(dim, width) for _ in range(blocks)))
        initialize(self, generator)
        for block in self.blocks.children():
            assert isinstance(block, _Block)
            with torch.no_grad():
                block.wide.weight.mul_(blocks**-0.5)  # together they add about as much as there was

    def forward(self, maps: Tensor) -> Tensor:
        context: Tensor = self.blocks(maps)
        return context
