"""The numbers that protocols report, each by the definition of the paper that it comes from.

All are fractions in [0, 1], larger is better, and nan where they are undefined (no positive, no class).
numpy arrays and torch tensors go in, a Python float comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bench.records import BenchError

__all__ = [
    "AVERAGE_PRECISIONS",
    "ap_11pt",
    "ap_envelope",
    "ap_sklearn",
    "confusion_matrix",
    "hits",
    "mean_ap",
    "mean_iou",
    "nmi",
    "topk_accuracy",
]

Numbers: TypeAlias = "Tensor | ArrayLike"
Doubles: TypeAlias = "NDArray[np.float64]"


def _array(values: Numbers) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray((values.double() if values.is_floating_point() else values).numpy())
    return np.asarray(values)


# ---- classification --------------------------------------------------------------------------


def topk_accuracy(scores: Numbers, labels: Numbers, k: int = 1) -> float:
    """The share of images whose label is among the k highest scores: the mean of :func:`hits`."""
    return float(hits(scores, labels, k).mean())


def hits(scores: Numbers, labels: Numbers, k: int = 1) -> Doubles:
    """How surely each image's label is among the k highest scores, (N,) in 0..1.

    Equal scores have no order, so that no class gains by its number: of two equal highest ones either is the
    first with 1/2. A class of score -inf is no guess; a row with nan is wrong.

    :param scores: (N, classes); ``labels``: int (N,), 0 and up.
    """
    table, truth = _array(scores), _array(labels).astype(np.int64)
    _check_classification(table, truth, k)
    own = np.take_along_axis(table, truth[:, None], 1)
    higher, equal = (table > own).sum(1), (table == own).sum(1)
    guessed = ~np.isnan(table).any(1) & ~np.isneginf(own[:, 0])
    found: Doubles = np.clip((k - higher) / np.maximum(equal, 1), 0.0, 1.0) * guessed
    return found


def _check_classification(table: NDArray[Any], truth: NDArray[np.int64], k: int) -> None:
    if table.ndim != 2 or truth.shape != table.shape[:1] or not len(truth):
        raise BenchError(
            f"scores {table.shape} and labels {truth.shape} must be (N, classes) and (N,), N > 0"
        )
    if truth.min() < 0 or truth.max() >= table.shape[1]:
        raise BenchError(f"labels must be in 0..{table.shape[1] - 1}, not {truth.min()}..{truth.max()}")
    if k < 1:
        raise BenchError(f"k must be 1 or more, not {k}")


# ---- average precision -------------------------------------------------------------------------


def ap_11pt(scores: Numbers, labels: Numbers, tie_rule: bool = False) -> float:
    """VOC2007's AP: the mean over recalls 0, 0.1 ... 1 of the highest precision at that recall or beyond.

    (Everingham et al., IJCV 2010, equation 2.) Parameters: see :func:`ap_sklearn`.
    """
    recall, precision = _curve(scores, labels, tie_rule)
    # Recalls are multiples of 1/positives: a hair less than the threshold is still the threshold.
    best = [precision[recall >= t / 10 - 1e-12].max(initial=0.0) for t in range(11)]
    return float(np.mean(best)) if len(recall) else math.nan


def ap_envelope(scores: Numbers, labels: Numbers, tie_rule: bool = False) -> float:
    """VOC2010's AP: the area under the precision made monotone (the highest at that recall or beyond).

    (Everingham et al., IJCV 2015, section 3.4.1; Goyal et al., ICCV 2019, for SVMs.) Parameters: see
    :func:`ap_sklearn`.
    """
    recall, precision = _curve(scores, labels, tie_rule)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope)) if len(recall) else math.nan


def ap_sklearn(scores: Numbers, labels: Numbers, tie_rule: bool = False) -> float:
    """The sum of precision times the step in recall, without interpolation: scikit-learn's definition.

    (Kraehenbuehl et al., ICLR 2016, for VOC2007 classification.)

    :param scores: (N,). Images of equal score are one threshold together.
    :param labels: (N,), +1 present, -1 absent, 0 to be ignored.
    :param tie_rule: lower the positives' scores by 1e-5 first, so that in a tie they rank below the
        negatives: Kraehenbuehl's and DeepCluster's rule. Since equal scores are one threshold anyway, it
        matters only for leads below 1e-5.
    """
    recall, precision = _curve(scores, labels, tie_rule)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision)) if len(recall) else math.nan


AVERAGE_PRECISIONS: Mapping[str, Callable[..., float]] = {
    "ap_11pt": ap_11pt,
    "ap_envelope": ap_envelope,
    "ap_sklearn": ap_sklearn,
}


def mean_ap(scores: Numbers, labels: Numbers, kind: str = "ap_11pt", tie_rule: bool = False) -> float:
    """The mean over classes of an average precision, without the classes that have no positive.

    :param scores: (N, classes); ``labels``: (N, classes) of +1, -1 and 0 (ignored).
    :param kind: "ap_11pt", "ap_envelope" or "ap_sklearn".
    """
    if kind not in AVERAGE_PRECISIONS:
        raise BenchError(
            f"there is no average precision {kind!r}; known are: {', '.join(AVERAGE_PRECISIONS)}"
        )
    table, truth = _array(scores), _array(labels)
    if table.ndim != 2 or table.shape != truth.shape:
        raise BenchError(f"scores {table.shape} and labels {truth.shape} must both be (N, classes)")
    found = [AVERAGE_PRECISIONS[kind](table[:, c], truth[:, c], tie_rule) for c in range(table.shape[1])]
    defined = [value for value in found if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _curve(scores: Numbers, labels: Numbers, tie_rule: bool) -> tuple[Doubles, Doubles]:
    """Recall (ascending) and precision at every distinct score, from high to low; empty without a positive."""
    values, truth = _array(scores).astype(np.float64), _array(labels)
    if values.ndim != 1 or values.shape != truth.shape:
        raise BenchError(f"scores {values.shape} and labels {truth.shape} must both be (N,)")
    if np.isnan(values).any():
        raise BenchError("scores must not be nan: such a model ranks nothing")
    if (truth == 0).any() and not (truth < 0).any():
        raise BenchError("labels must be +1 present, -1 absent, 0 ignored; there is no -1 here")
    values, positive = values[truth != 0], truth[truth != 0] > 0
    if not positive.any():
        return np.empty(0), np.empty(0)
    if tie_rule:
        values = values - 1e-5 * positive
    order = np.argsort(-values, kind="stable")
    values, hits = values[order], np.cumsum(positive[order])
    last = np.append(values[1:] != values[:-1], True)
    return hits[last] / hits[-1], hits[last] / (np.flatnonzero(last) + 1)


# ---- segmentation and clustering -----------------------------------------------------------------


def confusion_matrix(
    prediction: Numbers, target: Numbers, classes: int, ignore: int = 255
) -> NDArray[np.int64]:
    """Pixel counts (classes, classes), rows the truth, columns the prediction; add up over images.

    :param prediction: int, any shape, 0..classes-1; ``target``: the same shape, ``ignore`` where undefined.
    """
    guess, truth = _array(prediction).ravel().astype(np.int64), _array(target).ravel().astype(np.int64)
    if guess.shape != truth.shape:
        raise BenchError(f"prediction and target differ in size: {guess.size} and {truth.size} pixels")
    guess, truth = guess[truth != ignore], truth[truth != ignore]
    for name, values in (("prediction", guess), ("target", truth)):
        if values.size and (values.min() < 0 or values.max() >= classes):
            raise BenchError(f"{name} must be in 0..{classes - 1}, not {values.min()}..{values.max()}")
    counts = np.bincount(truth * classes + guess, minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.int64)


def mean_iou(matrix: Numbers) -> float:
    """Mean over classes (background included) of TP / (TP + FP + FN); classes that never occur do not count.

    (Long et al., CVPR 2015, section 5; Everingham et al., IJCV 2015.)

    :param matrix: pixel counts of :func:`confusion_matrix`, summed over all images.
    """
    counts = _array(matrix).astype(np.float64)
    hits = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    return float((hits[union > 0] / union[union > 0]).mean()) if (union > 0).any() else math.nan


def nmi(one: Numbers, other: Numbers) -> float:
    """Normalized mutual information I / sqrt(H H') of two labelings (N,): DeepCluster's (ECCV 2018, eq. 3).

    The mean of the entropies is the geometric one, scikit-learn's default before 0.22.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(_array(one), _array(other), average_method="geometric"))
