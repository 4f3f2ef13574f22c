"""Colorful image colorization: which color has each pixel of a gray image?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts import Backbone, BenchError, DataShape, Model, Needs, Run, TrainingSet
from methods._loop import Batch, Loop, State
from methods.parts.ab_bins import AbBins, rebalanced
from methods.parts.decoders import at_centers, pixel_classifier, rows
from methods.parts.gallery import examples, gallery, judged
from methods.parts.lab import Channels, to_lab, to_rgb
from methods.parts.pictures import all_images

_PRIOR_BATCH = 256
_GRAY = 5.0  # |a| and |b| of what counts as gray


@dataclass(frozen=True)
class Colorization(Loop):
    """Classify the ab bin of each pixel from L; defaults are those of the released AlexNet for features.

    The paper weights a pixel's loss, the release its gradient, which is the same descent. The paper encodes by the 5
    nearest bins, the release by 10. What lies above the last tap is not trained: use a backbone without a top.

    :param stride: pixels between predictions; finer than the last tap's by a pixel shuffle.
    :param grid: step of the ab grid; ``neighbors``, ``sigma``: of the soft encoding.
    :param uniform: lambda of the rebalancing; 1: all colors weigh the same. The prior is that of the training set.
    :param colorless: what is left out of the loss: ``images`` without any color (|a|, |b| at most 5; the release),
        ``pixels`` without color, or ``none`` (the paper speaks of none).
    :param temperature: of the annealed mean, in the picture of colorized examples at the end.
    """

    paper: ClassVar[str] = "Zhang, Isola & Efros, Colorful Image Colorization, ECCV 2016"
    needs: ClassVar[Needs] = Needs(color=True)
    distributed: ClassVar[bool] = True

    optimizer: str = "adam"
    lr: float = 3e-5
    weight_decay: float = 1e-3
    batch_size: int = 80
    schedule: str = "step"
    drops: tuple[float, ...] = (0.53, 0.67, 0.89)
    gamma: float = 0.32
    stride: int = 8
    grid: float = 10.0
    neighbors: int = 5
    sigma: float = 5.0
    uniform: float = 0.5
    colorless: str = "images"
    temperature: float = 0.38

    def __post_init__(self) -> None:
        if self.colorless not in {"images", "pixels", "none"}:
            raise BenchError(f"colorization.colorless must be images, pixels or none, not {self.colorless!r}")

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """An encoder of L, and a classifier of the pixels of its last tap."""
        encoder = backbone.build(generator=generator, in_channels=1, input=Channels("L"))
        last, bins = encoder.layers[-1], AbBins(self.grid, self.neighbors, self.sigma)
        factor = max(1, encoder.strides[last] // self.stride)
        decoder = pixel_classifier(encoder.channels[last], len(bins), factor, generator)
        return Model(encoder, parts={"decoder": decoder, "bins": bins})

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """The weights of the bins (Q,): set before the first epoch."""
        return {"weights": torch.zeros(len(_bins(model)), device=run.device)}

    def begin_epoch(self, epoch: int, model: Model, state: State, data: TrainingSet, run: Run) -> None:
        """Before the first: the prior of the training set's colors, and from it the weights (eq. 4)."""
        if epoch:
            return
        bins, counts = _bins(model), torch.zeros_like(state["weights"])
        for images in all_images(data.images, data.shape, _PRIOR_BATCH, self.crop):
            ab = _ab(images, [side // self.stride for side in images.shape[2:]])
            counts += torch.bincount(bins(rows(ab))[0][:, 0], minlength=len(bins))
        state["weights"].copy_(rebalanced(bins.prior(counts), self.uniform))

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 2: the cross-entropy with the soft code of each pixel's color, times the weight of its nearest bin."""
        (view,) = batch.views
        scores = _scores(model, view)
        ab = _ab(view, scores.shape[2:])
        nearest, code = _bins(model)(rows(ab))
        found = F.log_softmax(rows(scores), 1).gather(1, nearest)
        weights = state["weights"].index_select(0, nearest[:, 0]) * self._counted(ab)
        return {"colorization": -(weights * (code * found).sum(1)).mean()}

    def _counted(self, ab: Tensor) -> Tensor:
        """1 for the pixels (N h w,) that the loss counts, else 0."""
        colored = (ab.abs() > _GRAY).any(1)
        if self.colorless == "images":
            colored = colored.flatten(1).any(1)[:, None, None].expand_as(colored)
        elif self.colorless == "none":
            colored = torch.ones_like(colored)
        return colored.flatten().float()

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Descend; then show some images as gray, colorized and true."""
        super().train(model, data, run)
        images = examples(data.images, data.shape, self.crop)
        with judged(model):
            run.picture("colorized", gallery([*self.colorize(model, images), images]))
        return model

    def colorize(self, model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) without their colors, and in those of the annealed mean (eq. 5)."""
        ab = _bins(model).annealed_mean(_scores(model, images), self.temperature)
        light = to_lab(images, "L")
        ab = F.interpolate(ab, light.shape[2:], mode="bilinear")
        return to_rgb(torch.cat([light, torch.zeros_like(ab)], 1)), to_rgb(torch.cat([light, ab], 1))


def _bins(model: Model) -> AbBins:
    return cast("AbBins", model.parts["bins"])


def _scores(model: Model, images: Tensor) -> Tensor:
    """Scores of the bins (N, Q, h, w)."""
    last = model.encoder.layers[-1]
    scores: Tensor = model.parts["decoder"](model.encoder.activations(images, [last])[last])
    return scores


def _ab(images: Tensor, size: Sequence[int]) -> Tensor:
    """The colors (N, 2, h, w) in the middle of the cells."""
    return to_lab(at_centers(images, *size), "ab")
