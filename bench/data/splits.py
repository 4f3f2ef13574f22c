"""Which images are labeled, held out or mislabeled: by SHA-256, never by a random generator.

Within a class, images are taken in ascending order of the SHA-256 of ``dataset:split:index``. So the
splits are balanced, nested (250 within 500 within 1000) and the same on every machine and version.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.records import BenchError

Indices = NDArray[np.int64]


@functools.lru_cache(maxsize=16)
def hashes(prefix: str, count: int) -> NDArray[np.uint64]:
    """uint64 (count, 4): the SHA-256 of ``f"{prefix}:{index}"``, most significant word first."""
    start = hashlib.sha256(f"{prefix}:".encode())
    words = bytearray()
    for index in range(count):
        state = start.copy()
        state.update(b"%d" % index)
        words += state.digest()
    table = np.frombuffer(bytes(words), ">u8").reshape(count, 4).astype(np.uint64)
    table.setflags(write=False)
    return table


@functools.lru_cache(maxsize=16)
def places(prefix: str, count: int) -> Indices:
    """int64 (count,): the place of each index in the ascending order of its hash."""
    order = np.lexsort(hashes(prefix, count).T[::-1])
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    place.setflags(write=False)
    return place


def _balanced(labels: NDArray[np.int64], allowed: NDArray[np.bool_], place: Indices) -> Indices:
    """The allowed indices, the first of every class, then the second of every class, ..."""
    index = np.flatnonzero(allowed)
    index = index[np.lexsort((place[index], labels[index]))]
    ordered = labels[index]
    rank = np.arange(len(index)) - np.searchsorted(ordered, ordered)
    return index[np.lexsort((place[index], rank))].astype(np.int64)


def _first(order: Indices, n: int, what: str) -> Indices:
    if not 0 <= n <= len(order):
        raise BenchError(f"{what}: asked for {n}, but there are {len(order)}; write 0 to {len(order)}")
    return order[:n]


def labeled(labels: ArrayLike, n: int, dataset: str, split: int, classes: Sequence[int] = ()) -> Indices:
    """The ``n`` images whose label is shown, int64 (n,), in the order in which they are taken.

    Balanced to within one image while every class lasts; a smaller ``n`` gives a prefix.

    :param labels: int (N,), -1 where unknown: such images are never taken.
    :param classes: take these only; () is all.
    :raises BenchError: more images than there are.
    """
    truth = np.asarray(labels, np.int64)
    allowed = truth >= 0 if not classes else np.isin(truth, classes) & (truth >= 0)
    order = _balanced(truth, allowed, places(f"{dataset}:{split}", len(truth)))
    return _first(order, n, f"labels of {dataset}" + (f" in classes {list(classes)}" if classes else ""))


def validation(labels: ArrayLike, n: int, dataset: str, resample: int) -> Indices:
    """The ``n`` images that are held out, int64 (n,): balanced and nested as :func:`labeled`."""
    truth = np.asarray(labels, np.int64)
    order = _balanced(truth, truth >= 0, places(f"{dataset}:validation:{resample}", len(truth)))
    return _first(order, n, f"validation images of {dataset}")


def unlabeled(allowed: ArrayLike, n: int, dataset: str, split: int) -> Indices:
    """``n`` of the images that may serve without a label, int64 (n,): nested, and blind to their classes."""
    may = np.asarray(allowed, np.bool_)
    place = places(f"{dataset}:unlabeled:{split}", len(may))
    index = np.flatnonzero(may)
    return _first(index[np.argsort(place[index])], n, f"unlabeled images of {dataset}")


def noisy(labels: ArrayLike, fraction: float, dataset: str, split: int, classes: int) -> Indices:
    """Labels, int64 (N,), a ``fraction`` of the known ones replaced by a uniform draw over all classes.

    The draw may hit the true class, as in the papers. What a smaller fraction replaces, a larger one
    replaces too, by the same label. Unknown labels (-1) stay unknown.
    """
    if not 0 <= fraction <= 1:
        raise BenchError(f"label noise must lie in 0 to 1, not {fraction}")
    out = np.array(labels, np.int64)
    prefix = f"{dataset}:noise:{split}"
    known = np.flatnonzero(out >= 0)
    order = known[np.argsort(places(prefix, len(out))[known])]
    hit = order[: round(fraction * len(order))]
    # The last word draws the class: the first one, which ordered the images, would favor low classes.
    out[hit] = (hashes(prefix, len(out))[hit, 3] % np.uint64(classes)).astype(np.int64)
    return out


def split_digest(indices: ArrayLike) -> str:
    """SHA-256 (64 hex digits) of the sorted indices, written in decimal and joined by commas."""
    text = ",".join(map(str, np.sort(np.asarray(indices, np.int64)).tolist()))
    return hashlib.sha256(text.encode()).hexdigest()
