"""Boxes that might hold an object: from a file, by selective search, or windows of fixed shapes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contracts import BenchError, Run, Samples
from bench.draws import order
from bench.records import digest
from protocols._dense import whole

SIZES = (0.2, 0.28, 0.4, 0.56, 0.8)  # of windows: the root of their area, over the image's shorter side
ASPECTS = (0.5, 1.0, 2.0)  # width over height
STEP = 0.25  # between neighbors, of the window's own side
LEAST = 4  # pixels: smaller boxes of selective search are dropped


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
    return [known.setdefault(size, _windows(*size)) for size in _sizes(samples)]


def _sizes(samples: Samples) -> list[tuple[int, int]]:
    if samples.images.side is not None:
        return [(samples.images.side, samples.images.side)] * len(samples)
    return [(image.shape[1], image.shape[2]) for _, image in _each(samples)]


def _each(samples: Samples) -> list[tuple[int, Tensor]]:
    picks = [torch.tensor([i]) for i in range(len(samples))]
    return [(i, images[0]) for i, images in enumerate(whole(samples.images, picks))]


def _windows(height: int, width: int) -> Tensor:
    boxes = []
    for size in SIZES:
        for aspect in ASPECTS:
            w, h = size * min(height, width) * aspect**0.5, size * min(height, width) / aspect**0.5
            if w <= width and h <= height:
                x, y = (
                    torch.linspace(0, over, 1 + int(over / (STEP * side)))
                    for over, side in ((width - w, w), (height - h, h))
                )
                corners = torch.cartesian_prod(x, y)
                boxes.append(torch.cat([corners, corners + torch.tensor([w, h])], 1))
    table = torch.cat(boxes)
    return table[order(len(table), 0)]  # mixed, so that the first few are some of every kind


def selective_search(samples: Samples, run: Run) -> list[Tensor]:
    """Uijlings et al.'s (IJCV 2013) boxes (k, 4), "fast" mode, by OpenCV; kept in the run's cache."""
    version, search = _searcher()
    key = digest(["selective search", version, samples.name, len(samples)], 32)
    table = run.cache.get(key)
    if table is None:
        rows = [(i, search(image)) for i, image in _each(samples)]
        table = torch.cat([torch.cat([torch.full((len(b), 1), float(i)), b], 1) for i, b in rows])
        run.cache.put(key, table)
    counts = torch.bincount(table[:, 0].long(), minlength=len(samples)).tolist()
    return list(table[:, 1:].split(counts))  # type: ignore[no-untyped-call]  # torch's own


def _searcher() -> tuple[str, Callable[[Tensor], Tensor]]:
    """OpenCV's version, which moves boxes, and its search: an image (3, H, W) to boxes (k, 4)."""
    try:
        cv2: Any = importlib.import_module("cv2")
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    except (ImportError, AttributeError):
        raise BenchError(
            "selective search needs OpenCV with its contrib modules: pip install 'representation-bench[voc]'; "
            "or name a proposal file, or write proposals = windows or rpn"
        ) from None

    def boxes(image: Tensor) -> Tensor:
        search.setBaseImage(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()[:, :, ::-1]))
        search.switchToSelectiveSearchFast()
        x, y, w, h = torch.from_numpy(np.asarray(search.process(), np.float32)).unbind(1)
        found = torch.stack([x, y, x + w, y + h], 1)[(w >= LEAST) & (h >= LEAST)]
        # OpenCV's order hangs on what C's rand() gave before: sorted, and mixed as windows are, it is always the same.
        table: Tensor = torch.unique(found, dim=0)
        return table[order(len(table), 0)]

    return cv2.__version__, boxes


SOURCES: dict[str, Callable[[Samples, Run], Sequence[Tensor]]] = {
    "selective_search": selective_search,
    "file": given,
    "windows": windows,
}
