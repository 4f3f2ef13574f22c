"""Split-brain autoencoders: each half of the network sees some channels of the image and predicts the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import Backbone, BenchError, DataShape, Model, Needs
from methods._loop import Batch, Loop, State
from methods.parts.ab_bins import AbBins
from methods.parts.decoders import at_centers, pixel_classifier, rows
from methods.parts.joined import join, towers
from methods.parts.lab import Channels, planes
from methods.parts.levels import Levels


@dataclass(frozen=True)
class SplitBrain(Loop):
    """Two disjoint towers of half the width predict each other's channels; both together are the encoder.

    Colors are encoded by their nearest bin alone and not rebalanced (appendix B). The paper names no optimizer: it
    is that of colorization by the same authors. What lies above the last tap is not trained: use a backbone without a top.

    :param split: two groups of the channels of one space, Lab or RGB: ``L|ab``, ``R|GB``, ``a|Lb``...
    :param loss: ``classification`` of the other's quantized channels, (eq. 2), or ``regression`` to them (eq. 1).
    :param stride: pixels between predictions; finer than the last tap's by a pixel shuffle.
    :param grid: step of the ab bins; ``neighbors``: bins that encode a color (1: the nearest alone).
    :param levels: of a channel predicted alone; ``pair_levels``: of each of two, where these are not a and b.
    """

    paper: ClassVar[str] = (
        "Zhang, Isola & Efros, Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel Prediction, CVPR 2017"
    )
    from_description: ClassVar[str] = "the network was released, its training was not"
    needs: ClassVar[Needs] = Needs(color=True)
    distributed: ClassVar[bool] = True

    optimizer: str = "adam"
    lr: float = 3e-5
    weight_decay: float = 1e-3
    batch_size: int = 80
    schedule: str = "step"
    drops: tuple[float, ...] = (0.53, 0.67, 0.89)
    gamma: float = 0.32
    split: str = "L|ab"
    loss: str = "classification"
    stride: int = 16
    grid: float = 10.0
    neighbors: int = 1
    levels: int = 50
    pair_levels: int = 16

    def __post_init__(self) -> None:
        if self.loss not in {"classification", "regression"}:
            raise BenchError(f"split_brain.loss must be classification or regression, not {self.loss!r}")
        one, bar, other = self.split.partition("|")
        if not (one and bar and other) or sorted(one + other) not in (sorted("Lab"), sorted("RGB")):
            raise BenchError(
                f'split_brain.split must part the channels of Lab or RGB, like "L|ab", not {self.split!r}'
            )

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """Two towers of half the width as one encoder, and for each a classifier of the other's channels."""
        groups = self.split.split("|")
        halves = [
            backbone.build(generator=generator, in_channels=len(g), width=0.5, input=Channels(g))
            for g in groups
        ]
        last = halves[0].layers[-1]
        parts: dict[str, nn.Module] = {}
        factor = max(1, halves[0].strides[last] // self.stride)
        for half, target in zip(halves, reversed(groups), strict=True):
            classes = self._classes(target)
            width = len(classes) if self.loss == "classification" else len(target)
            parts[f"predict_{target}"] = pixel_classifier(half.channels[last], width, factor, generator)
            parts[f"classes_{target}"] = classes
        return Model(join(halves[0], halves[1], Channels("".join(groups)), len(groups[0])), parts=parts)

    def _classes(self, names: str) -> AbBins | Levels:
        if sorted(names) == ["a", "b"]:
            return AbBins(self.grid, self.neighbors)
        return Levels(names, self.levels if len(names) == 1 else self.pair_levels)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 3: both towers' losses, each on the channels that it does not see."""
        (view,) = batch.views
        groups = self.split.split("|")
        maps = towers(model.encoder, view, model.encoder.layers[-1])
        return {
            target: self._distance(model, target, model.parts[f"predict_{target}"](seen), view)
            for target, seen in zip(reversed(groups), maps, strict=True)
        }

    def _distance(self, model: Model, target: str, scores: Tensor, view: Tensor) -> Tensor:
        """Eq. 2, or eq. 1: of scores (N, classes, h, w) to the target's channels in the middle of the cells."""
        pixels = at_centers(view, *scores.shape[2:])
        if self.loss == "regression":
            return (rows(scores) - rows(Channels(target).to(view.device)(pixels))).square().sum(1).mean() / 2
        names = "ab" if sorted(target) == ["a", "b"] else target
        index, code = model.parts[f"classes_{target}"](rows(planes(pixels, names)))
        found: Tensor = F.log_softmax(rows(scores), 1).gather(1, index)
        distance: Tensor = -(code * found).sum(1).mean()
        return distance
