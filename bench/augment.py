"""Batched augmentation on the device: every image of a batch has a draw of its own.

Each piece is a frozen dataclass that is called with images (uint8 in 0..255 or float in [0, 1],
(N, 3, H, W)) and their draws. :class:`Chain` composes them; the result is a ``Frame``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.draws import Draws
from bench.records import BenchError

__all__ = [
    "CenterCrop",
    "Chain",
    "ColorJitter",
    "Flip",
    "Gray",
    "PadCrop",
    "RandomCrop",
    "Resize",
    "ResizedCrop",
]


def unit(images: Tensor) -> Tensor:
    """uint8 in 0..255 to float in [0, 1]; floats pass."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class Chain:
    """One piece after the other."""

    pieces: tuple[object, ...]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        for piece in self.pieces:
            images = piece(images, draws)  # type: ignore[operator]  # a Frame
        return images


def _gather(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Windows (side x side) at (top, left) of each image, without resampling."""
    n, c, h, w = images.shape
    planes = torch.arange(n * c, device=images.device).view(n, c, 1) * (h * w)
    rows = (top[:, None] + torch.arange(side, device=images.device)) * w + left[:, None]
    flat = images.reshape(-1)
    # All runs of ``side`` pixels, wherever they begin: whole rows are copied, five times faster than pixels are.
    runs = flat.as_strided((flat.numel() - side + 1, side), (1, 1))
    return runs.index_select(0, (planes + rows[:, None, :]).view(-1)).view(n, c, side, side)


@dataclass(frozen=True)
class RandomCrop:
    """A window of ``side`` anywhere in the image; with ``pad``, of the image padded by reflection or zeros."""

    side: int
    pad: int = 0
    mode: str = "reflect"  # reflect, zeros

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if self.pad:
            kind = "reflect" if self.mode == "reflect" else "constant"
            pads = (self.pad,) * 4
            images = F.pad(images.float(), pads, kind).to(images.dtype)
        height, width = images.shape[-2:]
        if height < self.side or width < self.side:
            images = _resize(images, max(self.side / height, self.side / width))
            height, width = images.shape[-2:]
        top, left = draws.integers(height - self.side + 1), draws.integers(width - self.side + 1)
        return _gather(images, top, left, self.side)


def _resize(images: Tensor, scale: float) -> Tensor:
    size = [math.ceil(s * scale - 1e-6) for s in images.shape[-2:]]
    return F.interpolate(unit(images), size, mode="bilinear", antialias=True)


@dataclass(frozen=True)
class PadCrop:
    """CIFAR's crop: pad by ``pad`` pixels and take a window of the old size (MixMatch pads 4 by reflection)."""

    pad: int = 4
    mode: str = "reflect"

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return RandomCrop(images.shape[-1], self.pad, self.mode)(images, draws)


@dataclass(frozen=True)
class Resize:
    """The shorter side to ``side`` (``exact``: both sides, aspect ignored), bilinear with antialiasing."""

    side: int
    exact: bool = False

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[-2:]
        if self.exact:
            size = [self.side, self.side]
        else:
            short = min(height, width)
            size = [round(height * self.side / short), round(width * self.side / short)]
        if size == [height, width]:
            return images
        return F.interpolate(unit(images), size, mode="bilinear", antialias=True)


@dataclass(frozen=True)
class CenterCrop:
    """The window of ``side`` in the middle."""

    side: int

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if min(images.shape[-2:]) < self.side:
            raise BenchError(
                f"a crop of {self.side} pixels does not fit into an image of {images.shape[-1]} x {images.shape[-2]}:"
                " write a smaller crop"
            )
        top, left = ((s - self.side) // 2 for s in images.shape[-2:])
        return images[..., top : top + self.side, left : left + self.side]


@dataclass(frozen=True)
class ResizedCrop:
    """Inception's crop: an area fraction in ``scale``, an aspect in ``ratio``, resampled to ``side`` bilinearly.

    Where a window may be larger than ``side``, it has whole pixels, as torchvision's, and is antialiased as the test
    view is.
    """

    side: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[-2:]
        area = draws.uniform(low=self.scale[0], high=self.scale[1]) * height * width
        aspect = torch.exp(draws.uniform(low=math.log(self.ratio[0]), high=math.log(self.ratio[1])))
        w = torch.sqrt(area * aspect).clamp(max=width)
        h = torch.sqrt(area / aspect).clamp(max=height)
        x, y = draws.uniform(), draws.uniform()
        if max(height, width) <= self.side:
            return self._enlarged(images, x * (width - w) + w / 2, y * (height - h) + h / 2, w, h)
        w, h = w.round().clamp(min=1), h.round().clamp(min=1)
        left, top = (x * (width - w)).round(), (y * (height - h)).round()
        if len(images) == 1 and images.device.type == "cpu":
            rows, columns = (slice(int(start), int(start + size)) for start, size in ((top, h), (left, w)))
            window = unit(images[..., rows, columns])
            return F.interpolate(window, (self.side, self.side), mode="bilinear", antialias=True)
        n, c = images.shape[:2]
        across, down = _triangles(left, w, width, self.side), _triangles(top, h, height, self.side)
        flat = torch.bmm(unit(images).reshape(n, c * height, width), across.transpose(1, 2))
        return torch.matmul(down[:, None], flat.view(n, c, height, self.side))

    def _enlarged(self, images: Tensor, x: Tensor, y: Tensor, w: Tensor, h: Tensor) -> Tensor:
        """Windows of any size around (x, y), none of which has more pixels than the view."""
        n, _, height, width = images.shape
        theta = torch.zeros(n, 2, 3, device=images.device)
        theta[:, 0, 0], theta[:, 0, 2] = w / width, 2 * x / width - 1
        theta[:, 1, 1], theta[:, 1, 2] = h / height, 2 * y / height - 1
        grid = F.affine_grid(theta, [n, 3, self.side, self.side], align_corners=False)
        return F.grid_sample(unit(images), grid, padding_mode="reflection", align_corners=False)


def _triangles(start: Tensor, size: Tensor, length: int, side: int) -> Tensor:
    """What each of ``side`` pixels takes of a line's: (N, side, length), the antialiased filter of F.interpolate."""
    step = (size / side)[:, None, None]
    begin = start[:, None, None]
    center = begin + step * (torch.arange(side, device=start.device)[:, None] + 0.5)
    place = torch.arange(length, device=start.device) + 0.5
    weights = (1 - (place - center).abs() / step.clamp(min=1)).clamp(min=0)
    inside = (place > begin) & (place < begin + size[:, None, None])
    weights = weights * inside
    return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Flip:
    """Mirror left-right with probability one half."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        count = torch.arange(len(images), device=images.device)
        both = torch.cat([images, images.flip(-1)])  # picking rows copies bytes ten times faster than where
        return both.index_select(0, count + len(images) * draws.coin(0.5).to(images.device))


_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Gray:
    """Drop the color of an image with ``probability``: all channels become its luma (ITU-R 601)."""

    probability: float = 0.2

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        images = unit(images)
        gray = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(images)
        return torch.where(draws.coin(self.probability).view(-1, 1, 1, 1), gray, images)


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, as one 3x3 matrix and offset per image.

    Strengths as torchvision's: factors in 1 +- strength; hue in turns (a rotation about the gray axis
    of the YIQ plane). The four are applied in this order.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        images = unit(images)
        n = len(images)
        luma = images.new_tensor(_LUMA)
        eye = torch.eye(3, device=images.device)
        to_gray = luma.expand(3, 3)

        def factor(strength: float) -> Tensor:
            return draws.uniform(low=1 - strength, high=1 + strength).view(n, 1, 1)

        bright, contrast, saturation = factor(self.brightness), factor(self.contrast), factor(self.saturation)
        matrix = bright * eye
        gray = torch.einsum("nchw,c->n", images, luma) / (images.shape[-1] * images.shape[-2])
        offset = ((1 - contrast) * bright * gray.view(n, 1, 1)).expand(n, 3, 1)
        matrix = contrast * matrix
        tint = saturation * eye + (1 - saturation) * to_gray
        tint = self._hue(draws.uniform(low=-self.hue, high=self.hue)) @ tint
        matrix, offset = tint @ matrix, tint @ offset
        out = torch.baddbmm(offset, matrix, images.reshape(n, 3, -1))
        return out.view_as(images).clamp_(0, 1)

    @staticmethod
    def _hue(turns: Tensor) -> Tensor:
        yiq = torch.tensor(
            [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], device=turns.device
        )
        angle = 2 * math.pi * turns
        cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
        rows = [torch.ones_like(angle), zero, zero, zero, cos, -sin, zero, sin, cos]
        turned: Tensor = torch.linalg.inv(yiq) @ torch.stack(rows, -1).view(-1, 3, 3) @ yiq
        return turned
