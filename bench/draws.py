"""Random numbers without a state: every draw is a hash of (seed, epoch, sample, stream, counter).

So a sample's augmentation does not depend on the batch it came in, on workers or on processes, and
a resumed run draws what the undisturbed one would have drawn. Integers agree on every device.
The mixer is the finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MUL1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MUL2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift: torch's is arithmetic on signed numbers."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer over int64 tensors (which wrap around)."""
    x = (x ^ _shift(x, 30)) * _MUL1
    x = (x ^ _shift(x, 27)) * _MUL2
    return x ^ _shift(x, 31)


def _mixed(parts: Iterable[int]) -> int:
    """:func:`combine` of plain numbers, as 64 unsigned bits: without tensors it takes a twentieth of the time."""
    key = 0
    for part in parts:
        x = ((key ^ part) + _GOLDEN) & _WORD
        x = ((x ^ (x >> 30)) * _MUL1) & _WORD
        x = ((x ^ (x >> 27)) * _MUL2) & _WORD
        key = x ^ (x >> 31)
    return key


def combine(*parts: Tensor | int) -> Tensor:
    """One well-mixed int64 from several: order matters, zero counts."""
    numbers: list[int] = []
    for part in parts:
        if not isinstance(part, int):
            break
        numbers.append(part)
    start = _mixed(numbers)
    key = torch.tensor(start - (start >> 63 << 64))
    rest = [torch.as_tensor(p, dtype=torch.int64) for p in parts[len(numbers) :]]
    device = next((t.device for t in rest if t.ndim), rest[0].device if rest else key.device)
    for one in rest:
        key = mix((key.to(device) ^ one.to(device)) + _GOLDEN)
    return key


def seed_of(*parts: int) -> int:
    """A non-negative 63-bit seed for torch's own generators."""
    return _mixed(parts) & ((1 << 63) - 1)


def order(count: int, *key: int) -> Tensor:
    """A permutation of ``count`` samples that depends on ``key`` alone."""
    return torch.argsort(combine(*key, torch.arange(count)), stable=True)


class Draws:
    """A stream of random numbers of its own for each of N samples.

    Each call advances a counter, so a fixed program draws fixed numbers.

    :param seed: the run's seed; ``epoch``: which pass; ``index``: int64 (N,), the samples;
        ``stream``: tells several views of one image apart.
    """

    def __init__(self, seed: int, epoch: int, index: Tensor, stream: int = 0) -> None:
        self.key = combine(seed, epoch, stream, index)
        self.counter = 0

    def __len__(self) -> int:
        return len(self.key)

    def bits(self, *shape: int) -> Tensor:
        """int64 (N, *shape), uniform over all 64 bits."""
        self.counter += 1
        key = mix(self.key + self.counter * 0x632BE5AB)
        if not shape:
            return key
        lanes = torch.arange(1, math.prod(shape) + 1, device=key.device) * _GOLDEN
        return mix(key[:, None] + lanes).view(len(key), *shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 (N, *shape) in [low, high)."""
        unit = _shift(self.bits(*shape), 40).float() * 2.0**-24  # 24 bits: exact in float32, never 1
        return unit * (high - low) + low

    def integers(self, high: int, *shape: int) -> Tensor:
        """int64 (N, *shape) in 0 .. high - 1 (bias below high / 2^31)."""
        return (_shift(self.bits(*shape), 33) * high) >> 31

    def coin(self, probability: float) -> Tensor:
        """Bool (N,), true with ``probability``."""
        return self.uniform() < probability

    def normal(self, *shape: int) -> Tensor:
        """float32 (N, *shape), standard normal (Box-Muller)."""
        radius = torch.sqrt(-2.0 * torch.log1p(-self.uniform(*shape)))
        return radius * torch.cos(2 * math.pi * self.uniform(*shape))
