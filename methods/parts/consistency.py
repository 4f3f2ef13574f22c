"""The two terms of consistency training: a classifier's own loss, and the distance of two predictions.

Laine & Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017, section 2.1, algorithm 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def supervised_term(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the labeled rows over the size of the whole batch: scores (N, C), labels (N,)."""
    return F.cross_entropy(scores.float(), labels, ignore_index=-1, reduction="sum") / len(scores)


def squared_distance(scores: Tensor, other: Tensor) -> Tensor:
    """Mean over the batch and the classes of (softmax(scores) - softmax(other))^2; both (N, C)."""
    return F.mse_loss(scores.float().softmax(1), other.float().softmax(1))


def labeled_fraction(labels: Tensor | None) -> Tensor:
    """M / N, the labeled part of the training images: a 0-dimensional tensor on the labels' device."""
    return (labels >= 0).float().mean() if labels is not None else torch.zeros(())
