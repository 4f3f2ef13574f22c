"""Convex combinations of pairs of images and of their labels.

Zhang, Cisse, Dauphin & Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018, eq. 1 and 2;
Berthelot et al., MixMatch, NeurIPS 2019, eq. 8 to 11.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shares(like: Tensor, alpha: float, *, per_sample: bool, dominant: bool) -> Tensor:
    """Draws of Beta(alpha, alpha), one for each row of ``like`` or one for all: (N,), by torch's CPU generator.

    :param dominant: max(lambda, 1 - lambda) in the place of a draw, so that a mixture is nearer to its first part.
    """
    both = torch.tensor(alpha, dtype=torch.float64)
    beta = torch.distributions.Beta(both, both, validate_args=False)
    found = beta.sample((len(like) if per_sample else 1,)).float()
    found = torch.maximum(found, 1 - found) if dominant else found
    return found.expand(len(like)).to(like.device)


def partners(like: Tensor) -> Tensor:
    """A random permutation of the rows, by torch's CPU generator."""
    return torch.randperm(len(like)).to(like.device)


def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Row by row, share * first + (1 - share) * second."""
    return torch.lerp(second, first, share.view(-1, *[1] * (first.ndim - 1)).to(first.dtype))
