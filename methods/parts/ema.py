"""Weights averaged over the steps of a training.

Tarvainen & Valpola, Mean teachers are better role models, NIPS 2017, section 2:
theta' = a theta' + (1 - a) theta.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def rate(done: int, highest: float) -> float:
    """min(1 - 1 / (t + 1), highest) after step t = 1, 2, ...: a true average while the history is short."""
    return min(1.0 - 1.0 / (done + 1), highest)


@torch.no_grad()
def average(own: Iterable[Tensor], others: Iterable[Tensor], alpha: float) -> None:
    """Each of ``own`` becomes alpha * itself + (1 - alpha) * its like in ``others``, in place."""
    torch._foreach_lerp_(list(own), list(others), 1.0 - alpha)


@torch.no_grad()
def copy_buffers(average: nn.Module, module: nn.Module) -> None:
    """Running statistics are copied, never averaged: for an average that does not run in train mode."""
    for own, other in zip(average.buffers(), module.buffers(), strict=True):
        own.copy_(other)
