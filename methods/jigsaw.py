"""Jigsaw puzzles: in which order were the tiles of the image?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import unit
from bench.contracts import Backbone, DataShape, Draws, Model, Needs
from methods._loop import Batch, State
from methods._puzzle import Puzzle
from methods.parts import patch_looks, tiles, views


@dataclass(frozen=True)
class Jigsaw(Puzzle):
    """Classify by which of a set of permutations the tiles were shuffled; the encoder sees one tile at a time.

    Paper: crop 225 (cells of 85 pixels beside its table 5), 512 units a tile, every tile normalized, 30 % gray
    puzzles, channels shifted by +-2. Release: crop 255, ``tile_dim`` 1024, ``normalize`` none, ``gray`` 0.5,
    ``projected`` 0.5, channels shifted by 0 to 2 (which is +-1).

    :param channel_shift: pixels by which each channel of a tile is moved, up to as many either way.
    :param gray: part of the puzzles without color; ``projected``: of the others, part without green-magenta.
    """

    paper: ClassVar[str] = (
        "Noroozi & Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016"
    )
    needs: ClassVar[Needs] = Needs(min_side=48)
    distributed: ClassVar[bool] = True

    gray: float = 0.3
    channel_shift: int = 2
    projected: float = 0.0

    @property
    def margin(self) -> int:
        """For the channels to move in."""
        return self.channel_shift

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder, a layer on each tile, and a classifier on all tiles."""
        encoder = backbone.build(generator=generator)
        tile, puzzle = self.context_free(encoder, generator)
        return Model(encoder, parts={"tile": tile, "puzzle": puzzle})

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """The cross-entropy of the permutation (section 3.2)."""
        draws = batch.draws()
        which = draws.integers(self.permutations)
        pieces = self._shuffled(batch.views[0], state["permutations"][which], draws)
        features = model.parts["tile"](model.encoder(pieces)).view(len(batch), -1)
        return {"puzzle": F.cross_entropy(model.parts["puzzle"](features).float(), which)}

    def _shuffled(self, view: Tensor, orders: Tensor, draws: Draws) -> Tensor:
        """Tiles (N K, 3, s, s) of puzzles (N, 3, crop, crop): place k shows tile ``orders[:, k]``."""
        corners = self.corners(orders, draws)
        grays, projected = draws.coin(self.gray), draws.coin(self.projected)
        if self.channel_shift:
            corners = tiles.channels_apart(corners, draws, self.channel_shift, still=grays)
        pieces = unit(tiles.cut(view, corners, self.tile).flatten(0, 1))
        grays, projected = (c.repeat_interleave(self.grid**2) for c in (grays, projected))
        if self.projected:
            pieces = patch_looks.project_colors(pieces, projected & ~grays)
        if self.gray:
            pieces = patch_looks.gray(pieces, grays)
        return views.channels_last(patch_looks.standardize(pieces, self.normalize))
