"""What is done to small pieces of images so that nothing but their content tells where they come from.

All functions take and give float patches (M, 3, s, s) in the range of pixels, about [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts import BenchError

NORMALIZE = ("none", "mean", "mean_std")
_MIDDLE, _CONTRAST = 0.5, 0.25  # of pixels: an encoder's own normalization makes of them about 0 and 1
_FLAT = 1 / 255  # a deviation below one step of 256 is no contrast


def standardize(patches: Tensor, how: str) -> Tensor:
    """Every channel of every patch to one mean (``mean``), and one deviation too (``mean_std``).

    :raises BenchError: another word than ``none``, ``mean`` or ``mean_std``.
    """
    if how not in NORMALIZE:
        raise BenchError(f"normalize {how!r} is not known: write {', '.join(NORMALIZE)}")
    if how == "none":
        return patches
    centered = patches - patches.mean((2, 3), keepdim=True)
    if how == "mean":
        return centered.add_(_MIDDLE)
    length = torch.linalg.vector_norm(centered, dim=(2, 3), keepdim=True)
    deviation = length / patches[0, 0].numel() ** 0.5
    return torch.addcmul(patches.new_tensor(_MIDDLE), centered, _CONTRAST / deviation.clamp_min(_FLAT))


def gray(patches: Tensor, which: Tensor) -> Tensor:
    """The patches ``which`` (bool (M,)) lose their color: all channels become their mean."""
    mean = patches.mean(1, keepdim=True)
    return torch.lerp(patches, mean.expand_as(patches), which.to(patches.dtype).view(-1, 1, 1, 1))


def drop_colors(patches: Tensor, kept: Tensor, noise: Tensor, part: float) -> Tensor:
    """Of each patch the channel ``kept`` (int64 (M,)) stays; ``noise`` of a ``part`` of its deviation replaces the others.

    Doersch, Gupta & Efros, ICCV 2015, section 3.1. The noise lies around the channel's own mean.

    :param noise: (M, 3, s, s), of deviation 1.
    """
    each = torch.arange(len(patches), device=patches.device)
    one = patches[each, kept]
    mean = one.mean((1, 2), keepdim=True)
    length = torch.linalg.vector_norm(one - mean, dim=(1, 2), keepdim=True)
    dropped = torch.addcmul(mean[:, None], noise, length[:, None], value=part / one[0].numel() ** 0.5)
    dropped[each, kept] = one
    return dropped


def project_colors(patches: Tensor, which: Tensor | None = None) -> Tensor:
    """Pixels without their component on the green-magenta axis a = (-1, 2, -1): I - a a^T / a^T a.

    Doersch, Gupta & Efros, ICCV 2015, section 3.1; Noroozi & Favaro's release has the same matrix.

    :param which: bool (M,), the patches that lose it; None: all.
    """
    axis = patches.new_tensor([-1.0, 2.0, -1.0]).view(1, 3, 1, 1)
    along = (patches * axis).sum(1, keepdim=True) / 6
    if which is not None:
        along = along * which.view(-1, 1, 1, 1)
    return patches - along * axis
