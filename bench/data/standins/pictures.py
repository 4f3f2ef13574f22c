"""Images whose classes can be learned: each has a color and a wave of its own, over noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

_GOLDEN = 0.6180339887498949  # its multiples spread evenly over a circle


def stream(*key: int) -> np.random.Generator:
    """Random numbers that hang on ``key`` alone."""
    return np.random.default_rng([0x57A4D, *key])


def textures(labels: NDArray[Any], height: int, width: int, rng: np.random.Generator) -> Pixels:
    """uint8 (N, height, width, 3): the class says hue and wave, chance its phase and the noise."""
    c = labels.reshape(-1, 1, 1).astype(np.float32)
    n = len(labels)
    angle = np.pi * (c * _GOLDEN % 1)
    cycles = 2 + c % 5
    y, x = np.linspace(0, 1, height, dtype=np.float32)[:, None], np.linspace(0, 1, width, dtype=np.float32)
    phase = rng.random((n, 1, 1), dtype=np.float32)
    wave = np.sin(2 * np.pi * (cycles * (np.cos(angle) * x + np.sin(angle) * y) + phase))
    thirds = np.array([0, 1 / 3, 2 / 3], np.float32)
    color = 128 + 70 * np.sin(2 * np.pi * (c[..., None] * _GOLDEN + thirds))
    noise = rng.integers(-20, 21, (n, height, width, 3), np.int8)
    pixels: Pixels = np.clip(color + 36 * wave[..., None] + noise, 0, 255).astype(np.uint8)
    return pixels


def picture(label: int, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """One RGB image of any size; the wave is drawn small and enlarged, which is fast."""
    small = textures(np.array([label]), max(8, height // 4), max(8, width // 4), rng)[0]
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
