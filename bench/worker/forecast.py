"""What the features of frozen protocols will take, told before the model that they are of is made."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch

from bench import registry
from bench.cache import FileCache
from bench.contracts import BenchError, Encoder, Evaluation, Model, Run, Tap, Target
from bench.features import Need, frozen, read
from bench.records import Cell
from bench.session import Session
from bench.worker.evaluation import target_of
from bench.worker.place import Place

FEW = 20_000  # images, of which no usual layer is too large

_log = logging.getLogger(__name__)


def check(cells: Sequence[Cell], model: Model, run: Session, place: Place) -> None:
    """Tell what the cells will keep on disk.

    :raises BenchError: none of them can be judged, for want of room.
    """
    cache = FileCache(place.cache / "features")
    refused: dict[Cell, str] = {}
    for cell in cells:
        for need, largest in _needs(cell, model, run, place):
            if largest.fits_memory:
                continue
            room = cache.room()
            if need.size > room.size:
                refused[cell] = need.too_large_for(room)
            else:
                _log.warning(
                    "%s: %s: %s on disk, where %.0f GB are free",
                    cell.protocol.name,
                    need,
                    need.gb,
                    room.size / 1e9,
                )
    for cell, reason in refused.items():
        _log.warning("%s: %s", cell.protocol.name, reason)
    if cells and len(refused) == len(cells):
        raise BenchError(next(iter(refused.values())))


def _needs(cell: Cell, model: Model, run: Session, place: Place) -> Iterator[tuple[Need, Need]]:
    """What all splits take together, and the largest one; nothing where nobody can say: the cell itself will."""
    try:
        target, _ = target_of(cell.aim, place, run.device)
        evaluation: Evaluation = registry.load("protocol", cell.protocol)
        counts = [len(part) for part in (target.train, target.validation, target.test)]
        taps = list(dict.fromkeys(evaluation.taps(model.encoder))) if sum(counts) >= FEW else []
        widths = tuple(width(model.encoder, tap, target, run) for tap in taps)
    except Exception:  # noqa: BLE001 - as above
        return
    if widths:
        yield Need(sum(counts), widths, cell.aim.features), Need(max(counts), widths, cell.aim.features)


def width(encoder: Encoder, tap: Tap, target: Target, run: Run) -> int:
    """How many numbers a tap gives of an image."""
    side = tap.side or target.test.images.side
    if side is None:
        raise BenchError("images of varying sizes: their own cell will tell")
    with frozen(encoder):
        black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=run.device)
        return read(encoder, black, [tap], run)[tap].shape[1]
