"""Color as hue and chroma beside a gray image, and their histograms around places.

Larsson, Maire & Shakhnarovich, Learning Representations for Automatic Colorization, ECCV 2016.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.augment import unit


class Intensity(nn.Module):
    """An encoder's input: the mean of R, G and B, centered: uint8 or float [0, 1] (N, 3, H, W) to (N, 1, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4488))  # ImageNet's, as released
        self.register_buffer("std", torch.tensor(0.25))

    def forward(self, images: Tensor) -> Tensor:
        return (unit(images).float().mean(1, keepdim=True) - self.mean) / self.std


def hue_chroma(images: Tensor) -> tuple[Tensor, Tensor]:
    """Of (N, 3, ...), bytes or in [0, 1]: hue in [0, 1), 0 where there is no color, and chroma, max - min, (N, ...)."""
    planes = images.movedim(1, 0).contiguous()
    high = torch.maximum(torch.maximum(planes[0], planes[1]), planes[2])
    spread = (high - torch.minimum(torch.minimum(planes[0], planes[1]), planes[2])).float()
    is_red, is_green = high == planes[0], high == planes[1]
    red, green, blue = planes.float()
    across = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    start = torch.where(is_red, 0.0, torch.where(is_green, 1 / 3, 2 / 3))
    hue = across / (6 * spread).clamp_min(1e-12) + start
    return hue + (hue < 0), spread / 255 if images.dtype == torch.uint8 else spread


def color(hue: Tensor, chroma: Tensor, gray: Tensor) -> Tensor:
    """RGB (N, 3, H, W) of that hue and chroma whose mean is ``gray``, all (N, H, W); clamped to [0, 1]."""
    turned = torch.stack([(hue * 6 + shift) % 6 for shift in (0, 4, 2)], 1)
    pure = chroma.unsqueeze(1) * ((turned - 3).abs() - 1).clamp(0, 1)
    return (pure + (gray.unsqueeze(1) - pure.mean(1, keepdim=True))).clamp(0, 1)


def around(images: Tensor, places: Tensor, window: int) -> Tensor:
    """Squares of ``window`` pixels around places, (N P, 3, window^2), of images (N, 3, H, W).

    :param places: int64 (N, P, 2), y and x; a square that would reach beyond the image is shifted inside.
    """
    count, channels, height, width = images.shape
    reach = torch.arange(window, device=images.device)
    y, x = ((places[..., k] - window // 2).clamp(0, side - window) for k, side in enumerate((height, width)))
    first = y * width + x + torch.arange(count, device=images.device)[:, None] * (height * width)
    rows = first.flatten()[:, None] + reach * width
    flat = images.movedim(1, 0).reshape(-1)  # a plane after the other
    rows = torch.arange(channels, device=images.device).view(-1, 1, 1) * (count * height * width) + rows
    runs = flat.as_strided((len(flat) - window + 1, window), (1, 1))  # whole rows are copied, not pixels
    found = runs.index_select(0, rows.flatten()).view(channels, -1, window**2)
    return found.movedim(0, 1)


def histograms(values: Tensor, bins: int) -> Tensor:
    """Shares (M, bins) of values in [0, 1], (M, K)."""
    binned = (values * bins).long().clamp_(max=bins - 1)
    binned += torch.arange(len(values), device=values.device)[:, None] * bins
    return torch.bincount(binned.flatten(), minlength=len(values) * bins).view(-1, bins) / values.shape[1]


def expected(hue: Tensor, chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Of histograms (M, bins): the mean direction of hue, and the median of chroma (M,) each."""
    middles = (torch.arange(hue.shape[1], device=hue.device) + 0.5) / hue.shape[1]
    angles = 2 * math.pi * middles
    direction = torch.atan2((hue * angles.sin()).sum(1), (hue * angles.cos()).sum(1))
    median = (chroma.cumsum(1) < 0.5).sum(1).clamp(max=chroma.shape[1] - 1)
    return direction / (2 * math.pi) % 1, (median + 0.5) / chroma.shape[1]
