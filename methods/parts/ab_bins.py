"""Colors as classes: the plane of a and b in bins, softly encoded, and rebalanced by how rare they are.

Zhang, Isola & Efros, Colorful Image Colorization, ECCV 2016, section 2.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from methods.parts.lab import to_lab

_EDGE = 120.0  # beyond all a and b of sRGB
_FINE = 4  # cells of the table of candidates, per step and axis


class AbBins(nn.Module):
    """Bins on a grid in the plane of a and b, as far as sRGB reaches: ``centers`` (Q, 2).

    :param step: of the grid; ``neighbors``: bins that encode a color; ``sigma``: of their Gaussian weights.
    """

    centers: Tensor
    nearby: Tensor
    nearby_a: Tensor
    nearby_b: Tensor

    def __init__(self, step: float = 10.0, neighbors: int = 5, sigma: float = 5.0) -> None:
        super().__init__()
        self.step, self.neighbors, self.sigma = step, neighbors, sigma
        self.register_buffer("centers", gamut(step).clone())
        nearby = _candidates(step, neighbors).clone()
        a, b = self.centers[nearby].unbind(2)
        for name, table in (("nearby", nearby), ("nearby_a", a), ("nearby_b", b)):
            self.register_buffer(name, table.contiguous(), persistent=False)

    def __len__(self) -> int:
        return len(self.centers)

    def forward(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Colors (M, 2) to their nearest bins, nearest first, and the weights of these: int64, float (M, k).

        Weights are Gaussian in the distance and sum to 1.
        """
        side = self.step / _FINE
        last = round(2 * _EDGE / side) - 1
        across, down = ((ab + _EDGE) / side).long().clamp_(0, last).unbind(1)
        cell = across * (last + 1) + down
        squared = (self.nearby_a.index_select(0, cell) - ab[:, :1]).square_()
        squared += (self.nearby_b.index_select(0, cell) - ab[:, 1:]).square_()
        squared, place = squared.topk(self.neighbors, dim=1, largest=False)
        weights = torch.exp((squared - squared[:, :1]) / (-2 * self.sigma**2))
        return self.nearby.index_select(0, cell).gather(1, place), weights / weights.sum(1, keepdim=True)

    def prior(self, counts: Tensor) -> Tensor:
        """How likely each bin is (Q,): counts of nearest bins, smoothed by the Gaussian of ``sigma`` (p~)."""
        apart = torch.cdist(self.centers.double(), self.centers.double()).square()
        kernel = torch.exp(apart / (-2 * self.sigma**2))
        found = (kernel / kernel.sum(0)) @ counts.double()
        return (found / found.sum()).float()

    def annealed_mean(self, scores: Tensor, temperature: float = 0.38) -> Tensor:
        """Scores (N, Q, H, W) to colors (N, 2, H, W): the mean of their sharpened distribution (eq. 5)."""
        sharp = torch.softmax(scores.float() / temperature, 1)
        return torch.einsum("nqhw,qc->nchw", sharp, self.centers)


def rebalanced(prior: Tensor, uniform: float = 0.5) -> Tensor:
    """Weights of the bins (Q,), 1 on average under the prior (eq. 4); ``uniform`` 1: all weigh the same.

    w is proportional to 1 / ((1 - uniform) prior + uniform / Q).
    """
    weights = 1 / ((1 - uniform) * prior + uniform / len(prior)).clamp_min(1e-12)
    return weights / (prior * weights).sum()


@functools.cache
def gamut(step: float = 10.0) -> Tensor:
    """The corners of the grid's cells that hold an 8-bit sRGB color: (Q, 2), in order of a, then b.

    309 for a step of 10. The paper has 313 and does not say how it counts; nearest corners alone are 261.
    """
    # The plane's extent is that of the cube's faces: the inside of the cube lies within.
    levels = torch.arange(256) / 255
    u, v = torch.meshgrid(levels, levels, indexing="ij")
    faces = [(torch.full_like(u, end), u, v) for end in (0.0, 1.0)]
    turned = [torch.stack([face[(k - axis) % 3] for k in range(3)]) for face in faces for axis in range(3)]
    ab = to_lab(torch.stack(turned), "ab").permute(0, 2, 3, 1).reshape(-1, 2)
    cells: Tensor = torch.unique((ab / step).floor().long(), dim=0)
    corners = torch.cat([cells + torch.tensor([i, j]) for i in (0, 1) for j in (0, 1)])
    found: Tensor = torch.unique(corners, dim=0) * step
    return found


@functools.cache
def _candidates(step: float, neighbors: int) -> Tensor:
    """For each fine cell of the plane, the bins that may be among the k nearest of a color in it: (cells, K)."""
    side = step / _FINE
    axis = torch.arange(round(2 * _EDGE / side)) * side + side / 2 - _EDGE
    distances, bins = torch.cdist(torch.cartesian_prod(axis, axis), gamut(step)).sort(1)
    # A cell's point is at most half a diagonal from its middle, so the k nearest lie within one diagonal more.
    reach = distances[:, neighbors - 1 : neighbors] + side * 2**0.5 + 1e-3
    return bins[:, : int((distances <= reach).sum(1).max())].contiguous()


# ---- hard bins ------------------------------------------------------------------------------------


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
