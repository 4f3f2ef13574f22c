"""CIE Lab colors and the bins of their chroma."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_LEVELS = 64  # of each of red, green and blue: the gamut is looked through in so many steps


def to_lab(images: Tensor) -> Tensor:
    """Pixels of sRGB in [0, 1], (N, 3, H, W), to L in 0 ... 100 and a, b (D65): (N, 3, H, W). Gray has a = b = 0."""
    linear = torch.where(
        images > 0.04045, ((images.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, images / 12.92
    )
    matrix = images.new_tensor(_TO_XYZ)
    matrix = matrix / matrix.sum(1, keepdim=True)
    xyz = torch.einsum("nchw,dc->ndhw", linear, matrix)
    root = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@functools.lru_cache(maxsize=4)
def grid_bins(step: int = 10) -> Tensor:
    """Centers (Q, 2) of the cells of an ab grid that hold a color of sRGB: 261 of side 10.

    After Zhang et al., ECCV 2016, section 2.1; the list in their release has 313.
    """
    level = torch.linspace(0, 1, _LEVELS, dtype=torch.float64)
    colors = torch.cartesian_prod(level, level, level)
    ab = to_lab(colors[:, :, None, None])[:, 1:, 0, 0]
    return torch.unique((ab / step).round(), dim=0).mul(step).float()  # type: ignore[no-any-return]


def quantile_bins(ab: Tensor, slices: int) -> Tensor:
    """Centers (slices^2, 2) of colors (M, 2): as many in each slice of a, and of b within each of these."""
    columns = ab[ab[:, 0].argsort(stable=True)].tensor_split(slices)
    cells = [cell for column in columns for cell in _slices_of_b(column, slices)]
    return torch.stack([cell.mean(0) for cell in cells])


def _slices_of_b(column: Tensor, slices: int) -> tuple[Tensor, ...]:
    ordered: tuple[Tensor, ...] = column[column[:, 1].argsort(stable=True)].tensor_split(slices)
    return ordered


def nearest_bin(ab: Tensor, centers: Tensor) -> Tensor:
    """The nearest of the centers (Q, 2) to colors (N, 2, H, W): int64 (N, H, W)."""
    flat = ab.movedim(1, -1).reshape(-1, 2)
    # |x - c|^2 without |x|^2, which is the same for all centers.
    far = centers.square().sum(1) - 2 * flat @ centers.T
    return far.argmin(1).view(len(ab), *ab.shape[2:])
