"""Sets of permutations that a jigsaw puzzle is drawn from, told apart by their Hamming distances.

Noroozi & Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016,
algorithm 1: one after the other, each chosen by its distances to those that were chosen before.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts import BenchError

DISTANCES = ("maximal", "maximin", "middle", "minimal")
_MIDDLE = 6.35 / 9  # of the pieces differ in the paper's middle set
_SHUFFLE = 2016  # which of the equally good ones is taken; part of what a set is


@functools.lru_cache(maxsize=16)
def permutation_set(pieces: int, count: int, distance: str = "maximal") -> Tensor:
    """``count`` of the permutations of ``pieces`` pieces, int64 (count, pieces); nobody may write into it.

    :param distance: ``maximal``: each has the largest average distance to those before it (the paper's);
        ``maximin``: the largest distance to the nearest of them, ties by the average; ``minimal``: the smallest
        average, 5.46 for 1000 of nine pieces, where the paper's table has 3.99; ``middle``: the average that is
        nearest to the 6.35 (for nine pieces) of that table, for the paper's uniform draws would have 8.
    :raises BenchError: an unknown distance, or more permutations than there are.
    """
    if distance not in DISTANCES:
        raise BenchError(f"distance {distance!r} is not known: write {', '.join(DISTANCES)}")
    if not 0 < count <= math.factorial(pieces):
        raise BenchError(
            f"there are {math.factorial(pieces)} permutations of {pieces} pieces: write fewer than {count}"
        )
    candidates = _all(pieces)
    # Distances to the chosen: their sum, and the smallest one.
    total = np.zeros(candidates.shape[1], np.int32)
    nearest = np.full(candidates.shape[1], pieces, np.int32)
    free = np.ones(candidates.shape[1], bool)
    chosen = [0]
    while len(chosen) < count:
        apart = _distances(candidates, chosen[-1])
        total += apart
        np.minimum(nearest, apart, out=nearest)
        free[chosen[-1]] = False
        chosen.append(_next(total, nearest, free, distance, _MIDDLE * pieces * len(chosen)))
    return torch.from_numpy(candidates[:, chosen].T.astype(np.int64))


def _all(pieces: int) -> NDArray[np.uint8]:
    """All permutations (pieces, pieces!), one a column, in an order that favors none."""
    flat = np.fromiter(itertools.chain.from_iterable(itertools.permutations(range(pieces))), np.uint8)
    shuffled = np.random.default_rng(_SHUFFLE).permutation(flat.reshape(-1, pieces))
    return np.ascontiguousarray(shuffled.T)


def _distances(candidates: NDArray[np.uint8], one: int) -> NDArray[np.uint8]:
    """In how many places each candidate differs from one of them."""
    apart = np.zeros(candidates.shape[1], np.uint8)
    for place in candidates:
        apart += place != place[one]
    return apart


def _next(
    total: NDArray[np.int32], nearest: NDArray[np.int32], free: NDArray[np.bool_], distance: str, aim: float
) -> int:
    """The column that follows: the first of those that the rule holds equal."""
    if distance == "maximal":
        score = total.astype(np.float64)
    elif distance == "maximin":
        score = nearest * (total.max() + 1.0) + total
    else:
        score = -np.abs(total - (aim if distance == "middle" else 0.0))
    return int(np.where(free, score, -np.inf).argmax())
