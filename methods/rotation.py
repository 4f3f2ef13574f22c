"""RotNet: by how much was the image turned?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import unit
from bench.contracts import Backbone, BenchError, DataShape, Model
from methods._loop import Batch, Loop, State
from methods.parts import heads
from methods.parts.views import channels_last

_EIGHTHS = 8  # rotations by 45 degrees: resampled, where quarter turns only move pixels


@dataclass(frozen=True)
class Rotation(Loop):
    """Classify the rotation of an image among 2, 4 or 8; the defaults are those for ImageNet.

    Paper: 30 epochs, rate / 10 at 10 and 20; release: 50 epochs, at 15, 30 and 45. CIFAR: lr .1, batch 128,
    times .2 at 30, 60 and 80 % of 200 epochs, ``pad_crop_flip``.

    :param rotations: 2 (0, 180 degrees), 4, or 8 (by 45 degrees, resampled, cropped to the square that fits
        inside the disk, so that no corner tells).
    :param copies: ``all`` rotations of every image in one batch, or ``one`` random rotation per image.
    """

    paper: ClassVar[str] = (
        "Gidaris, Singh & Komodakis, Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018"
    )
    distributed: ClassVar[bool] = True

    lr: float = 0.01
    nesterov: bool = True
    batch_size: int = 192
    schedule: str = "step"
    drops: tuple[float, ...] = (1 / 3, 2 / 3)
    augment: str = "resized_crop"
    rotations: int = 4
    copies: str = "all"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rotations not in {2, 4, 8}:
            raise BenchError(f"rotation.rotations must be 2, 4 or 8, not {self.rotations}")
        if self.copies not in {"all", "one"}:
            raise BenchError(f'rotation.copies must be "all" or "one", not {self.copies!r}')

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder and a linear layer over the rotations."""
        encoder = backbone.build(generator=generator)
        head = heads.linear(encoder.dim, self.rotations, generator, dropout=self.dropout)
        return Model(encoder, parts={"rotation": head})

    def passes(self, shape: DataShape) -> float:
        """One pass per copy; eight rotations keep half of the area."""
        copies = self.rotations if self.copies == "all" else 1
        return super().passes(shape) * copies * (0.5 if self.rotations == _EIGHTHS else 1.0)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 2 and 3: the cross-entropy of the rotation, mean over copies and images."""
        (view,) = batch.views
        if self.copies == "all":
            turns = torch.arange(self.rotations, device=view.device).repeat_interleave(len(view))
            turned = channels_last(torch.cat([self._turn_all(view, k) for k in range(self.rotations)]))
        else:
            turns = batch.draws().integers(self.rotations)
            turned = (
                rotate_by_45(view, turns)
                if self.rotations == _EIGHTHS
                else rotate(view, turns * (4 // self.rotations))
            )
        scores = model.parts["rotation"](model.encoder(turned)).float()
        return {"rotation": F.cross_entropy(scores, turns)}

    def _turn_all(self, view: Tensor, turn: int) -> Tensor:
        if self.rotations == _EIGHTHS:
            return rotate_by_45(view, torch.full((len(view),), turn, device=view.device))
        return torch.rot90(view, turn * (4 // self.rotations), (2, 3))


def rotate(images: Tensor, quarters: Tensor) -> Tensor:
    """Each (N, C, s, s) by its own number (N,) of quarter turns, counter-clockwise, by transpose and flip."""
    rows = torch.argsort(quarters, stable=True)
    sizes = torch.bincount(quarters, minlength=4).tolist()
    pixels = channels_last(images).permute(0, 2, 3, 1).index_select(0, rows)
    parts = pixels.split(sizes)  # type: ignore[no-untyped-call]
    turned = torch.cat([torch.rot90(part, k, (1, 2)) for k, part in enumerate(parts)])
    return turned.index_select(0, torch.argsort(rows)).permute(0, 3, 1, 2)


def rotate_by_45(images: Tensor, eighths: Tensor) -> Tensor:
    """Each (N, C, s, s) by its number of eighth turns (N,), counter-clockwise; r is s / sqrt 2."""
    inner = int(images.shape[-1] / math.sqrt(2))
    shrink, angle = inner / images.shape[-1], eighths * (math.pi / 4)
    cos, sin, zero = torch.cos(angle) * shrink, torch.sin(angle) * shrink, torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(images), images.shape[1], inner, inner], align_corners=False)
    return F.grid_sample(unit(images), grid, align_corners=False)
