"""The most similar rows of a bank of features, which may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts import Rows
from bench.features import Features, blocks, held_bytes

GPU_LIMIT = 2048  # neighbors that faiss can return on a GPU


class _Unit(Rows):
    """Others' rows at unit length."""

    def __init__(self, whole: Rows) -> None:
        self.whole, self.shape, self.finite = whole, whole.shape, whole.finite

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        return F.normalize(self.whole[rows])


def unit(x: Features) -> Features:
    """The rows at unit length."""
    return F.normalize(x) if isinstance(x, Tensor) else _Unit(x)


def nearest(bank: Features, queries: Features, k: int) -> tuple[Tensor, Tensor]:
    """Inner products float32 and places in the bank int64 (N, k), the highest first; -1 where there are none.

    Exact. A bank on disk is searched a block at a time, and its best are kept; of equal ones the earlier.
    """
    faiss.omp_set_num_threads(torch.get_num_threads())
    whole = _index(bank, k) if isinstance(bank, Tensor) else None
    found = [_search(whole, part, k) if whole else _by_blocks(bank, part, k) for part in _portions(queries)]
    similarity, places = zip(*found, strict=True)
    return torch.cat(similarity), torch.cat(places)


def _portions(queries: Features) -> Iterator[Tensor]:
    """As many queries at once as a quarter of what may be held: the bank is read once for each portion."""
    if isinstance(queries, Tensor):
        yield queries
    else:
        yield from blocks(queries, max(1, int(held_bytes() / 4) // (4 * queries.shape[1])))


def _by_blocks(bank: Features, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best, places = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    first = 0
    for block in blocks(bank):
        similarity, here = _search(_index(block, k), queries, min(k, len(block)))
        here = torch.where(here < 0, here, here + first)
        both, where = torch.cat([best, similarity], 1), torch.cat([places, here], 1)
        order = both.argsort(dim=1, descending=True, stable=True)[:, :k]
        best, places, first = both.gather(1, order), where.gather(1, order), first + len(block)
    return best, places


def _index(bank: Tensor, k: int) -> Any:
    """An exact inner-product index over (N, d), on a GPU where faiss has one."""
    index: Any = faiss.IndexFlatIP(bank.shape[1])
    if k <= GPU_LIMIT and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(bank.numpy())
    return index


def _search(index: Any, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    similarity, places = index.search(np.ascontiguousarray(queries.numpy()), k)
    return torch.from_numpy(similarity), torch.from_numpy(places)
