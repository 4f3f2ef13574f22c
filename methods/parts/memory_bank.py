"""One remembered unit vector for each training image.

Wu, Xiong, Yu & Lin, Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018,
section 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def new_bank(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """(count, dim), uniform in (-a, a) with a = 1 / sqrt(dim / 3): entries of unit length on average."""
    bound = (3.0 / dim) ** 0.5
    bank: Tensor = (torch.rand(count, dim, generator=generator) * 2 - 1) * bound
    return bank


@torch.no_grad()
def remember(bank: Tensor, index: Tensor, vectors: Tensor, momentum: float) -> None:
    """bank[index] becomes normalize(momentum * old + (1 - momentum) * vectors), in place."""
    mixed = bank[index].lerp(vectors.to(bank.dtype), 1.0 - momentum)
    bank.index_copy_(0, index, F.normalize(mixed))


_FEW = 8  # so many bank entries per asked one, and the product with the whole bank is cheaper than gathering


def scores(bank: Tensor, vectors: Tensor, index: Tensor) -> Tensor:
    """vectors[b] . bank[index[b, k]]: (B, d) and int64 (B, m) to (B, m)."""
    if len(bank) <= _FEW * index.shape[1]:
        return (vectors @ bank.T).gather(1, index)
    return torch.bmm(bank[index], vectors[:, :, None])[:, :, 0]
