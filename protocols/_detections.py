"""Average precision of detections, by VOC's rules (Everingham et al., IJCV 2010, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

Doubles: TypeAlias = "NDArray[np.float64]"
Boxes: TypeAlias = "Mapping[str, Tensor]"
Hits: TypeAlias = "tuple[NDArray[np.float64], NDArray[np.bool_]]"


def average_precisions(
    found: Sequence[Boxes], truth: Sequence[Boxes], classes: int, overlap: float = 0.5
) -> dict[str, Doubles]:
    """``{"ap_11pt": (C,), "ap_envelope": (C,)}`` in [0, 1]; nan for classes without an object that counts.

    A detection belongs to the object of its class that it overlaps most. At ``overlap`` (IoU) or more it is
    right if it is the first, by score, to claim that object, and wrong if not; if the object is difficult it
    is neither. Every detection is a threshold of its own; those of equal score keep the order of the images.

    :param found: an image's ``boxes`` (k, 4), ``scores`` (k,), ``labels`` (k,).
    :param truth: an image's ``boxes`` (m, 4), ``labels`` (m,), ``difficult`` (m,).
    """
    out = {name: np.full(classes, math.nan) for name in DEFINITIONS}
    for label in range(classes):
        positives = sum(int(((t["labels"] == label) & ~t["difficult"]).sum()) for t in truth)
        if not positives:
            continue
        parts = [_hits(f, t, label, overlap) for f, t in zip(found, truth, strict=True)]
        scores, right = (np.concatenate(column) for column in zip(*parts, strict=True))
        hits = right[np.argsort(-scores, kind="stable")].cumsum()
        recall, precision = hits / positives, hits / np.arange(1, len(hits) + 1)
        for name, definition in DEFINITIONS.items():
            out[name][label] = definition(recall, precision)
    return out


def _hits(found: Boxes, truth: Boxes, label: int, overlap: float) -> Hits:
    """Scores, and who is right, of one image's detections of a class; those on difficult objects left out."""
    mine, real = found["labels"] == label, truth["labels"] == label
    order = torch.argsort(found["scores"][mine], descending=True, stable=True)
    boxes, scores = found["boxes"][mine][order], found["scores"][mine][order].double().numpy()
    if not real.any():
        return scores, np.zeros(len(scores), np.bool_)
    most, which = (t.numpy() for t in box_iou(boxes.double(), truth["boxes"][real].double()).max(1))
    claims = most >= overlap
    difficult = truth["difficult"][real].numpy()[which] & claims
    first = np.zeros(len(scores), np.bool_)
    rows = np.flatnonzero(claims)
    first[rows[np.unique(which[rows], return_index=True)[1]]] = True
    return scores[~difficult], first[~difficult]


def _eleven_points(recall: Doubles, precision: Doubles) -> float:
    # Recalls are multiples of 1/positives: a hair less than the threshold is still the threshold.
    best = [precision[recall >= t / 10 - 1e-12].max(initial=0.0) for t in range(11)]
    return float(np.mean(best))


def _envelope(recall: Doubles, precision: Doubles) -> float:
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * highest))


DEFINITIONS: Mapping[str, Callable[[Doubles, Doubles], float]] = {
    "ap_11pt": _eleven_points,
    "ap_envelope": _envelope,
}
