"""Frozen features that may be larger than memory: how an encoder is read, what they take, how one goes through them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from bench.contracts import OUTPUT, BenchError, Encoder, Room, Rows, Run, Tap
from bench.pooling import pool

Features: TypeAlias = "Tensor | Rows"  # (N, d): in memory, or on disk
Key = TypeVar("Key")

HELD_GB = 2.0
BLOCK = 4096  # rows at once: 157 MB of 9,600 numbers
READERS = 8  # reads under way at once: a disk answers that many in the time of one
_UNITS = ((1e9, "GB"), (1e6, "MB"))
_WIDTH = {"float32": 4, "float16": 2}


def gigabytes(variable: str, default: float) -> float:
    """Bytes, of a number of gigabytes in the environment.

    :raises BenchError: it is no number.
    """
    text = os.environ.get(variable) or default
    try:
        return float(text) * 1e9
    except ValueError as error:
        raise BenchError(
            f"{variable}: {text!r} is no number of gigabytes; write e.g. {default:.0f}"
        ) from error


def held_bytes() -> float:
    """How much of a split's features are held in memory, all layers together: ``BENCH_MEMORY_GB``, or 2 GB."""
    return gigabytes("BENCH_MEMORY_GB", HELD_GB)


# ---- reading an encoder --------------------------------------------------------------------------


def read(encoder: Encoder, images: Tensor, taps: Sequence[Tap], run: Run) -> dict[Tap, Tensor]:
    """The pooled features at ``taps`` of one batch, in one forward pass: float32 (N, d) each."""
    with torch.no_grad(), run.autocast():
        maps = encoder.read(images, list(dict.fromkeys(tap.layer for tap in taps)))
    return {tap: _pooled(maps[tap.layer].float(), tap).flatten(1) for tap in taps}


def _pooled(maps: Tensor, tap: Tap) -> Tensor:
    return maps if tap.layer == OUTPUT else pool(maps, tap.pooling, tap.size, tap.layer)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; every part's own mode comes back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


# ---- what they take ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """What features take: of so many images, a width a layer, a number kept as ``float32`` or ``float16``."""

    images: int
    widths: tuple[int, ...]
    kept: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.images * sum(self.widths) * _WIDTH[self.kept]

    @property
    def gb(self) -> str:
        """The same for people."""
        unit, name = next((one for one in _UNITS if self.size >= one[0]), (1e3, "kB"))
        return f"{self.size / unit:,.0f} {name}"

    def __str__(self) -> str:
        low, high = min(self.widths), max(self.widths)
        width = f"{high:,}" if low == high else f"{low:,} to {high:,}"
        layers = f"{len(self.widths)} layers" if len(self.widths) > 1 else "1 layer"
        return f"features of {self.images:,} images x {layers} x {width} {self.kept}"

    @property
    def fits_memory(self) -> bool:
        """Whether all of them are held: they are read as float32, however they are kept."""
        return replace(self, kept="float32").size <= held_bytes()

    def refusal(self, room: Room) -> str:
        """Why they cannot be had, and what to write instead; nothing where memory or the cache can hold them."""
        return "" if self.fits_memory or self.size <= room.size else self.too_large_for(room)

    def too_large_for(self, room: Room) -> str:
        """The line that says so."""
        half = replace(self, kept="float16")
        less = f'write target.features = "float16" ({half.gb}), ' if self.kept == "float32" else "write "
        limit = f"the limit leaves {room.limit / 1e9:,.0f} GB (BENCH_CACHE_GB)"
        return (
            f"{self} need {self.gb} in {room.where}, where {room.free / 1e9:,.0f} GB are free and {limit}: "
            f"{less}fewer layers, a smaller size, a larger BENCH_CACHE_GB, or another folder (BENCH_CACHE)"
        )


# ---- going through them --------------------------------------------------------------------------


def blocks(x: Features, size: int | None = None) -> Iterator[Tensor]:
    """All rows in order, ``size`` or ``BLOCK`` at once."""
    step = size or BLOCK
    for first in range(0, len(x), step):
        yield x[first : first + step]


class _Chosen(Rows):
    """Some rows of others, renumbered from 0."""

    def __init__(self, whole: Rows, rows: Tensor) -> None:
        self.whole, self.rows, self.finite = whole, rows, whole.finite
        self.shape = (len(rows), whole.shape[1])

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        return self.whole[self.rows[rows]]


def chosen(x: Features, rows: Tensor) -> Features:
    """The rows at ``rows`` (int64 (n,)): in memory a copy, on disk read when they are asked for."""
    if torch.equal(rows, torch.arange(len(x))):
        return x
    return x[rows] if isinstance(x, Tensor) else _Chosen(x, rows)


def in_memory(x: Features, why: str) -> Tensor:
    """The features, for what cannot go through them a block at a time.

    :raises BenchError: they do not fit; ``why`` says what needs them there and what to write instead.
    """
    if isinstance(x, Tensor):
        return x
    need = Need(*x.shape[:1], x.shape[1:], "float32")
    raise BenchError(f"{need} need {need.gb} of memory, and BENCH_MEMORY_GB is {held_bytes() / 1e9:g}: {why}")


def moments(x: Features) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance (d,) of the rows."""
    if isinstance(x, Tensor):
        var, mean = torch.var_mean(x, 0, correction=0)
        return mean, var
    total, square = (torch.zeros(x.shape[1], dtype=torch.float64) for _ in range(2))
    for block in blocks(x):
        exact = block.double()
        total += exact.sum(0)
        square += exact.square_().sum(0)
    mean = total / len(x)
    return mean.float(), (square / len(x) - mean.square()).clamp_(min=0).float()


def batches(sources: Mapping[Key, Features], picks: Sequence[Tensor]) -> Iterator[Mapping[Key, Tensor]]:
    """The rows (n, d) of each source at each of ``picks`` (int64 (n,)), in buffers that the next batch may reuse.

    From disk the next batch is read while this one is used.
    """
    held = {key: x for key, x in sources.items() if isinstance(x, Tensor)}
    stored = {key: x for key, x in sources.items() if not isinstance(x, Tensor)}
    size = max((len(pick) for pick in picks), default=0)
    # Gathering into the same memory again and again is several times faster than into fresh pages.
    buffers = {key: x.new_empty(size, x.shape[1]) for key, x in held.items()}
    for pick, found in zip(picks, _ahead(stored, picks) if stored else ({} for _ in picks), strict=True):
        for key, x in held.items():
            part = buffers[key][: len(pick)]
            torch.index_select(x, 0, pick.to(x.device), out=part)
            found[key] = part
        yield found


def _ahead(stored: Mapping[Key, Rows], picks: Iterable[Tensor]) -> Iterator[dict[Key, Tensor]]:
    """Batches from disk, one ahead of what is used."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: dict[Key, list[Future[Tensor]]] | None = None
        for pick in picks:
            parts = pick.tensor_split(READERS)
            asked = {key: [pool.submit(x.__getitem__, part) for part in parts] for key, x in stored.items()}
            if waiting is not None:
                yield _come(waiting)
            waiting = asked
        if waiting is not None:
            yield _come(waiting)


def _come(waiting: Mapping[Key, list[Future[Tensor]]]) -> dict[Key, Tensor]:
    return {key: torch.cat([part.result() for part in parts]) for key, parts in waiting.items()}
