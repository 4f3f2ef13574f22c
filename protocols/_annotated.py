"""Pictures of what was found in images: boxes with their class and score, masks in their classes' colors."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping
from typing import TypeAlias

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bench.augment import unit

Shade: TypeAlias = "tuple[int, int, int]"  # red, green, blue

SIDE = 256  # pixels that the shorter side of a picture has at least
GAP = 4  # white, between pictures side by side
IGNORED = 255
TURN = (math.sqrt(5) - 1) / 2  # of the color wheel, from a class to the next: no few classes come close
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)


def color(label: int) -> Shade:
    """Of class 0, 1, ...: far from its neighbors in hue, and vivid, pale and dark by turns."""
    saturation, value = ((0.9, 1.0), (0.45, 1.0), (0.9, 0.7))[label % 3]
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(label * TURN % 1, saturation, value))
    return red, green, blue


def enlarged(image: Tensor) -> Tensor:
    """An image or mask (..., H, W) at a whole multiple of its size, so that text on it can be read."""
    times = math.ceil(SIDE / min(image.shape[-2:]))
    return image.repeat_interleave(times, -1).repeat_interleave(times, -2)


def with_boxes(image: Tensor, truth: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Tensor:
    """The image (3, H, W) with the number of each box's class, in [0, 1].

    :param truth: ``boxes`` (k, 4) and ``labels`` (k,), drawn in white, the number at the lower left.
    :param found: the same with ``scores`` (k,), drawn in the class's color, number and score at the upper left.
    """
    large = enlarged((unit(image).cpu() * 255).round().to(torch.uint8))
    times = large.shape[-1] / image.shape[-1]
    canvas = Image.fromarray(large.permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(canvas)
    order = found["scores"].argsort()  # the surest on top
    labels, scores = found["labels"][order].tolist(), found["scores"][order].tolist()
    known, guessed = (truth["boxes"] * times).tolist(), (found["boxes"][order] * times).tolist()
    for box in known:
        _frame(draw, box, WHITE)
    for box, label in zip(guessed, labels, strict=True):
        _frame(draw, box, color(label))
    for (left, _, _, bottom), label in zip(known, truth["labels"].tolist(), strict=True):
        _tag(draw, left, bottom, WHITE, str(label), below=True)
    for (left, top, _, _), label, score in zip(guessed, labels, scores, strict=True):
        _tag(draw, left, top, color(label), f"{label}: {score:.2f}")
    pixels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
    return unit(pixels.view(canvas.height, canvas.width, 3).permute(2, 0, 1))


def _frame(draw: ImageDraw.ImageDraw, box: list[float], shade: Shade) -> None:
    left, top, right, bottom = map(round, box)
    draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=shade, width=2)


def _tag(
    draw: ImageDraw.ImageDraw, left: float, edge: float, shade: Shade, text: str, *, below: bool = False
) -> None:
    """Text on a ground of the box's color at its upper or lower edge, moved into the picture."""
    x0, y0, x1, y1 = draw.textbbox((0, 0), text)
    width, height = math.ceil(x1 - x0) + 4, math.ceil(y1 - y0) + 4
    across, down = draw.im.size
    x = min(max(round(left), 0), max(across - width, 0))
    y = min(max(round(edge) - height * below, 0), max(down - height, 0))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=shade)
    ink = BLACK if 0.3 * shade[0] + 0.59 * shade[1] + 0.11 * shade[2] > 110 else WHITE
    draw.text((x + 2 - x0, y + 2 - y0), text, fill=ink)


def with_masks(image: Tensor, *masks: Tensor) -> Tensor:
    """The image (3, H, W) and, side by side with it, each mask (H, W) over its gray version, in [0, 1].

    A mask holds class + 1; what is background stays gray, what is ignored is white.
    """
    image = unit(image).cpu()
    tiles = [image, *(_painted(image, mask.long()) for mask in masks)]
    tiles = [enlarged(tile) for tile in tiles]
    gap = torch.ones(3, tiles[0].shape[1], GAP)
    return torch.cat([part for tile in tiles for part in (gap, tile)][1:], 2)


def _painted(image: Tensor, mask: Tensor) -> Tensor:
    gray = 0.5 * image.mean(0, keepdim=True).expand(3, -1, -1)
    palette = torch.tensor([BLACK, *(color(c) for c in range(IGNORED - 1)), WHITE]) / 255
    shares = torch.where(mask == 0, 0.0, torch.where(mask == IGNORED, 1.0, 0.75))
    return torch.lerp(gray, palette[mask].permute(2, 0, 1), shares)
