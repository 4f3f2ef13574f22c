"""The direction in which a small step changes a prediction most.

Miyato, Maeda, Koyama & Ishii, Virtual Adversarial Training, TPAMI 2018, section 3.3 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(of: Tensor, from_: Tensor) -> Tensor:
    """KL(p || q) with p = softmax(of) and q = softmax(from_), for each row of (N, C): (N,)."""
    log_p, log_q = (F.log_softmax(s if s.dtype == torch.float64 else s.float(), 1) for s in (of, from_))
    return (log_p.exp() * (log_p - log_q)).sum(1)


def unit(directions: Tensor) -> Tensor:
    """Each row at length 1; by its largest entry first, for squares of small gradients underflow."""
    rows = directions.flatten(1)
    rows = rows / (1e-12 + rows.abs().amax(1, keepdim=True))
    return (rows / torch.sqrt(1e-6 + rows.square().sum(1, keepdim=True))).view_as(directions)


def adversarial_direction(
    predict: Callable[[Tensor], Tensor],
    inputs: Tensor,
    clean: Tensor,
    start: Tensor,
    *,
    xi: float,
    iterations: int,
) -> Tensor:
    """Power iteration for the first eigenvector of the Hessian of KL(p(x) || p(x + r)) at r = 0, of length 1.

    :param predict: inputs to scores, the same function at each call; ``clean``: its scores (N, C) at ``inputs``.
    :param start: random directions, shaped as ``inputs``.
    :param xi: the step of the finite difference Hd = (gradient at xi d) / xi.
    """
    d, clean = start, clean.detach()
    for _ in range(iterations):
        with torch.enable_grad():
            step = (xi * unit(d)).requires_grad_()
            # A sum: the gradient of a row does not depend on how many there are.
            (d,) = torch.autograd.grad(divergence(clean, predict(inputs + step)).sum(), step)
    return unit(d)
