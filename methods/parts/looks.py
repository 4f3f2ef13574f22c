"""Which rows of a batch two predictions are compared on.

``all`` of them (Laine & Aila, ICLR 2017; Tarvainen & Valpola, NIPS 2017); the ``unlabeled`` ones of the same
pass (Oliver et al., NeurIPS 2018); or those ``apart``, in a pass of their own that does not move batch norm's
running statistics (the baselines of MixMatch, NeurIPS 2019). Where not all, the cross-entropy is a mean over
the labeled rows instead of their sum over the size of the batch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bench.contracts import BenchError, Model
from methods.parts.normalization import unrecorded

COMPARED = ("all", "unlabeled", "apart")


def check(name: str, compared: str, labeled_batch: int) -> None:
    """Refuses an unknown name, and rows that are not told apart.

    :raises BenchError: in one line.
    """
    if compared not in COMPARED:
        raise BenchError(f"{name}.compared must be one of {', '.join(COMPARED)}, not {compared!r}")
    if compared != "all" and not labeled_batch:
        raise BenchError(f"{name}.compared = {compared!r} needs labeled images apart: set labeled_batch")


def two_looks(
    compared: str, labeled: int, model: Model, other: Callable[[Tensor], Tensor], views: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(scores for the cross-entropy, ``model``'s of the first view, ``other``'s of the second one).

    :param labeled: so many rows come first and are labeled.
    """
    first, second = views
    if compared == "apart":
        known = model(first[:labeled])
        with unrecorded(model):
            return known, model(first[labeled:]), other(second[labeled:])
    scores, others = model(first), other(second)
    if compared == "all":
        return scores, scores, others
    return scores[:labeled], scores[labeled:], others[labeled:]
