"""How maps are made smaller before a probe reads them: the published recipes, by name.

A linear probe per layer compares layers at about equal width, 9,000 to 10,000 numbers, and each paper
got there in its own way. :func:`pool` is all of them: (N, C, H, W) to (N, C, h, w).

Nothing here enlarges a map. Where a map is smaller than the grid that a recipe asks for, the grid is
the map's own side; where it is smaller than a window, the window is the map and one number is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor
from torch.nn import functional as F

from bench.records import BenchError

__all__ = ["NAMES", "grid_for", "pool"]

# Sides of the grids by layer. Zhang et al., ECCV 2016: linear classifiers; pool5 is 6x6 already.
_ZHANG = {"conv1": 10, "pool1": 10, "conv2": 6, "pool2": 6, "conv3": 5, "conv4": 5, "conv5": 6, "pool5": 6}
# Gidaris et al., ICLR 2018: for 64-192-384-256-256 maps.
_ROTNET = {"conv1": 12, "conv2": 7, "conv3": 5, "conv4": 6, "conv5": 6}

Window = tuple[int, int, int]  # kernel, stride, padding
# Goyal et al., ICCV 2019: CaffeNet at 227 px, and the Jigsaw AlexNet (conv1 of stride 2) at 227 px.
_GOYAL: Mapping[str, Window] = {
    "conv1": (19, 4, 0),
    "conv2": (12, 3, 0),
    "conv3": (9, 1, 0),
    "conv4": (9, 1, 0),
    "conv5": (8, 1, 0),
}
_GOYAL_JIGSAW: Mapping[str, Window] = {
    "conv1": (28, 9, 0),
    "pool1": (6, 6, 3),
    "conv2": (24, 6, 0),
    "pool2": (4, 4, 0),
    "conv3": (14, 3, 0),
    "conv4": (14, 3, 0),
    "conv5": (16, 2, 0),
    "pool5": (2, 2, 0),
}
# Caron et al., ECCV 2018: eval_linear.py. Asano et al. (ICLR 2020) take the maximum over the same windows.
_DEEPCLUSTER: Mapping[str, Window] = {
    "conv1": (6, 6, 3),
    "conv2": (4, 4, 0),
    "conv3": (3, 3, 1),
    "conv4": (3, 3, 1),
    "conv5": (2, 2, 0),
}
_KOLESNIKOV = 9000  # Kolesnikov et al., CVPR 2019: at most so many features

T = TypeVar("T")
Pooling = Callable[[Tensor, int, str], Tensor]


def grid_for(channels: int, dims: int) -> int:
    """The side of the largest square grid with channels x side^2 <= dims; 1 where even that is too wide."""
    return max(1, math.isqrt(dims // channels))


def _clamped(maps: Tensor, side: int) -> tuple[int, int]:
    """The grid, no larger than the map."""
    return min(side, maps.shape[2]), min(side, maps.shape[3])


def _average(maps: Tensor, side: int) -> Tensor:
    return F.adaptive_avg_pool2d(maps, _clamped(maps, side))


def _maximum(maps: Tensor, side: int) -> Tensor:
    return F.adaptive_max_pool2d(maps, _clamped(maps, side))


def _bilinear(maps: Tensor, side: int) -> Tensor:
    return F.interpolate(maps, _clamped(maps, side), mode="bilinear", align_corners=False)


def _look_up(table: Mapping[str, T], layer: str, name: str) -> T:
    if layer not in table:
        raise BenchError(f"pooling {name!r} has no entry for layer {layer!r}; it has: {', '.join(table)}")
    return table[layer]


def _by_side(
    reduce: Callable[[Tensor, int], Tensor], name: str, table: Mapping[str, int] | None = None
) -> Pooling:
    """To a grid of ``size`` a side; a table by layer stands in where ``size`` is 0."""

    def pooling(maps: Tensor, size: int, layer: str) -> Tensor:
        if size < 1 and table is None:
            raise BenchError(f"pooling {name!r} needs a size (the side of its grid) of 1 or more, not {size}")
        return reduce(maps, size if size > 0 or table is None else _look_up(table, layer, name))

    return pooling


def _by_dims(reduce: Callable[[Tensor, int], Tensor], name: str, default: int = 0) -> Pooling:
    """To the largest square grid of at most ``size`` numbers, or ``default`` where ``size`` is 0."""

    def pooling(maps: Tensor, size: int, _layer: str) -> Tensor:
        if size < 1 and not default:
            raise BenchError(
                f"pooling {name!r} needs a size (how many features at most) of 1 or more, not {size}"
            )
        return reduce(maps, grid_for(maps.shape[1], size if size > 0 else default))

    return pooling


def _by_window(average: bool, name: str, table: Mapping[str, Window]) -> Pooling:
    """A fixed window per layer; an average counts the padding, as torch and Caffe do. ``size`` says nothing."""

    def pooling(maps: Tensor, _size: int, layer: str) -> Tensor:
        kernel, stride, padding = _look_up(table, layer, name)
        height, width = maps.shape[2:]
        if min(height, width) + 2 * padding < kernel:
            return _average(maps, 1) if average else _maximum(maps, 1)
        if average:
            return F.avg_pool2d(maps, kernel, stride, padding, count_include_pad=True)
        return F.max_pool2d(maps, kernel, stride, padding)

    return pooling


_POOLINGS: Mapping[str, Pooling] = {
    "none": lambda maps, _size, _layer: maps,
    "adaptive_avg": _by_side(_average, "adaptive_avg"),
    "adaptive_max": _by_side(_maximum, "adaptive_max"),
    "zhang_resize": _by_side(_bilinear, "zhang_resize", _ZHANG),
    "goyal_avg": _by_window(True, "goyal_avg", _GOYAL),
    "goyal_jigsaw_avg": _by_window(True, "goyal_jigsaw_avg", _GOYAL_JIGSAW),
    "rotnet_max": _by_side(_maximum, "rotnet_max", _ROTNET),
    "deepcluster_avg": _by_window(True, "deepcluster_avg", _DEEPCLUSTER),
    "asano_max": _by_window(False, "asano_max", _DEEPCLUSTER),
    "kolesnikov_max": _by_dims(_maximum, "kolesnikov_max", _KOLESNIKOV),
    "cpc_mean": lambda maps, _size, _layer: _average(maps, 1),
    "dims_avg": _by_dims(_average, "dims_avg"),
    "dims_max": _by_dims(_maximum, "dims_max"),
}
NAMES = tuple(_POOLINGS)


def pool(maps: Tensor, name: str, size: int = 0, layer: str = "") -> Tensor:
    """Maps (N, C, H, W) to (N, C, h, w), by a recipe's name.

    - ``none``: as they are (also for features (N, D)).
    - ``adaptive_avg``, ``adaptive_max``: to a grid of ``size`` x ``size``.
    - ``zhang_resize``: bilinear to 10/6/5/5/6 for conv1..conv5 (Zhang et al., ECCV 2016; bilinear by
      their text, CVPR 2017, section 4.1.1; the fork of Caffe that did it is lost, no antialiasing is believed).
    - ``goyal_avg``, ``goyal_jigsaw_avg``: averages over windows by layer, for CaffeNet and for the Jigsaw
      AlexNet with conv1 of stride 2, at 227 px (Goyal et al., ICCV 2019).
    - ``rotnet_max``: adaptive maximum to 12/7/5/6/6 (Gidaris et al., ICLR 2018).
    - ``deepcluster_avg``: averages over windows, padding counted (Caron et al., ECCV 2018);
      ``asano_max``: the maximum over the same ones (Asano et al., ICLR 2020).
    - ``kolesnikov_max``: adaptive maximum to at most 9,000 features (Kolesnikov et al., CVPR 2019).
    - ``cpc_mean``: the mean over the map (van den Oord et al., 2018).
    - ``dims_avg``, ``dims_max``: adaptive to the largest square grid with C x h x w <= ``size``.

    :param size: see above; for zhang_resize and rotnet_max a side other than the table's, for kolesnikov_max
        another limit, where it is not 0.
    :param layer: the tap's name, for the recipes that go by layer.
    :raises BenchError: an unknown name, layer, or a missing size.
    """
    if name not in _POOLINGS:
        raise BenchError(f"there is no pooling {name!r}; known are: {', '.join(NAMES)}")
    if maps.ndim != 4 and name != "none":
        raise BenchError(
            f"pooling {name!r} needs maps (N, C, H, W), not a tensor of shape {tuple(maps.shape)}"
        )
    return _POOLINGS[name](maps, size, layer)
