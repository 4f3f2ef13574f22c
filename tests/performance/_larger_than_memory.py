"""A cached probe of 1,280,000 images, the first 2% of an epoch: what ``test_larger_than_memory`` measures.

Features are drawn as they are read, where a disk would have them; all else is what a run does. Prints what a person
sees, and the peak memory of this process.
"""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor

from bench import registry
from bench.contracts import Cache, Model, Room, Rows, Samples, Target
from bench.data.sources import Reader, Streamed
from bench.features import Need
from bench.outlook import Clock
from bench.records import Unit
from bench.session import Session

IMAGES, JUDGED, WIDTH, CLASSES, LAYERS = 1_280_000, 50_000, 9600, 1000, 5
PART = 0.02


class Drawn(Rows):
    """Rows by number: a pattern a class and a little noise."""

    def __init__(self, count: int) -> None:
        self.shape = (count, WIDTH)
        generator = torch.Generator().manual_seed(0)
        self.classes = torch.randn(CLASSES, WIDTH, generator=generator).half()
        self.noise = torch.randn(4 * WIDTH, generator=generator).half()

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        index = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows
        found = self.classes[index % CLASSES].float()
        for line, place in zip(found, (index % (3 * WIDTH)).tolist(), strict=True):
            line.add_(self.noise[place : place + WIDTH])
        return found


class DrawnCache(Cache):
    """As if every layer had been extracted."""

    def __init__(self) -> None:
        self.kept = {count: Drawn(count) for count in (IMAGES, JUDGED)}
        self.count = IMAGES

    def get(self, key: str) -> Tensor | None:
        return None

    def put(self, key: str, value: Tensor) -> None: ...

    def rows(self, key: str) -> Rows | None:
        return self.kept[self.count]

    def room(self) -> Room:
        return Room("CACHE", 8e9, 80e9)


class Nothing(Reader):
    """So many images, none of which is read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, i: int) -> Tensor:
        raise AssertionError(i)


class EnoughError(Exception):
    """The part is done."""


def samples(name: str, count: int) -> Samples:
    return Samples(name, Streamed(Nothing(count), workers=0), torch.arange(count) % CLASSES)


def main(folder: Path) -> None:
    """Probe, until 2% of an epoch are done."""
    torch.set_num_threads(1)
    seen: list[str] = []
    per_epoch = IMAGES // 192

    def progress(what: str, done: int, total: int) -> None:
        seen.append(f"{what}: {done} of {total}")
        if done >= PART * per_epoch:
            raise EnoughError

    encoder = registry.load("backbone", Unit("alexnet_small")).build(generator=torch.Generator())
    cache = DrawnCache()
    run = Session(folder, seed=0, device=torch.device("cpu"), cache=cache, weights_digest="w")
    clock = Clock()
    run.report = lambda done, total: progress("linear_probe" + clock.left(done, total), done, total)
    settings = {"augment": "none", "layers": tuple(encoder.layers)[:LAYERS]}
    probe = registry.load("protocol", Unit.of("linear_probe", settings))
    from protocols import _batches, _features, linear_probe

    def features(model: Model, samples: Samples, taps: object, run: Session) -> object:
        cache.count = len(samples)
        return _features.features(model, samples, taps, run)

    _batches.features = linear_probe.features = features
    target = Target(samples("train", IMAGES), samples("validation", 0), samples("test", JUDGED), CLASSES)
    try:
        list(probe.evaluate(Model(encoder), target, run))
    except EnoughError:
        print("progress", seen[-1])
    need = Need(IMAGES + JUDGED, (WIDTH,) * LAYERS, "float32")
    print("forecast", need.too_large_for(cache.room()))
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    logging.basicConfig()
    main(Path(sys.argv[1]))
