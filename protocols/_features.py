"""Frozen features: the only place where an encoder is run over images without augmentation.

One forward pass extracts what all frozen protocols of a model will read, pools it on the fly and
keeps it in the run's cache, so that the second protocol makes no pass at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from bench import pause
from bench.contracts import OUTPUT, BenchError, Encoder, Model, Run, Samples, Tap, Writer
from bench.features import Features, Need, frozen, read
from bench.records import digest
from protocols._views import center_view

__all__ = ["OUTPUT", "chained", "collapsed", "column", "features", "frozen", "in_order", "read"]

Batch = TypeVar("Batch")
Reading: TypeAlias = "Callable[[Tensor, Sequence[Tap]], dict[Tap, Tensor]]"
BATCH = 256  # fixed: a convolution's last bits may depend on the batch's size
SAMPLE, FEWEST = 128, 8  # images by which a collapse is told
CONSTANT, ONE_LINE = 1e-8, 1e-4  # of the squares: variance at all, and variance off the first component


def features(model: Model, samples: Samples, taps: Sequence[Tap], run: Run) -> dict[Tap, Features]:
    """The pooled features at ``taps`` of all images, in order: float32 (N, d) each, on the CPU or on disk.

    What the cache lacks is extracted in one pass, together with all that ``run.taps`` announces and that there
    is room for. With ``run.features`` "float16" all are rounded to it, and kept so.
    A run without a weights digest has nothing to key a cache by, and extracts what it is asked for.

    :raises BenchError: neither memory nor the cache can hold them.
    """
    known = bool(run.weights_digest)
    found = {tap: _kept(run, samples, tap) if known else None for tap in dict.fromkeys(taps)}
    ready = {tap: value for tap, value in found.items() if value is not None}
    missing = [tap for tap in found if tap not in ready]
    if missing:
        more = [t for t in run.taps if t not in found and _kept(run, samples, t) is None] if known else []
        ready |= _Extraction(model.encoder, samples, missing, dict.fromkeys(more), run).made()
    widths = tuple(ready[tap].shape[1] for tap in found)
    held = Need(len(samples), widths, run.features).fits_memory
    whole = {tap: _whole(ready[tap]) if held else ready[tap] for tap in found}
    for tap, value in whole.items():
        if not (value.isfinite().all() if isinstance(value, Tensor) else value.finite):
            run.warn(f"features at {tap.layer} are not finite")
        elif problem := collapsed(value):
            run.warn(f"features at {tap.layer} are {problem}: collapsed")
    return whole


def _kept(run: Run, samples: Samples, tap: Tap) -> Features | None:
    """What the cache has."""
    key = _key(run, samples, tap)
    found = run.cache.get(key)
    if found is None:
        return run.cache.rows(key)
    return found.float()


def _whole(x: Features) -> Tensor:
    return x if isinstance(x, Tensor) else x[:]


def _key(run: Run, samples: Samples, tap: Tap) -> str:
    parts = [
        run.weights_digest,
        samples.name,
        len(samples),
        repr(center_view(tap.side, tap.square)),
        run.precision,
    ]
    return digest([*parts, tap, *([run.features] if run.features != "float32" else [])], 32)


def _rounded(values: Tensor, tap: Tap, run: Run) -> Tensor:
    """As they are kept: what is computed and what the cache gives back are the same numbers."""
    if run.features == "float32":
        return values
    half = values.half()
    if not half.isfinite().all() and values.isfinite().all():
        raise BenchError(
            f'features at {tap.layer} are too large for float16: write target.features = "float32"'
        )
    return half


def collapsed(values: Features) -> str:
    """What is wrong with features (N, d) that tell images hardly apart, by a sample of them; else nothing."""
    rows = torch.arange(0, len(values), max(1, len(values) // SAMPLE))[:SAMPLE]
    sample = values[rows].double()
    if len(sample) < FEWEST or sample.shape[1] == 1 or not sample.isfinite().all():
        return ""
    centered = sample - sample.mean(0)
    spread = torch.linalg.eigvalsh(centered @ centered.T).clamp_min(0)  # ascending
    if spread.sum() <= CONSTANT * sample.square().sum():
        return "the same for all images"
    return "on one line" if spread[-1] >= (1 - ONE_LINE) * spread.sum() else ""


class _Extraction:
    """One pass over the images: each image goes through the encoder once per image side that is asked for.

    :param wanted: the taps that must be had; ``more``: those that others will ask for, where they can be had.
    """

    def __init__(
        self, encoder: Encoder, samples: Samples, wanted: Iterable[Tap], more: Iterable[Tap], run: Run
    ) -> None:
        self.encoder, self.samples, self.run = encoder, samples, run
        self.wanted, self.taps = list(wanted), [*wanted, *more]

    def made(self) -> dict[Tap, Features]:
        """Each tap's features: in memory, or on disk where memory does not hold them all; the cache has them."""
        count, out = len(self.samples), dict[Tap, Tensor | Writer]()
        with frozen(self.encoder):
            for rows, values in self._batches(out):
                for tap, value in values.items():
                    self._put(out[tap], rows, _rounded(value, tap, self.run))
                if not all(isinstance(x, Tensor) for x in out.values()):
                    pause.check()
                    self.run.progress(int(rows[-1]) + 1, count)
        return {tap: self._finished(tap, x) for tap, x in out.items()}

    def _batches(self, out: dict[Tap, Tensor | Writer]) -> Iterator[tuple[Tensor, dict[Tap, Tensor]]]:
        """Places and values. The first batch tells what can be read and how wide it is: ``out`` is made by it."""
        batches = in_order(len(self.samples))
        stream = self._read(batches, self._first)
        for rows, values in stream:
            if not out:
                out |= self._places({tap: value.shape[1] for tap, value in values.items()})
                self.taps = list(out)
                begun = min(x.done if isinstance(x, Writer) else 0 for x in out.values()) // BATCH
                if begun:
                    stream.close()
                    yield from self._read(batches[begun:], self._again)
                    return
            yield rows, {tap: values[tap] for tap in out}

    def _read(self, batches: Sequence[Tensor], read: Reading) -> Generator[tuple[Tensor, dict[Tap, Tensor]]]:
        sizes = list(dict.fromkeys((tap.side, tap.square) for tap in self.taps))
        frames = [center_view(*size) for size in sizes]
        views = self.samples.images.views(batches, frames, 0, 0)
        for number, (rows, found) in enumerate(zip(batches, views, strict=True)):
            values: dict[Tap, Tensor] = {}
            for size, view in zip(sizes, found, strict=True):
                here = [tap for tap in self.taps if (tap.side, tap.square) == size]
                if here:
                    values |= (self._again if number else read)(view, here)
            yield rows, values

    def _again(self, view: Tensor, taps: Sequence[Tap]) -> dict[Tap, Tensor]:
        return read(self.encoder, view, taps, self.run)

    def _first(self, view: Tensor, taps: Sequence[Tap]) -> dict[Tap, Tensor]:
        """What can be read; what others ask for in vain costs them their cell, not this one."""
        try:
            return self._again(view, taps)
        except Exception:
            own = [tap for tap in taps if tap in self.wanted]
            if len(own) == len(taps):
                raise
        for tap in taps:
            with contextlib.suppress(Exception):
                if tap not in own:
                    self._again(view, [tap])
                    own.append(tap)
        return self._again(view, own) if own else {}

    def _places(self, widths: Mapping[Tap, int]) -> dict[Tap, Tensor | Writer]:
        """Where features of these widths go: all of them, or the wanted ones, into memory or on the disk."""
        count, kept = len(self.samples), self.run.features
        own = {tap: widths[tap] for tap in self.wanted}
        everything, least = (Need(count, tuple(some.values()), kept) for some in (widths, own))
        if everything.fits_memory or not self.run.weights_digest:
            return self._tensors(widths)
        room = self.run.cache.room()
        if not everything.refusal(room):
            return self._writers(widths)
        if least.refusal(room):
            raise BenchError(least.refusal(room))
        return self._tensors(own) if least.fits_memory else self._writers(own)

    def _tensors(self, widths: Mapping[Tap, int]) -> dict[Tap, Tensor | Writer]:
        dtype = getattr(torch, self.run.features)
        return {tap: torch.empty(len(self.samples), width, dtype=dtype) for tap, width in widths.items()}

    def _writers(self, widths: Mapping[Tap, int]) -> dict[Tap, Tensor | Writer]:
        open_, count = self.run.cache.writer, len(self.samples)
        return {
            tap: open_(_key(self.run, self.samples, tap), count, width, self.run.features)
            for tap, width in widths.items()
        }

    def _put(self, place: Tensor | Writer, rows: Tensor, values: Tensor) -> None:
        if isinstance(place, Tensor):
            place[rows] = values.cpu()
        elif place.done <= int(rows[-1]):  # else an interrupted pass wrote them
            place.write(values[place.done - int(rows[0]) :])

    def _finished(self, tap: Tap, place: Tensor | Writer) -> Features:
        if isinstance(place, Writer):
            return place.close()
        if self.run.weights_digest:
            self.run.cache.put(_key(self.run, self.samples, tap), place)
        return place.float()


def in_order(count: int) -> list[Tensor]:
    """The batches of one pass without shuffling; the last may be smaller."""
    return [torch.arange(a, min(a + BATCH, count)) for a in range(0, count, BATCH)]


def column(layer: str) -> str:
    """A layer in the column of that name: the output, a model's only one, is written as nothing."""
    return "" if layer == OUTPUT else layer


def chained(
    batches: Callable[[int, int], Iterable[Batch]], per_epoch: int, epochs: int
) -> Callable[[int, int], Iterator[Batch]]:
    """All epochs as one: an epoch on stored features is too short to be worth a forced checkpoint."""

    def whole(_: int, first: int) -> Iterator[Batch]:
        begin, skip = divmod(first, per_epoch)
        for epoch in range(begin, epochs):
            yield from batches(epoch, skip if epoch == begin else 0)

    return whole
