"""Pictures of what was found in images: boxes with their class and score, masks in their classes' colors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from bench.augment import unit

Shade: TypeAlias = "tuple[int, int, int]"  # red, green, blue
Area: TypeAlias = "tuple[int, int, int, int]"  # left, top, right, bottom
# Where text may lie: a point (x, y), and the shares of the text's width and height that come before it.
Anchor: TypeAlias = "tuple[float, float, float, float]"

SIDE = 384  # pixels that the shorter side of a picture has at least
FONT = 13  # pixels
GAP = 4  # white, between pictures side by side
SMALLEST = 0.01  # of a mask: a class with fewer pixels is not named
IGNORED = 255
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)

# Okabe & Ito's seven colors, then each as far as can be from all before it (CIE Lab) for the eye to which it is
# nearest: with all cones, or without red, green or blue ones (Machado et al., IEEE TVCG 2009).
COLORS: tuple[Shade, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (136, 0, 255),
    (119, 51, 17),
    (170, 255, 136),
    (136, 187, 102),
    (68, 51, 170),
    (187, 102, 255),
    (119, 68, 102),
    (0, 238, 170),
    (153, 17, 136),
    (221, 0, 68),
    (255, 187, 221),
    (153, 34, 221),
    (85, 119, 68),
)


def color(label: int) -> Shade:
    """Of class 0, 1, ...; after twenty they come again."""
    return COLORS[label % len(COLORS)]


def called(label: int, names: Sequence[str]) -> str:
    """The class's name, or its number where names are not known."""
    return names[label] if label < len(names) else str(label)


def enlarged(image: Tensor) -> Tensor:
    """An image or mask (..., H, W) at a whole multiple of its size, so that text on it can be read."""
    times = math.ceil(SIDE / min(image.shape[-2:]))
    return image.repeat_interleave(times, -1).repeat_interleave(times, -2)


class Canvas:
    """An image (3, H, W) in [0, 1] that is drawn on; while there is room, no text hides another."""

    def __init__(self, image: Tensor) -> None:
        pixels = (image * 255).round().to(torch.uint8)
        self.image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        self.draw, self.font = ImageDraw.Draw(self.image), ImageFont.load_default(FONT)
        self.taken: list[Area] = []

    def frame(self, box: Sequence[float], shade: Shade) -> None:
        """The border of a box (left, top, right, bottom), between dark lines that show it on any ground."""
        left, top, right, bottom = map(round, box)
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        self.draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=BLACK, width=4)
        self.draw.rectangle((left, top, right, bottom), outline=shade, width=2)

    def tag(self, text: str, shade: Shade, anchors: Sequence[Anchor]) -> None:
        """Text on a ground of its color at the first of the anchors that is free, moved into the picture."""
        width, height = math.ceil(self.font.getlength(text)) + 6, FONT + 4
        spots = [self._spot(anchor, width, height) for anchor in anchors]
        spot = next((s for s in spots if not any(_meet(s, t) for t in self.taken)), spots[0])
        self.taken.append(spot)
        left, top, right, bottom = spot
        self.draw.rectangle((left, top, right - 1, bottom - 1), fill=shade)
        ink = BLACK if 0.3 * shade[0] + 0.59 * shade[1] + 0.11 * shade[2] > 110 else WHITE
        self.draw.text(((left + right) / 2, (top + bottom) / 2), text, ink, self.font, "mm")

    def _spot(self, anchor: Anchor, width: int, height: int) -> Area:
        x, y, across, down = anchor
        left = min(max(round(x - across * width), 0), max(self.image.width - width, 0))
        top = min(max(round(y - down * height), 0), max(self.image.height - height, 0))
        return left, top, left + width, top + height

    def pixels(self) -> Tensor:
        """What was drawn, (3, H, W) in [0, 1]."""
        raw = torch.frombuffer(bytearray(self.image.tobytes()), dtype=torch.uint8)
        return unit(raw.view(self.image.height, self.image.width, 3).permute(2, 0, 1))


