"""Boxes that might hold an object: from a file, by selective search, or windows of fixed shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bench import regions
from bench.contracts import BenchError, Run, Samples
from bench.records import digest
from protocols._dense import whole

SLICE_SECONDS = 20.0  # of selective search: what an interruption may lose


def given(samples: Samples, run: Run) -> list[Tensor]:
    """Each image's boxes (k, 4) from the file that the dataset's setting ``proposals`` names."""
    found = [one.get("proposals") for one in samples.boxes or ()]
    if any(one is None for one in found):
        raise BenchError(
            f"{samples.name} comes without proposals; name a file in the dataset's setting proposals "
            "(`bench data convert` writes it), or write proposals = selective_search, windows or rpn"
        )
    return [one for one in found if one is not None]


def windows(samples: Samples, run: Run) -> list[Tensor]:
    """Windows (k, 4) of five sizes and three shapes all over each image."""
    known: dict[tuple[int, int], Tensor] = {}
    return [known.setdefault(size, regions.windows(*size)) for size in _sizes(samples)]


def _sizes(samples: Samples) -> list[tuple[int, int]]:
    if samples.images.side is not None:
        return [(samples.images.side, samples.images.side)] * len(samples)
    return [(image.shape[1], image.shape[2]) for _, image in _each(samples)]


def _each(samples: Samples, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    picks = [torch.tensor([i]) for i in range(first, len(samples))]
    yield from ((i, images[0]) for i, images in enumerate(whole(samples.images, picks), first))


def selective_search(samples: Samples, run: Run) -> list[Tensor]:
    """Uijlings et al.'s (IJCV 2013) boxes (k, 4), "fast" mode, by OpenCV; kept in the run's cache."""
    version, search = regions.selective_search()
    key = digest(["selective search", version, samples.name, len(samples)], 32)
    table = run.cache.get(key)
    if table is None:
        table = _sliced(samples, run, key, search)
        run.cache.put(key, table)
    counts = torch.bincount(table[:, 0].long(), minlength=len(samples)).tolist()
    return list(table[:, 1:].split(counts))  # type: ignore[no-untyped-call]  # torch's own


def _sliced(samples: Samples, run: Run, key: str, search: regions.Finder) -> Tensor:
    """Rows (image, box) of all images, found in slices that are kept: an interruption loses the last one."""
    rows, first = [torch.zeros(0, 5)], 0
    while first < len(samples):
        found = run.cache.get(f"{key} from {first}")
        if found is None:
            found = _slice(samples, first, search)
            run.cache.put(f"{key} from {first}", found)
        first = int(found[0, 0])
        rows.append(found[1:])
    return torch.cat(rows)


def _slice(samples: Samples, first: int, search: regions.Finder) -> Tensor:
    """The rows of the images from ``first`` on for some seconds; above them a row that says where the next begin."""
    until, found, i = time.monotonic() + SLICE_SECONDS, [], first
    for i, image in _each(samples, first):
        boxes = search(image)
        found.append(torch.cat([torch.full((len(boxes), 1), float(i)), boxes], 1))
        if time.monotonic() > until:
            break
    return torch.cat([torch.tensor([[i + 1.0, 0, 0, 0, 0]]), *found])


SOURCES: dict[str, Callable[[Samples, Run], Sequence[Tensor]]] = {
    "selective_search": selective_search,
    "file": given,
    "windows": windows,
}
