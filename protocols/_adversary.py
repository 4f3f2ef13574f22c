"""The small step of an image that changes a prediction most, for any classifier.

Miyato, Maeda, Koyama & Ishii, Virtual Adversarial Training, TPAMI 2018, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def worst_direction(
    predict: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, *, xi: float, iterations: int = 1
) -> Tensor:
    """Directions of length 1, shaped as ``x``: power iterations on the Hessian of KL(p(x) || p(x + r)) at r = 0.

    :param predict: inputs to scores (N, C), each row from its own input alone.
    :param start: random directions, shaped as ``x``; ``xi``: step of the finite difference.
    """
    with torch.no_grad():
        clean = F.log_softmax(predict(x), 1)
    d = _unit(start)
    for _ in range(iterations):
        with torch.enable_grad():
            step = (xi * d).requires_grad_()
            moved = F.log_softmax(predict(x + step), 1)
            (slope,) = torch.autograd.grad(F.kl_div(moved, clean, reduction="sum", log_target=True), step)
        d = _unit(slope)
    return d


def _unit(directions: Tensor) -> Tensor:
    """Each row at length 1, by its largest entry first: squares of small numbers underflow."""
    rows = directions.flatten(1)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return F.normalize(rows / largest).view_as(directions)
