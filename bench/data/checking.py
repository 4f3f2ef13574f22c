"""Are a dataset's files there, whole, and as many as were published?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bench.contracts import Dataset, Samples
from bench.cores import usable_cores
from bench.data._telling import Telling
from bench.data.sources import Streamed
from bench.data.standins import is_standin
from bench.records import BenchError

T = TypeVar("T")


PUBLISHED = {
    "imagenet": {"train": 1_281_167, "val": 50_000},
    "places205": {"train": 2_448_873, "val": 20_500},
    "places365": {"train": 1_803_460, "val": 36_500},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "svhn": {"train": 73_257, "extra": 531_131, "test": 26_032},
    "stl10": {"train": 5_000, "test": 8_000, "unlabeled": 100_000},
}
_FIRST = {  # what files of an ending begin with; an image may have another's ending, as some of ImageNet's do
    ".mat": (b"MATLAB", b"\x89HDF"),
    ".xml": (b"<",),
}
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6", b"P2", b"P3")
_FIRST |= dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"), _IMAGES)


@dataclass(frozen=True)
class Report:
    """Lines to be read, and what is wrong."""

    counts: list[str]
    problems: list[str]
    standin: bool


def check(dataset: Dataset, root: Path, *, deep: bool) -> Report:
    """Look at all files of a dataset; with ``deep``, decode every image."""
    marked = is_standin(dataset.name, root)
    problems = Dataset.check(dataset, root) if marked else dataset.check(root)
    if problems:
        return Report([], problems, marked)
    files = dataset.paths(root)
    problems = [line for line in _each(_damage, files, f"{dataset.name}: files") if line]
    splits = ("train", dataset.test_split) if marked else dataset.splits
    counts = []
    for split in splits if files else ():
        samples = dataset.load(split, root)
        counts.append(f"{split} {_counted(samples)}")
        if not marked:
            problems += _other_count(dataset, split, len(samples))
        if deep:
            problems += _undecodable(samples, f"{dataset.name} {split}: images")
    return Report(counts, list(dict.fromkeys(problems)), marked)


def _counted(samples: Samples) -> str:
    if samples.labels is None:
        return f"{len(samples):,}"
    each = np.bincount(samples.labels[samples.labels >= 0].numpy())
    return f"{len(samples):,} ({each.min():,} to {each.max():,} in each of {len(each)} classes)"


def _other_count(dataset: Dataset, split: str, count: int) -> Iterator[str]:
    """A line where there are not as many images as published; a choice of them has no published count."""
    fields: tuple[dataclasses.Field[object], ...] = ()
    if dataclasses.is_dataclass(dataset):
        fields = dataclasses.fields(dataset)
    default = all(getattr(dataset, f.name) == f.default for f in fields)
    expected = PUBLISHED.get(dataset.name, {}).get(split, count) if default else count
    if count != expected:
        yield f"{dataset.name} {split}: {count:,} images, published are {expected:,}: unpack it again"


def _damage(path: Path) -> str:
    """What the size and the first bytes of a file say against it, or nothing."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}): restore the file"
    if not head:
        return f"{path}: empty: restore the file"
    known = _FIRST.get(path.suffix.lower(), (b"",))
    return (
        ""
        if head.startswith(known)
        else f"{path}: no {path.suffix} file by its first bytes: replace the file"
    )


def _undecodable(samples: Samples, what: str) -> list[str]:
    if not isinstance(samples.images, Streamed):
        return []
    reader = samples.images.reader

    def broken(i: int) -> str:
        try:
            reader.read(i)
        except BenchError as error:
            return str(error)
        return ""

    return [line for line in _each(broken, range(len(reader)), what) if line]


def _each(ask: Callable[[T], str], items: Sequence[T], what: str) -> Iterator[str]:
    telling = Telling(what, len(items))
    with ThreadPoolExecutor(2 * usable_cores()) as pool:
        for answer in pool.map(ask, items):
            telling.step()
            yield answer
    telling.end()
