"""What a run shows of its training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.utils import make_grid

from bench.augment import Chain, unit
from bench.contracts import DataShape, Images, Model
from methods.parts.views import center


def examples(images: Images, shape: DataShape, crop: int, count: int = 8) -> Tensor:
    """The center views of the first images, float (N, 3, h, w) in [0, 1]."""
    batch = torch.arange(min(count, len(images)))
    ((view,),) = images.views([batch], (Chain(center(shape, crop)),), 0, 0)
    return unit(view)


def gallery(strips: Sequence[Tensor]) -> Tensor:
    """Strips of as many images (N, 3, h, w) each, one below the other: (3, H, W)."""
    images = torch.cat([strip.float().cpu() for strip in strips])
    grid: Tensor = make_grid(images.clamp(0, 1), nrow=len(strips[0]), pad_value=1.0)
    return grid


@contextmanager
def judged(model: Model) -> Iterator[Model]:
    """The model in evaluation mode, without gradients; its parts' own modes come back."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for part, mode in modes:
            part.training = mode
