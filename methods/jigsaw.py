"""Jigsaw puzzles: in which order were the tiles of the image?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import unit
from bench.contracts import Backbone, DataShape, Draws, Frame, Model, Needs, Run, TrainingSet
from methods._loop import Batch, Loop, State
from methods.parts import mlp, patch_looks, tiles, views
from methods.parts.permutations import permutation_set


@dataclass(frozen=True)
class Jigsaw(Loop):
    """Classify by which of a set of permutations the tiles were shuffled; the encoder sees one tile at a time.

    Paper: crop 225, 512 units a tile, every tile normalized, 30 % gray puzzles, channels shifted by +-2.
    Release: crop 255, ``tile_dim`` 1024, ``normalize`` none, ``gray`` 0.5, ``projected`` 0.5, channels
    shifted by 0 to 2 (which is +-1).

    :param crop: the puzzle's side in pixels; ``grid`` x ``grid`` cells with a tile of ``tile`` pixels anywhere
        in each; a tile keeps ``channel_shift`` pixels to its cell's border, for its channels to move in.
    :param augment: ``window`` (never mirrored; ``scale``: () or its part of the image's area) or a common one.
    :param permutations: how many; ``distance``: which, see :mod:`methods.parts.permutations`.
    :param gray: part of the puzzles without color; ``projected``: of the others, part without green-magenta.
    :param tile_dim: units of a layer on each tile's features (0: none); ``hidden``: of those on all of them.
    """

    paper: ClassVar[str] = (
        "Noroozi & Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016"
    )
    needs: ClassVar[Needs] = Needs(min_side=48)
    distributed: ClassVar[bool] = True

    lr: float = 0.01
    batch_size: int = 256
    schedule: str = "step"
    drops: tuple[float, ...] = (2 / 7, 4 / 7, 6 / 7)
    augment: str = "window"
    scale: tuple[float, ...] = ()  # type: ignore[assignment]  # the loop's is never empty
    crop: int = 225
    grid: int = 3
    tile: int = 64
    permutations: int = 1000
    distance: str = "maximal"
    gray: float = 0.3
    channel_shift: int = 2
    projected: float = 0.0
    normalize: str = "mean_std"
    tile_dim: int = 512
    hidden: tuple[int, ...] = (4096,)
    dropout: float = 0.5

    def __post_init__(self) -> None:
        tiles.room("jigsaw", self.tile, self.crop // self.grid, self.channel_shift)

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder, a layer on each tile, and a classifier on all tiles."""
        encoder = backbone.build(generator=generator)
        widths = (encoder.dim, self.tile_dim) if self.tile_dim else (encoder.dim,)
        tile = mlp.relu_layers(widths, generator, dropout=self.dropout)
        joint = (widths[-1] * self.grid**2, *self.hidden)
        puzzle = mlp.classifier(joint, self.permutations, generator, dropout=self.dropout)
        return Model(encoder, parts={"tile": tile, "puzzle": puzzle})

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """The permutations (count, tiles)."""
        chosen = permutation_set(self.grid**2, self.permutations, self.distance)
        return {"permutations": chosen.to(run.device, copy=True)}

    def frames(self, shape: DataShape) -> Sequence[Frame]:
        """The puzzle, whole."""
        return (tiles.frame(self.augment, shape, self.crop, self.scale, self.jitter),)

    def passes(self, shape: DataShape) -> float:
        """Tiles count by their area."""
        return self.grid**2 * views.area(shape, self.tile)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """The cross-entropy of the permutation (section 3.2)."""
        draws = batch.draws()
        which = draws.integers(self.permutations)
        pieces = self._shuffled(batch.views[0], state["permutations"][which], draws)
        features = model.parts["tile"](model.encoder(pieces)).view(len(batch), -1)
        return {"puzzle": F.cross_entropy(model.parts["puzzle"](features).float(), which)}

    def _shuffled(self, view: Tensor, orders: Tensor, draws: Draws) -> Tensor:
        """Tiles (N K, 3, s, s) of puzzles (N, 3, crop, crop): place k shows tile ``orders[:, k]``."""
        cell = self.crop // self.grid
        room = tiles.room("jigsaw", self.tile, cell, self.channel_shift)
        corners = tiles.scattered(draws, self.grid, cell, room) + self.channel_shift
        corners = corners.take_along_dim(orders[:, :, None], 1)
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
