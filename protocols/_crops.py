"""Ten crops of an image, and what linear classifiers say of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torchvision.transforms.functional import ten_crop

from bench.augment import Resize
from bench.contracts import Draws, Encoder, Images, Run, Tap
from protocols._features import frozen, read
from protocols._views import SHORT_SIDE

COUNT = 10
BATCH = 64  # images, of which each goes through the encoder ten times

Linear: TypeAlias = "tuple[Tensor, Tensor]"  # weight (C, d) and bias (C,), on features as they are


@dataclass(frozen=True)
class TenCrop:
    """One of ten windows of ``side`` of the image whose shorter side is ``side`` * 256 / 224.

    The corners, the middle, and their mirror images (Krizhevsky et al., NIPS 2012), in torchvision's order.
    """

    side: int
    place: int

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        crops: tuple[Tensor, ...] = ten_crop(Resize(round(self.side * SHORT_SIDE))(images, draws), self.side)
        return crops[self.place]


def ten_crop_scores(
    encoder: Encoder, images: Images, heads: Mapping[Tap, Linear], run: Run, *, softmax: bool
) -> dict[Tap, Tensor]:
    """Class scores (N, C) of each tap's classifier, the mean over ten crops, float32 on the CPU.

    :param heads: all taps read images of one side. ``softmax``: probabilities are averaged, else the scores.
    """
    side = next(iter(heads)).side
    placed = {tap: (weight.to(run.device), bias.to(run.device)) for tap, (weight, bias) in heads.items()}
    out = {tap: torch.zeros(len(images), len(bias)) for tap, (_, bias) in heads.items()}
    batches = torch.arange(len(images)).split(BATCH)  # type: ignore[no-untyped-call]  # torch's own
    with frozen(encoder):
        views = images.views(batches, [TenCrop(side, place) for place in range(COUNT)], 0, 0)
        for rows, crops in zip(batches, views, strict=True):
            for crop in crops:
                for tap, found in read(encoder, crop, list(heads), run).items():
                    weight, bias = placed[tap]
                    scores = torch.addmm(bias, found, weight.t())
                    out[tap][rows] += (scores.softmax(1) if softmax else scores).cpu() / COUNT
    return out
