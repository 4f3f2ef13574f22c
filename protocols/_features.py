"""Frozen features: the only place where an encoder is run over images without augmentation.

One forward pass extracts what all frozen protocols of a model will read, pools it on the fly and
keeps it in the run's cache, so that the second protocol makes no pass at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from bench.contracts import BenchError, Encoder, Images, Model, Run, Samples, Tap
from bench.pooling import pool
from bench.records import digest
from protocols._views import center_view

Batch = TypeVar("Batch")

OUTPUT = "output"  # the tap of what the encoder itself returns
BATCH = 256  # fixed: a convolution's last bits may depend on the batch's size
SAMPLE, FEWEST = 128, 8  # images by which a collapse is told
CONSTANT, ONE_LINE = 1e-8, 1e-4  # of the squares: variance at all, and variance off the first component


def features(model: Model, samples: Samples, taps: Sequence[Tap], run: Run) -> dict[Tap, Tensor]:
    """The pooled features at ``taps`` of all images, in order: float32 (N, d) each, on the CPU.

    What the cache lacks is extracted in one pass, together with all that ``run.taps`` announces. With
    ``run.features`` "float16" all are rounded to it, and kept so.
    A run without a weights digest has nothing to key a cache by, and extracts what it is asked for.
    """
    known = bool(run.weights_digest)
    found = {tap: run.cache.get(_key(run, samples, tap)) if known else None for tap in dict.fromkeys(taps)}
    ready = {tap: value for tap, value in found.items() if value is not None}
    missing = [tap for tap in found if tap not in ready]
    if missing:
        announced = [t for t in run.taps if t not in found and run.cache.get(_key(run, samples, t)) is None]
        fresh = extract(
            model.encoder, samples.images, [*missing, *dict.fromkeys(announced if known else ())], run
        )
        fresh = {tap: _rounded(value, tap, run) for tap, value in fresh.items()}
        for tap, value in fresh.items() if known else ():
            run.cache.put(_key(run, samples, tap), value)
        ready |= fresh
    whole = {tap: ready[tap].float() for tap in found}
    for tap, value in whole.items():
        if not value.isfinite().all():
            run.warn(f"features at {tap.layer} are not finite")
        elif problem := collapsed(value):
            run.warn(f"features at {tap.layer} are {problem}: collapsed")
    return whole


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


def collapsed(values: Tensor) -> str:
    """What is wrong with features (N, d) that tell images hardly apart, by a sample of them; else nothing."""
    sample = values[:: max(1, len(values) // SAMPLE)][:SAMPLE].double()
    if len(sample) < FEWEST or sample.shape[1] == 1 or not sample.isfinite().all():
        return ""
    centered = sample - sample.mean(0)
    spread = torch.linalg.eigvalsh(centered @ centered.T).clamp_min(0)  # ascending
    if spread.sum() <= CONSTANT * sample.square().sum():
        return "the same for all images"
    return "on one line" if spread[-1] >= (1 - ONE_LINE) * spread.sum() else ""


def extract(encoder: Encoder, images: Images, taps: Sequence[Tap], run: Run) -> dict[Tap, Tensor]:
    """One pass over the images: each image goes through the encoder once per image side that is asked for."""
    sizes = list(dict.fromkeys((tap.side, tap.square) for tap in taps))
    batches = in_order(len(images))
    out: dict[Tap, Tensor] = {}
    with frozen(encoder):
        for rows, views in zip(
            batches, images.views(batches, [center_view(*size) for size in sizes], 0, 0), strict=True
        ):
            for size, view in zip(sizes, views, strict=True):
                here = [tap for tap in taps if (tap.side, tap.square) == size]
                for tap, value in read(encoder, view, here, run).items():
                    if tap not in out:
                        out[tap] = torch.empty(len(images), value.shape[1])
                    out[tap][rows] = value.cpu()
    return out


def read(encoder: Encoder, images: Tensor, taps: Sequence[Tap], run: Run) -> dict[Tap, Tensor]:
    """The pooled features at ``taps`` of one batch, in one forward pass: float32 (N, d) each."""
    with torch.no_grad(), run.autocast():
        maps = _maps(encoder, images, list(dict.fromkeys(tap.layer for tap in taps)))
    return {tap: _pooled(maps[tap.layer].float(), tap).flatten(1) for tap in taps}


def _pooled(maps: Tensor, tap: Tap) -> Tensor:
    return maps if tap.layer == OUTPUT else pool(maps, tap.pooling, tap.size, tap.layer)


def _maps(encoder: Encoder, images: Tensor, layers: Sequence[str]) -> Mapping[str, Tensor]:
    """What the layers give, "output" among them, in one forward pass that stops where it can."""
    inner = [layer for layer in layers if layer != OUTPUT]
    if len(inner) == len(layers):
        return encoder.activations(images, inner)
    unknown = [layer for layer in inner if layer not in encoder.layers]
    if unknown:
        raise BenchError(f"layer {unknown[0]!r} does not exist here; layers are: {', '.join(encoder.layers)}")
    found: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        stage = encoder.trunk.get_submodule(name)
        hooks.append(stage.register_forward_hook(lambda _stage, _inputs, maps: found.__setitem__(name, maps)))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for layer in inner:
            keep(layer)
        found[OUTPUT] = encoder(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def in_order(count: int) -> list[Tensor]:
    """The batches of one pass without shuffling; the last may be smaller."""
    return [torch.arange(a, min(a + BATCH, count)) for a in range(0, count, BATCH)]


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
