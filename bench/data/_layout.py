"""What is in each picture of ``scenes``: numbers from a stream of each image's own.

They come from PCG64's raw words (stable over numpy's versions) by arithmetic that IEEE 754 rounds
exactly, so they agree on every machine. An image depends on (split, index) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from bench.data._objects import DRAWINGS, HUES

CLASSES = tuple(DRAWINGS)
PLACES = 2  # where an object may go: the least crowded of these is taken

_SEED = 0x5CE4E5
WORDS = 160  # of the background; each object takes OBJECT more
OBJECT = 64

Array = NDArray[np.float64]


class Uniforms:
    """Hands out the columns of a block (N, K) of uniform numbers in a fixed order."""

    def __init__(self, block: Array) -> None:
        self.block, self.at = block, 0

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        """Numbers (N, ...shape) in [low, high)."""
        count = math.prod(shape)
        columns = self.block[:, self.at : self.at + count]
        if columns.shape[1] < count:
            raise IndexError("the block of random words is too short")
        self.at += count
        spread: Array = columns.reshape(len(columns), *shape) * (high - low) + low
        return spread

    def normal(self, *shape: int) -> Array:
        """About standard normal: the sum of four, since logarithms differ between machines."""
        total: Array = self(*shape, 4).sum(-1)
        return (total - 2) * math.sqrt(3)


@dataclass(frozen=True)
class Grounds:
    """Backgrounds of N images: colors in [0, 1], lengths in units of half a side."""

    tones: Array  # (N, 4, 3): sky and its second tone, ground and its second tone
    horizon: Array  # (N, 2): height at the middle, slope; far below where there is none
    coarse: Array  # (N, 4, 4) and
    fine: Array  # (N, 9, 9): smooth noise
    wave: Array  # (N, 4): strength, two wave numbers, phase (turns)
    light: Array  # (N, 3): gain at the middle, gradient over x and y
    noise: Array  # (N,): standard deviation
    kind: Array  # (N, 2): distractors: none (0), ellipse, box, triangle
    pose: Array  # (N, 2, 5): x, y, half-width, half-height, angle
    paint: Array  # (N, 2, 3)


@dataclass(frozen=True)
class Things:
    """M objects, back to front within an image."""

    image: NDArray[np.int64]  # (M,)
    label: NDArray[np.int64]  # (M,)
    center: Array  # (M, 2)
    scale: Array  # (M,): half the object's extent
    shape: Array  # (M, 3): aspect, angle (radians), +1 or -1 (mirrored)
    colors: Array  # (M, 5, 3)
    wiggle: Array  # (M, 8)


def words(split: int, indices: NDArray[np.int64], count: int, noise: int) -> tuple[Array, NDArray[np.uint8]]:
    """For each image ``count`` uniform numbers and ``noise`` bytes, from a stream of its own."""
    block = np.empty((len(indices), count), np.uint64)
    grain = np.empty((len(indices), -(-noise // 8)), "<u8")
    for row, index in enumerate(indices):
        stream = np.random.PCG64(np.random.SeedSequence((_SEED, split, int(index))))
        block[row] = stream.random_raw(count)
        grain[row] = stream.random_raw(grain.shape[1])
    uniform: Array = (block >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform, grain.view(np.uint8)[:, :noise]


def rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """Hue (turns), saturation and value to (..., 3)."""
    shift = (np.array([5.0, 3.0, 1.0]) + hue[..., None] * 6) % 6
    ramp = np.clip(np.minimum(shift, 4 - shift), 0, 1)
    color: Array = value[..., None] * (1 - saturation[..., None] * ramp)
    return color


def grounds(u: Uniforms) -> Grounds:
    """Half of the images have sky and ground, most of these in blue and green; the rest one smooth texture."""
    split, natural = u() < 0.5, u() < 0.6
    hue, saturation, value = u(2), u(2, low=0.0, high=0.55), u(2, low=0.1, high=1.0)
    typical = np.array([0.58, 0.27]) + u.normal(2) * 0.04
    hue = np.where((split & natural)[:, None], typical, hue)
    second = np.clip(value + u(2, low=-0.25, high=0.25), 0.05, 1)
    tones = np.stack(
        [rgb(hue, saturation, value), rgb(hue + u(2, low=-0.08, high=0.08), saturation, second)], 2
    )
    horizon = np.stack([np.where(split, u(low=-0.4, high=0.5), 9.0), u.normal() * 0.05], 1)
    turn, pitch = u(), u(low=3, high=14)
    wave = np.stack([u(low=0, high=0.35), pitch * (2 * turn - 1), pitch * (1 - np.abs(2 * turn - 1)), u()], 1)
    light = np.stack([u(low=0.75, high=1.1), u(low=-0.3, high=0.3), u(low=-0.3, high=0.3)], 1)
    kind = np.where(u(2) < 0.7, np.floor(u(2) * 3) + 1, 0)
    sizes = u(2, 2, low=0.08, high=0.26)
    pose = np.concatenate([u(2, 2, low=-1, high=1), sizes, u(2, 1, low=0, high=math.pi)], -1)
    paint = rgb(u(2), u(2, low=0.1, high=0.8), u(2, low=0.15, high=0.9))
    return Grounds(
        tones=tones.reshape(-1, 4, 3),
        horizon=horizon,
        coarse=u(4, 4),
        fine=u(9, 9),
        wave=wave,
        light=light,
        noise=u(low=0, high=0.04),
        kind=kind,
        pose=pose,
        paint=paint,
    )


def _palette(u: Uniforms, labels: NDArray[np.int64]) -> Array:
    """(N, 5, 3): three class-typical colors (for one object in ten any hue), one dark, one light."""
    typical = np.array([HUES[name] for name in CLASSES])[labels]
    hue = typical[..., 0] + u.normal(3) * 0.06
    hue = np.where(u(1) < 0.1, u(3), hue)
    saturation = np.clip(typical[..., 1] + u(3, low=-0.25, high=0.25), 0, 1)
    value = np.clip(typical[..., 2] + u(3, low=-0.25, high=0.25), 0.1, 1)
    dark = rgb(u(1), u(1, high=0.5), u(1, low=0.05, high=0.25))
    light = rgb(u(1), u(1, high=0.15), u(1, low=0.85, high=1))
    return np.concatenate([rgb(hue, saturation, value), dark, light], 1)


def _place(candidates: Array, scale: Array, earlier: list[tuple[Array, Array]]) -> Array:
    """Of the candidates (N, PLACES, 2) the first that is least crowded by the earlier objects."""
    crowd = np.zeros(candidates.shape[:2])
    for center, size in earlier:
        apart = np.abs(candidates - center[:, None]).max(-1) / (scale + size)[:, None]
        crowd += np.clip(1 - apart, 0, 1)
    best: Array = candidates[np.arange(len(candidates)), crowd.argmin(1)]
    return best


def things(u: Uniforms, indices: NDArray[np.int64], objects: int) -> Things:
    """One object an image, its class the index modulo 12; or 1 to ``objects`` smaller ones of any class."""
    count = np.floor(u() * objects).astype(np.int64) + 1
    parts: list[Things] = []
    earlier: list[tuple[Array, Array]] = []
    for turn in range(objects):
        u.at = WORDS + turn * OBJECT
        rows = np.flatnonzero(count > turn)
        whole = _one_each(u, indices, objects > 1, earlier)
        earlier.append((whole.center, np.where(count > turn, whole.scale, 1e-9)))
        parts.append(Things(**{f.name: getattr(whole, f.name)[rows] for f in fields(Things)}))
    return _in_image_order(parts)


def _one_each(
    u: Uniforms, indices: NDArray[np.int64], many: bool, earlier: list[tuple[Array, Array]]
) -> Things:
    """One more object for every image."""
    drawn = np.floor(u() * len(CLASSES)).astype(np.int64)
    label = drawn if many else indices % len(CLASSES)
    scale = u(low=0.42, high=0.72) * (0.7 if many else 1.0)
    room = 1 - 0.6 * scale  # the border cuts an object now and then, never in half
    center = _place(u(PLACES, 2, low=-1, high=1) * room[:, None, None], scale, earlier)
    aspect = 1 + u(low=-0.18, high=0.18)
    angle = u.normal() * math.radians(12)
    shape = np.stack([aspect, angle, np.where(u() < 0.5, -1.0, 1.0)], 1)
    colors, wiggle = _palette(u, label), u(8, low=-1, high=1)
    return Things(np.arange(len(indices)), label, center, scale, shape, colors, wiggle)


def _in_image_order(parts: list[Things]) -> Things:
    joined = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Things)}
    order = np.argsort(joined["image"], kind="stable")
    return Things(**{name: value[order] for name, value in joined.items()})
