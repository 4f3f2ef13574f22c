"""All images of a training set, once, in order: for estimates and feature extraction."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.augment import Chain
from bench.contracts import DataShape, Images
from methods.parts.views import center, channels_last


def all_images(images: Images, shape: DataShape, size: int, crop: int = 0) -> Iterator[Tensor]:
    """Batches of at most ``size`` center views (N, 3, h, w), channels last, in the order of the indices."""
    batches = list(torch.arange(len(images)).split(size))  # type: ignore[no-untyped-call]
    for (view,) in images.views(batches, (Chain(center(shape, crop)),), 0, 0):
        yield channels_last(view)
