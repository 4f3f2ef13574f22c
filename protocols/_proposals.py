"""Boxes that might hold an object: from a file, by selective search, or windows of fixed shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench import regions
from bench.contracts import BenchError, Run, Samples
from bench.records import digest
from protocols._dense import whole


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


def _each(samples: Samples) -> list[tuple[int, Tensor]]:
    picks = [torch.tensor([i]) for i in range(len(samples))]
    return [(i, images[0]) for i, images in enumerate(whole(samples.images, picks))]


def selective_search(samples: Samples, run: Run) -> list[Tensor]:
    """Uijlings et al.'s (IJCV 2013) boxes (k, 4), "fast" mode, by OpenCV; kept in the run's cache."""
    version, search = regions.selective_search()
    key = digest(["selective search", version, samples.name, len(samples)], 32)
    table = run.cache.get(key)
    if table is None:
        rows = [(i, search(image)) for i, image in _each(samples)]
        table = torch.cat([torch.cat([torch.full((len(b), 1), float(i)), b], 1) for i, b in rows])
        run.cache.put(key, table)
    counts = torch.bincount(table[:, 0].long(), minlength=len(samples)).tolist()
    return list(table[:, 1:].split(counts))  # type: ignore[no-untyped-call]  # torch's own


SOURCES: dict[str, Callable[[Samples, Run], Sequence[Tensor]]] = {
    "selective_search": selective_search,
    "file": given,
    "windows": windows,
}
