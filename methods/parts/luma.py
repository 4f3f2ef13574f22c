"""The input of encoders that see no color."""

from __future__ import annotations

from torch import Tensor, nn

from bench.augment import unit


def luma(images: Tensor) -> Tensor:
    """RGB (N, 3, H, W), uint8 or in [0, 1], to luma in [0, 1], (N, 1, H, W) (ITU-R 601)."""
    red, green, blue = unit(images).split(1, 1)  # type: ignore[no-untyped-call]
    found: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
    return found


class Luma(nn.Module):
    """RGB to luma minus 0.5 over 0.25, (N, 1, H, W); luma (N, 1, H, W) itself is only scaled."""

    channels = 1

    def forward(self, images: Tensor) -> Tensor:
        return ((luma(images) if images.shape[1] == 3 else images) - 0.5) / 0.25
