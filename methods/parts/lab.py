"""CIE Lab of sRGB images (IEC 61966-2-1, D65), batched on the device, and encoder inputs made of its channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.contracts import BenchError

_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
# White is divided out here, so that gray has exactly a = b = 0.
_WEIGHTS = tuple(tuple(w / sum(row) for w in row) for row in _XYZ)
_LINEAR = 0.008856  # CIE's: below it the cube root is a line
_SCALES = {"L": (50.0, 50.0), "a": (0.0, 110.0), "b": (0.0, 110.0)} | dict.fromkeys("RGB", (0.5, 0.5))


def to_lab(images: Tensor, channels: str = "Lab") -> Tensor:
    """From sRGB (N, 3, H, W), uint8 or float in [0, 1], to L in 0..100 and a, b in about -110..110.

    :param channels: which of them, in which order: (N, len(channels), H, W), float32.
    """
    red, green, blue = (_light(plane) for plane in images.unbind(1))

    def root(row: int) -> Tensor:
        r, g, b = _WEIGHTS[row]
        t = (red * r).add_(green, alpha=g).add_(blue, alpha=b)
        return torch.where(t > _LINEAR, t.clamp_min(_LINEAR) ** (1 / 3), 7.787 * t + 16 / 116)

    y = root(1)
    make = {"L": lambda: 116 * y - 16, "a": lambda: 500 * (root(0) - y), "b": lambda: 200 * (y - root(2))}
    return torch.stack([make[name]() for name in channels], 1)


def to_rgb(lab: Tensor) -> Tensor:
    """The inverse: (N, 3, H, W) of L, a, b to sRGB in [0, 1]; what no screen can show is clamped."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    roots = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(roots**3 > _LINEAR, roots**3, (roots - 16 / 116) / 7.787)
    inverse = torch.linalg.inv(torch.tensor(_WEIGHTS, dtype=torch.float64)).to(lab)
    light = (xyz.unsqueeze(1) * inverse[:, :, None, None]).sum(2).clamp(0, 1)
    return torch.where(
        light > 0.0031308, 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055, 12.92 * light
    )


def planes(images: Tensor, names: str) -> Tensor:
    """The named channels (N, len(names), H, W): of "Lab" in their own units, or of "RGB" in [0, 1]."""
    if not set(names) <= set("RGB"):
        return to_lab(images, names)
    rgb = images[:, ["RGB".index(name) for name in names]]
    return rgb.float() / 255 if rgb.dtype == torch.uint8 else rgb


class Channels(nn.Module):
    """An encoder's input of some channels: uint8 or float [0, 1] (N, 3, H, W) to (N, len(names), H, W).

    (L - 50) / 50, a / 110, b / 110, or RGB in [-1, 1]. The papers' Caffe networks take L - 50, a and b in their
    own units; with He et al.'s weights unit scale trains better.

    :param names: of one of the spaces, "L", "ab", "Lab", "R", "GB"...
    """

    mean: Tensor
    std: Tensor

    def __init__(self, names: str) -> None:
        super().__init__()
        if not names or not (set(names) <= set("Lab") or set(names) <= set("RGB")):
            raise BenchError(f'channels must be some of "Lab" or some of "RGB", not {names!r}')
        self.names = names
        mean, std = zip(*(_SCALES[name] for name in names), strict=True)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            scaled: Tensor = (planes(images, self.names) - self.mean) / self.std
        return scaled.contiguous(memory_format=torch.channels_last)


def _light(plane: Tensor) -> Tensor:
    """Linear light: the transfer curve of sRGB undone, of bytes by a table."""
    if plane.dtype != torch.uint8:
        plane = plane.float()
        return torch.where(
            plane > 0.04045, ((plane.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, plane / 12.92
        )
    table = _light(torch.arange(256, device=plane.device) / 255)
    return table.index_select(0, plane.reshape(-1).int()).view(plane.shape)
