"""What classification protocols share: which images have a label, accuracies, and choices on validation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.contracts import BenchError, Measurement, Samples
from bench.metrics import topk_accuracy

FEW = 5  # classes: among so many, five guesses are always right


def labeled(samples: Samples) -> tuple[Tensor, Tensor]:
    """The images that have a label: their indices (M,) and classes (M,), int64 on the CPU."""
    if samples.labels is None:
        raise BenchError(f"{samples.name} has no class labels")
    labels = samples.labels.cpu()
    rows = torch.nonzero(labels >= 0).flatten()
    return rows, labels[rows]


def top(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Percent of the rows (N, C) whose class is among the k highest; a row with a NaN is wrong."""
    return 100.0 * topk_accuracy(scores, labels, k)


def accuracies(
    scores: Tensor, labels: Tensor, *, layer: str = "", split: str = "test"
) -> Iterator[Measurement]:
    """top1 and, with more than five classes, top5 (percent)."""
    if not len(labels):
        return
    yield Measurement("top1", top(scores, labels), layer, split)
    if scores.shape[1] > FEW:
        yield Measurement("top5", top(scores, labels, 5), layer, split)


def best(values: Tensor) -> int:
    """The index of the highest value (the first of several); NaN loses."""
    return int(torch.argmax(values.nan_to_num(nan=-1.0)))
