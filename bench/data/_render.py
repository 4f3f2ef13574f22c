"""The renderer of ``scenes``: numbers to pixels, in chunks; neither their size nor threads change a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data import _pen
from bench.data._layout import (
    CLASSES,
    OBJECT,
    WORDS,
    Array,
    Grounds,
    Things,
    Uniforms,
    grounds,
    things,
    words,
)
from bench.data._objects import DRAWINGS
from bench.data._pen import Pen

VERSION = 1  # raised whenever a pixel changes
CHUNK = 48


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def _axes(side: int) -> Tensor:
    centers: Tensor = (torch.arange(side) * 2 + 1) / side - 1
    return centers


def _enlarge(grid: Tensor, side: int) -> Tensor:
    """(N, g, g) to (N, side, side), smoothly, by exact sums."""
    at = (_axes(side) + 1) / 2 * (grid.shape[-1] - 1)
    low = at.floor().clamp(max=grid.shape[-1] - 2).long()
    weight = at - low
    weight = weight * weight * (3 - 2 * weight)
    rows = grid[:, low] + (grid[:, low + 1] - grid[:, low]) * weight[:, None]
    left = rows[:, :, low]
    smooth: Tensor = left + (rows[:, :, low + 1] - left) * weight
    return smooth


def _wave(wave: Array, side: int) -> Tensor:
    """A plane wave (N, side, side) from sines along the two axes alone."""
    axis = _axes(side).numpy().astype(np.float64)
    a = wave[:, 1:2] * axis + 2 * math.pi * wave[:, 3:4]
    b = wave[:, 2:3] * axis
    sin_a, cos_a = (_tensor(f(a))[:, None] for f in (np.sin, np.cos))
    sin_b, cos_b = (_tensor(f(b))[:, :, None] for f in (np.sin, np.cos))
    return (sin_a * cos_b + cos_a * sin_b) * _tensor(wave[:, 0])[:, None, None]


def background(g: Grounds, side: int) -> Tensor:
    """Colors (N, 3, side, side): two tones mixed by a texture, above and below the horizon, and distractors."""
    axis = _axes(side)
    x, y = axis[None, None, :], axis[None, :, None]
    horizon = _tensor(g.horizon)[..., None, None]
    below = ((y - horizon[:, 0] - x * horizon[:, 1]) * (side / 2) + 0.5).clamp_(0, 1)[:, None]
    texture = (
        _enlarge(_tensor(g.coarse), side) * 0.7 + _enlarge(_tensor(g.fine), side) * 0.3 + _wave(g.wave, side)
    )
    sky, sky2, ground, ground2 = _tensor(g.tones).transpose(0, 1)[..., None, None]
    base = (ground - sky) * below + sky
    swing = (ground2 - ground - sky2 + sky) * below + (sky2 - sky)
    canvas: Tensor = swing.mul_(texture[:, None]).add_(base)
    for which in range(2):
        _distract(canvas, g, which, x, y)
    return canvas


def _distract(canvas: Tensor, g: Grounds, which: int, x: Tensor, y: Tensor) -> None:
    """Paint the images' first or second distractor."""
    kind = _tensor(g.kind[:, which])[:, None, None]
    cx, cy, rx, ry, _ = _tensor(g.pose[:, which]).T[..., None, None]
    cos, sin = (_tensor(f(g.pose[:, which, 4]))[:, None, None] for f in (np.cos, np.sin))
    u = (x - cx) * cos + (y - cy) * sin
    v = (y - cy) * cos - (x - cx) * sin
    distance = torch.where(kind == 2, _pen.box(u, v, 0, 0, rx, ry), _pen.ellipse(u, v, 0, 0, rx, ry))
    triangle = _pen.polygon(u, v, ((0, -ry), (rx, ry), (-rx, ry)))
    distance = torch.where(kind == 3, triangle, distance)
    alpha = (0.5 - distance * (canvas.shape[-1] / 2)).clamp_(0, 1) * (kind > 0)
    color = _tensor(g.paint[:, which])[..., None, None]
    canvas += (color - canvas).mul_(alpha[:, None])


def layers(t: Things, side: int) -> Tensor:
    """Layers (M, 4, side, side): each object alone, its color times its coverage, and the coverage."""
    out = torch.empty(len(t.label), 4, side, side)
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(t.label == label)
        if len(rows):
            pen = _pen_for(t, rows, side)
            DRAWINGS[name](pen)
            out[torch.from_numpy(rows)] = pen.layer
    return out


def _pen_for(t: Things, rows: NDArray[np.intp], side: int) -> Pen:
    aspect, angle, mirror = t.shape[rows].T
    scale = t.scale[rows]
    cos, sin = np.cos(angle), np.sin(angle)
    wide, high = mirror / (scale * aspect), aspect / scale
    cx, cy = _tensor(t.center[rows]).T[..., None, None]
    across, up = (_tensor(f)[:, None, None] for f in (cos * wide, sin * wide))
    back, down = (_tensor(f)[:, None, None] for f in (sin * high, cos * high))
    axis = _axes(side)
    dx, dy = axis[None, None, :] - cx, axis[None, :, None] - cy
    pixels = _tensor(scale * side / 2)[:, None, None]
    return Pen(
        dx * across + dy * up, dy * down - dx * back, pixels, _tensor(t.colors[rows]), _tensor(t.wiggle[rows])
    )


