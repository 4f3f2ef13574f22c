"""Boxes that might hold an object: windows of fixed shapes, and selective search.

Boxes are float32 (k, 4): pixel edges left, top, right, bottom. The first few are some of every kind.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bench.draws import order
from bench.records import BenchError

__all__ = ["Finder", "finder", "selective_search", "windows"]

SIZES = (0.2, 0.28, 0.4, 0.56, 0.8)  # of windows: the root of their area, over the image's shorter side
ASPECTS = (0.5, 1.0, 2.0)  # width over height
STEP = 0.25  # between neighbors, of the window's own side
LEAST = 4  # pixels: smaller boxes of selective search are dropped

Finder: TypeAlias = "Callable[[Tensor], Tensor]"  # an image uint8 (3, H, W) to boxes (k, 4)


def windows(height: int, width: int) -> Tensor:
    """Windows (k, 4) of five sizes and three shapes all over an image."""
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
    return _mixed(torch.cat(boxes))


def selective_search() -> tuple[str, Finder]:
    """OpenCV's version, on which boxes hang, and its search: Uijlings et al.'s (IJCV 2013), "fast" mode.

    :raises BenchError: OpenCV is not installed, or comes without its contrib modules.
    """
    try:
        cv2: Any = importlib.import_module("cv2")
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    except (ImportError, AttributeError):
        raise BenchError(
            "selective search needs OpenCV with its contrib modules: pip install opencv-contrib-python-headless (the extra voc); "
            "or name a proposal file, or write proposals = windows or rpn"
        ) from None

    def boxes(image: Tensor) -> Tensor:
        search.setBaseImage(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()[:, :, ::-1]))
        search.switchToSelectiveSearchFast()
        x, y, w, h = torch.from_numpy(np.asarray(search.process(), np.float32)).unbind(1)
        found = torch.stack([x, y, x + w, y + h], 1)[(w >= LEAST) & (h >= LEAST)]
        # OpenCV's order hangs on what C's rand() gave before: sorted and then mixed it is always the same.
        table: Tensor = torch.unique(found, dim=0)
        return _mixed(table)

    return cv2.__version__, boxes


def _mixed(boxes: Tensor) -> Tensor:
    return boxes[order(len(boxes), 0)]


def finder(kind: str) -> Finder:
    """What finds the boxes of an image: ``selective_search`` or ``windows``."""
    return selective_search()[1] if kind == "selective_search" else lambda image: windows(*image.shape[1:])