def _meet(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def with_boxes(
    image: Tensor, truth: Mapping[str, Tensor], found: Mapping[str, Tensor], names: Sequence[str] = ()
) -> Tensor:
    """The image (3, H, W) with the class of each box, in [0, 1].

    :param truth: ``boxes`` (k, 4) and ``labels`` (k,), drawn in white, the class below the box.
    :param found: the same with ``scores`` (k,), drawn in the class's color, class and score above the box.
    """
    large = enlarged(unit(image).cpu())
    canvas, times = Canvas(large), large.shape[-1] / image.shape[-1]
    order = found["scores"].argsort(descending=True)
    labels, scores = found["labels"][order].tolist(), found["scores"][order].tolist()
    known, guessed = (truth["boxes"] * times).tolist(), (found["boxes"][order] * times).tolist()
    for box in known:
        canvas.frame(box, WHITE)
    for box, label in reversed(list(zip(guessed, labels, strict=True))):  # the surest on top
        canvas.frame(box, color(label))
    for (left, top, right, _), label, score in zip(guessed, labels, scores, strict=True):
        places = _along(left, right, top, (1, 0, 2, -1, 3))
        canvas.tag(f"{called(label, names)} {score:.2f}", color(label), places)
    for (left, _, right, bottom), label in zip(known, truth["labels"].tolist(), strict=True):
        canvas.tag(called(label, names), WHITE, _along(left, right, bottom, (0, 1, -1, 2, 3)))
    return canvas.pixels()


def _along(left: float, right: float, edge: float, downs: Sequence[int]) -> list[Anchor]:
    """Both ends of a box's edge, the text so many of its heights above it."""
    return [(x, edge, across, down) for down in downs for x, across in ((left, 0), (right, 1))]


def with_masks(image: Tensor, *masks: Tensor, names: Sequence[str] = ()) -> Tensor:
    """The image (3, H, W) and, side by side with it, each mask (H, W) over its gray version, in [0, 1].

    A mask holds class + 1; what is background stays gray, what is ignored is white. A class is named where
    it is widest.
    """
    image = unit(image).cpu()
    tiles = [enlarged(image), *(_painted(image, mask.long(), names) for mask in masks)]
    gap = torch.ones(3, tiles[0].shape[1], GAP)
    return torch.cat([part for tile in tiles for part in (gap, tile)][1:], 2)


def _painted(image: Tensor, mask: Tensor, names: Sequence[str]) -> Tensor:
    gray = 0.5 * image.mean(0, keepdim=True).expand(3, -1, -1)
    palette = torch.tensor([BLACK, *(color(c) for c in range(IGNORED - 1)), WHITE]) / 255
    shares = torch.where(mask == 0, 0.0, torch.where(mask == IGNORED, 1.0, 0.75))
    canvas = Canvas(enlarged(torch.lerp(gray, palette[mask].permute(2, 0, 1), shares)))
    times = canvas.image.width / mask.shape[1]
    counts = mask.flatten().bincount()
    for value in counts.argsort(descending=True).tolist():
        if value in {0, IGNORED} or counts[value] < SMALLEST * mask.numel():
            continue
        x, y = ((at + 0.5) * times for at in _widest(mask == value))
        anchors = [(x, y, 0.5, down) for down in (0.5, -0.5, 1.5, -1.5, 2.5)]
        canvas.tag(called(value - 1, names), color(value - 1), anchors)
    return canvas.pixels()


def _widest(where: Tensor) -> tuple[int, int]:
    """Column and row of the pixel of a region (H, W) that is farthest from all that is not in it."""
    depth = distance_transform_edt(F.pad(where, (1, 1, 1, 1)).numpy())[1:-1, 1:-1]
    row, column = divmod(int(depth.argmax()), where.shape[1])
    return column, row
