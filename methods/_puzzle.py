"""The base class of jigsaw puzzles: the tiles of an image, shuffled, and a network that tells in which order.

Noroozi & Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.contracts import DataShape, Draws, Encoder, Frame, Model, Run, TrainingSet
from methods._loop import Loop, State
from methods.parts import mlp, tiles, views
from methods.parts.permutations import permutation_set


@dataclass(frozen=True)
class Puzzle(Loop):
    """A loop over puzzles of ``grid`` x ``grid`` tiles, each from anywhere in a cell of its own.

    :param crop: the puzzle's side in pixels; ``tile``: a tile's, cut from a cell of ``crop / grid``.
    :param augment: ``window`` (never mirrored; ``scale``: () or its part of the image's area) or a common one.
    :param permutations: how many; ``distance``: which, see :mod:`methods.parts.permutations`.
    :param normalize: of each tile, see :func:`methods.parts.patch_looks.standardize`.
    :param tile_dim: units of a layer on each tile's features (0: none); ``hidden``: of those on all of them.
    """

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
    normalize: str = "mean_std"
    tile_dim: int = 512
    hidden: tuple[int, ...] = (4096,)
    dropout: float = 0.5

    def __post_init__(self) -> None:
        self.room()  # refuses tiles that do not fit

    @property
    def margin(self) -> int:
        """Pixels that a tile keeps to its cell's border."""
        return 0

    def room(self) -> int:
        """Pixels that a tile can move by inside its cell and margin.

        :raises BenchError: the tile does not fit.
        """
        name = type(self).__module__.rpartition(".")[2]
        return tiles.room(name, self.tile, self.crop // self.grid, self.margin)

    def context_free(self, encoder: Encoder, generator: torch.Generator) -> tuple[nn.Module, nn.Module]:
        """Section 3.2: a layer on the features of one tile, and a classifier of permutations on those of all."""
        widths = (encoder.dim, self.tile_dim) if self.tile_dim else (encoder.dim,)
        tile = mlp.relu_layers(widths, generator, dropout=self.dropout)
        joint = (widths[-1] * self.grid**2, *self.hidden)
        return tile, mlp.classifier(joint, self.permutations, generator, dropout=self.dropout)

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """The permutations (count, tiles)."""
        chosen = permutation_set(self.grid**2, self.permutations, self.distance)
        return {"permutations": chosen.to(run.device, copy=True)}

    def frames(self, shape: DataShape) -> Sequence[Frame]:
        """The puzzle, whole."""
        return (tiles.frame(self, shape, self.crop),)

    def passes(self, shape: DataShape) -> float:
        """Tiles count by their area."""
        return self.grid**2 * views.area(shape, self.tile)

    def corners(self, orders: Tensor, draws: Draws) -> Tensor:
        """Where the tiles of shuffled puzzles begin (N, K, 2): place k shows tile ``orders[:, k]``."""
        found = tiles.scattered(draws, self.grid, self.crop // self.grid, self.room()) + self.margin
        return found.take_along_dim(orders[:, :, None], 1)
