"""Context prediction: on which side of a patch does the other one lie?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import unit
from bench.contracts import Backbone, BenchError, DataShape, Draws, Frame, Model, Needs
from methods._loop import Batch, Loop, State
from methods.parts import mlp, patch_looks, resampling, tiles, views

_SIDES = 8
_COLORS = ("drop", "project", "keep")


@dataclass(frozen=True)
class ContextPrediction(Loop):
    """Classify the position of one patch beside another among eight; patches are seen one at a time.

    Patches lie on grids; all pairs of neighbors of a grid are asked, in both orders. The release sums its
    loss over some 2,270 pairs a batch at a rate of 1e-5, without momentum: 0.02 on their mean. (The paper finds a
    momentum of .999 to be faster, and tells no rate.) The release also divides patches by their deviation
    (``normalize`` mean_std), and has no norm in the last hidden layer. Paper and release resize an image to 150,000 to 450,000 pixels and take
    the grid that fits; here the grid's window is a part in ``scale`` of the image's area.

    :param grid: patches a side; of ``patch`` pixels, ``gap`` apart, each moved by up to +-``patch_jitter``.
    :param grids: per image and step.
    :param augment: ``window`` (never mirrored; ``scale`` () for the image's own) or a common one.
    :param colors: ``drop`` all channels but one and put ``noise`` (parts of its deviation) in their place,
        ``project`` off the green-magenta axis, or ``keep``.
    :param shrink: part of the patches that are shrunk and enlarged again; ``shrunk``: least and largest side
        between, in pixels, the area uniform.
    :param patch_dim: units of a layer on each patch's features (0: none); ``hidden``: on those of a pair.
    :param norm: batch norm without scale and shift in these layers.
    """

    paper: ClassVar[str] = (
        "Doersch, Gupta & Efros, Unsupervised Visual Representation Learning by Context Prediction, ICCV 2015"
    )
    needs: ClassVar[Needs] = Needs(min_side=48)
    distributed: ClassVar[bool] = True

    lr: float = 0.02
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 14
    augment: str = "window"
    scale: tuple[float, ...] = (0.35, 0.75)  # type: ignore[assignment]  # the loop's is never empty
    grid: int = 3
    patch: int = 96
    gap: int = 48
    patch_jitter: int = 7
    grids: int = 4
    colors: str = "drop"
    noise: float = 0.01
    shrink: float = 0.33
    shrunk: tuple[int, int] = (10, 95)
    normalize: str = "mean"
    patch_dim: int = 4096
    hidden: tuple[int, ...] = (4096, 4096)
    norm: bool = True

    def __post_init__(self) -> None:
        if self.colors not in _COLORS:
            raise BenchError(
                f"context_prediction.colors must be one of {', '.join(_COLORS)}, not {self.colors!r}"
            )
        if self.shrink and not 0 < self.shrunk[0] <= self.shrunk[1] < self.patch:
            raise BenchError(
                "context_prediction.shrunk must be two sides, ascending, below its patch of "
                f"{self.patch}, not {list(self.shrunk)}"
            )

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder, a layer on each patch, and a classifier on pairs."""
        encoder = backbone.build(generator=generator)
        widths = (encoder.dim, self.patch_dim) if self.patch_dim else (encoder.dim,)
        patch = mlp.relu_layers(widths, generator, norm=self.norm)
        pair = mlp.classifier((2 * widths[-1], *self.hidden), _SIDES, generator, norm=self.norm)
        return Model(encoder, parts={"patch": patch, "pair": pair})

    def frames(self, shape: DataShape) -> Sequence[Frame]:
        """A window for each grid."""
        window = self.grid * (self.patch + self.gap) - self.gap + 2 * self.patch_jitter
        return (tiles.frame(self, shape, window),) * self.grids

    def passes(self, shape: DataShape) -> float:
        """Patches count by their area."""
        return self.grids * self.grid**2 * views.area(shape, self.patch)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """The cross-entropy of the position (section 3), mean over all pairs of neighbors."""
        draws = batch.draws()
        patches = views.channels_last(torch.cat([self.patches(view, draws) for view in batch.views]))
        features = model.parts["patch"](model.encoder(patches))
        features = features.view(-1, self.grid**2, features.shape[1])
        first, second, sides = neighbors(self.grid, features.device)
        pairs = torch.cat([features[:, first], features[:, second]], 2).flatten(0, 1)
        scores = model.parts["pair"](pairs).float()
        return {"position": F.cross_entropy(scores, sides.repeat(len(features)))}

    def patches(self, view: Tensor, draws: Draws) -> Tensor:
        """The patches (N K, 3, s, s) of one grid in each window, without what tells their place by itself."""
        corners = tiles.scattered(draws, self.grid, self.patch + self.gap, 2 * self.patch_jitter)
        patches = unit(tiles.cut(view, corners, self.patch).flatten(0, 1))
        if self.shrink:
            patches = self._shrunk(patches, draws)
        if self.colors == "project":
            patches = patch_looks.project_colors(patches)
        patches = patch_looks.standardize(patches, self.normalize)
        if self.colors == "drop":
            kept = draws.integers(3, self.grid**2).flatten()
            noise = tiles.noise(draws, self.grid**2, 3, self.patch)
            patches = patch_looks.drop_colors(patches, kept, noise, self.noise)
        return patches

    def _shrunk(self, patches: Tensor, draws: Draws) -> Tensor:
        """Some of the patches, in their place, through a smaller size, whose area is uniform."""
        chosen = (draws.uniform(self.grid**2) < self.shrink).flatten().nonzero()[:, 0]
        least, most = self.shrunk
        areas = draws.uniform(self.grid**2, low=least**2, high=(most + 1) ** 2).flatten()
        sizes = areas[chosen].sqrt().long().clamp(least, most)
        matrices = resampling.through(self.patch, least, most).to(patches.device)[sizes - least]
        return patches.index_copy_(0, chosen, resampling.resample(patches[chosen], matrices))


def neighbors(rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """All ordered pairs of neighbors on a grid: first and second patch (P,), and the side (P,) of the second.

    Sides are numbered row after row around the first patch: above it to the left is 0, below to the right 7.
    """
    at = torch.cartesian_prod(torch.arange(rows), torch.arange(rows))
    apart = at[None] - at[:, None]
    first, second = ((apart.abs().amax(2) == 1).nonzero()).T
    place = (apart[first, second] + 1) @ torch.tensor([3, 1])
    return first.to(device), second.to(device), (place - (place > 4).long()).to(device)
