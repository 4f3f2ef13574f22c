"""Entropy of predictions.

Grandvalet & Bengio, Semi-supervised Learning by Entropy Minimization, NIPS 2004, section 2.2.
"""

from __future__ import annotations

from torch import Tensor


def entropy(scores: Tensor) -> Tensor:
    """H(p) = -sum p log p in nats with p = softmax(scores), mean over the rows of (N, C)."""
    log_p = scores.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()
