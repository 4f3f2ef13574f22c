"""Counting: what is counted in the whole image is the sum of what is counted in its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.augment import unit
from bench.contracts import Backbone, BenchError, DataShape, Draws, Frame, Model, Needs
from bench.records import later
from methods._loop import Batch, Loop, State
from methods.parts import heads, mlp, patch_looks, resampling, tiles, views

_ROWS = 2  # 2 x 2 tiles, and the image at half its size


@dataclass(frozen=True)
class Counting(Loop):
    """phi(D x) equals the sum of phi(T_j x), and differs from it for another image y.

    D halves the image, T_1 ... T_4 are its quarters. The paper's rate falls by a tenth every 10,000 steps, here as
    of 200,000 of them. It crops 224 pixels in one place and reads tiles of 114 in another.

    :param crop: side of the image in pixels, even.
    :param counts: length of phi, which ends in a ReLU; ``hidden``: widths of the layers below.
    :param fillers: deviations of the counting layers' first weights; (): by their inputs (He), with which the counts of a
        large net begin at a thousand times the margin. Caffe's reference AlexNet has 0.005, 0.005, 0.01 (fc6, fc7, fc8).
    :param margin: M, by how much the counts of two images differ at least (squared distance).
    :param filters: of D, one drawn for each image; a single one leaves a mark that tells D x from T_j x.
    :param gray: part of the images without color: a lens bends colors apart at the border of T_j x alone.
    """

    paper: ClassVar[str] = (
        "Noroozi, Pirsiavash & Favaro, Representation Learning by Learning to Count, ICCV 2017"
    )
    from_description: ClassVar[str] = (
        "no code of its authors was found; batch size and number of steps are ours"
    )
    needs: ClassVar[Needs] = Needs(min_side=32)
    distributed: ClassVar[bool] = True

    lr: float = 1e-4
    batch_size: int = 256
    schedule: str = "step"
    drops: tuple[float, ...] = tuple(step / 20 for step in range(1, 20))
    gamma: float = 0.9
    augment: str = "window"
    scale: tuple[float, ...] = ()  # type: ignore[assignment]  # the loop's is never empty
    crop: int = 228
    counts: int = 1000
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.0
    margin: float = 10.0
    filters: tuple[str, ...] = resampling.FILTERS
    gray: float = 0.67
    fillers: tuple[float, ...] = later(())

    def __post_init__(self) -> None:
        if self.crop % _ROWS or not self.crop:
            raise BenchError(f"counting.crop must be an even number of pixels, not {self.crop}")
        if not self.filters:
            raise BenchError(f"counting.filters must name some of {', '.join(resampling.FILTERS)}")
        if self.fillers and len(self.fillers) != len(self.hidden) + 1:
            raise BenchError(
                f"counting.fillers must be {len(self.hidden) + 1} numbers, one a counting layer, or [], not"
                f" {list(self.fillers)}"
            )
        if self.batch_size < 2:
            raise BenchError("counting.batch_size must be 2 or more: an image is told from another one")

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder and the layers that count."""
        encoder = backbone.build(generator=generator)
        widths = (encoder.dim, *self.hidden)
        counter = mlp.relu_layers(widths, generator, dropout=self.dropout)
        counter.extend(mlp.relu_layers((widths[-1], self.counts), generator))
        if self.fillers:
            layers = [layer for layer in counter if isinstance(layer, nn.Linear)]
            for layer, std in zip(layers, self.fillers, strict=True):
                heads.reset(layer, generator, std)
        return Model(encoder, parts={"counter": counter})

    def frames(self, shape: DataShape) -> Sequence[Frame]:
        """The image x."""
        return (tiles.frame(self, shape, self.crop),)

    def passes(self, shape: DataShape) -> float:
        """Five quarters of the image: the four tiles, and it at half its size."""
        return 5 * views.area(shape, self.crop) / 4

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 4, its two terms apart; y is the image that follows in the batch."""
        halved, quarters = self.parts(batch.views[0], batch.draws())
        pieces = torch.cat([views.channels_last(halved), quarters.flatten(0, 1)])
        counted = model.parts["counter"](model.encoder(pieces)).float()
        whole, parts = counted[: len(batch)], counted[len(batch) :].view(len(batch), _ROWS**2, -1)
        same, other = counting_terms(whole, parts.sum(1), self.margin)
        return {"same": same, "other": other}

    def parts(self, view: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """D x (N, 3, s, s) and T_j x (N, 4, 3, s, s) of images (N, 3, 2 s, 2 s)."""
        images = patch_looks.gray(unit(view), draws.coin(self.gray))
        side = self.crop // _ROWS
        bank = torch.stack([resampling.matrix(self.crop, side, name) for name in self.filters])
        drawn = draws.integers(len(self.filters))
        halved = resampling.resample(images, bank.to(images.device)[drawn])
        apart = images.view(len(images), 3, _ROWS, side, _ROWS, side).permute(0, 2, 4, 3, 5, 1)
        # One copy, channels last, as the halves go.
        quarters = apart.reshape(len(images), _ROWS**2, side, side, 3)
        return halved, quarters.permute(0, 1, 4, 2, 3)


def counting_terms(whole: Tensor, summed: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Eq. 4 of counts (N, d): |phi(D x) - sum|^2 and max(0, M - |phi(D y) - sum|^2), means over the batch."""
    same = (whole - summed).square().sum(1)
    other = (whole.roll(-1, 0) - summed).square().sum(1)
    return same.mean(), (margin - other).clamp_min(0).mean()
