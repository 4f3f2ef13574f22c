"""A regular grid of patches that overlap, and the defense against what sits at fixed places of a patch.

Van den Oord, Li & Vinyals, Representation Learning with Contrastive Predictive Coding, 2018, section 3.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bench.augment import RandomCrop
from bench.contracts import Draws


def rows(side: int, patch: int, stride: int) -> int:
    """How many patches fit below each other, every ``stride`` pixels."""
    return max(0, (side - patch) // stride + 1)


def grid(images: Tensor, patch: int, stride: int) -> Tensor:
    """(N, C, H, W) to (N, rows, columns, C, patch, patch), from the top left."""
    return images.unfold(2, patch, stride).unfold(3, patch, stride).permute(0, 2, 3, 1, 4, 5)


def loosened(patches: Tensor, inner: int, draws: Draws) -> Tensor:
    """A window of ``inner`` pixels from anywhere in each patch (n, C, s, s), in the middle of as large a black one.

    What lies on a lattice that is common to an image's patches (a sensor's or a codec's, or the pixel row at
    which neighbors meet) is moved by 0 to s - inner pixels, for each patch by its own number.
    """
    side = patches.shape[-1]
    before = (side - inner) // 2
    after = side - inner - before
    return F.pad(RandomCrop(inner)(patches, draws), (before, after, before, after))