@dataclass(frozen=True)
class Rendered:
    """N images and their objects, M in all."""

    images: Tensor  # uint8 (N, 3, side, side)
    masks: Tensor  # uint8 (N, side, side): 0, or the visible object's label + 1
    counts: Tensor  # int64 (N,): objects of each image
    boxes: Tensor  # float32 (M, 4): left, top, right, bottom edges in pixels
    labels: Tensor  # int64 (M,)
    difficult: Tensor  # bool (M,): less than 0.4 of the object can be seen
    areas: Tensor  # int64 (M,): visible pixels


def render(split: int, indices: NDArray[np.int64], side: int, objects: int) -> Rendered:
    """One chunk of images."""
    block, grain = words(split, indices, WORDS + objects * OBJECT, 12 * side * side)
    u = Uniforms(block)
    ground = grounds(u)
    thing = things(u, indices, objects)
    canvas, layer = background(ground, side), layers(thing, side)
    owner = torch.zeros(canvas.shape[0], side, side, dtype=torch.int64)  # 0, or 1 + the object's row
    for rows in _ranks(thing.image):
        images, top = torch.from_numpy(thing.image[rows]), layer[torch.from_numpy(rows)]
        canvas[images] = canvas[images] * (1 - top[:, 3:]) + top[:, :3]
        row = torch.from_numpy(rows + 1)[:, None, None]
        owner[images] = torch.where(top[:, 3] > 0.5, row, owner[images])
    return _annotate(_expose(canvas, ground, grain), owner, layer[:, 3] > 0.5, thing)


def _ranks(image: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """The rows of each image's first object, of each second, ..."""
    rank = np.arange(len(image)) - np.searchsorted(image, image)
    return [np.flatnonzero(rank == r) for r in range(int(rank.max(initial=-1)) + 1)]


def _expose(canvas: Tensor, g: Grounds, grain: NDArray[np.uint8]) -> Tensor:
    """Light falls off linearly, the sensor adds noise, eight bits remain."""
    side = canvas.shape[-1]
    axis = _axes(side)
    gain, gx, gy = _tensor(g.light).T[..., None, None]
    light = gain + gx * axis[None, None, :] + gy * axis[None, :, None]
    bytes4 = torch.from_numpy(grain).view(-1, 4, 3, side, side)
    total = (bytes4[:, :2].int().sum(1) + bytes4[:, 2:].int().sum(1)).float()  # of four bytes: about normal
    noise = (total - 510) * _tensor(g.noise / math.sqrt(4 * (256**2 - 1) / 12))[:, None, None, None]
    exposed: Tensor = (canvas * light[:, None] + noise) * 255 + 0.5
    return exposed.clamp_(0, 255).to(torch.uint8)


def _annotate(images: Tensor, owner: Tensor, whole: Tensor, t: Things) -> Rendered:
    labels = torch.from_numpy(t.label)
    masks = torch.cat([torch.zeros(1, dtype=torch.int64), labels + 1])[owner].to(torch.uint8)
    visible = owner[torch.from_numpy(t.image)] == torch.arange(1, len(labels) + 1)[:, None, None]
    areas = visible.sum((1, 2))
    inside = np.clip((1 - np.abs(t.center)) / t.scale[:, None], -1, 1)  # what the border leaves of the extent
    framed = _tensor(((inside + 1) / 2).prod(1))
    difficult = areas / whole.sum((1, 2)).clamp(min=1) * framed < 0.4
    counts = torch.bincount(torch.from_numpy(t.image), minlength=len(images))
    keep = areas >= 4  # what is all but hidden is not annotated
    counts -= torch.bincount(torch.from_numpy(t.image)[~keep], minlength=len(images))
    boxes = _boxes(visible[keep])
    return Rendered(images, masks, counts, boxes, labels[keep], difficult[keep], areas[keep])


def _boxes(masks: Tensor) -> Tensor:
    """The pixel edges (M, 4) around boolean masks (M, H, W)."""
    columns, rows = masks.any(1).int(), masks.any(2).int()
    first = [columns.argmax(1), rows.argmax(1)]
    last = [line.shape[1] - line.flip(1).argmax(1) for line in (columns, rows)]
    return torch.stack(first + last, 1).float()


def render_all(split: int, count: int, side: int, objects: int, chunk: int = CHUNK) -> Rendered:
    """Images 0 .. count - 1 of a split; the chunk size changes nothing but the speed."""
    order = np.argsort(np.arange(count) % len(CLASSES), kind="stable") if objects == 1 else np.arange(count)
    parts = [render(split, order[at : at + chunk], side, objects) for at in range(0, count, chunk)]
    back = torch.from_numpy(np.argsort(order))
    joined = {
        name: torch.cat([getattr(p, name) for p in parts]) for name in (f.name for f in fields(Rendered))
    }
    counts = joined["counts"]
    ends = counts.cumsum(0)
    spans = [torch.arange(int(ends[i] - counts[i]), int(ends[i])) for i in back]
    rows = torch.cat(spans)
    by_image = {"images", "masks", "counts"}
    return Rendered(**{name: value[back if name in by_image else rows] for name, value in joined.items()})
