"""Weighted k-nearest-neighbor classification on frozen features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.contracts import Encoder, Evaluation, Measurement, Model, Run, Samples, Tap, Target
from bench.features import Features, chosen
from protocols._features import column, features
from protocols._nearest import nearest, unit
from protocols._scores import accuracies, labeled


@dataclass(frozen=True)
class Knn(Evaluation):
    """The k most similar training images (cosine) vote, each with weight exp(similarity / temperature).

    :param k: how many, no more than there are; of several values, the first is reported as ``top1`` and
        each other one as ``top1_k5``, all from one search.
    :param temperature: 0.07 on ImageNet; the paper's code has 0.1 on CIFAR.
    :param weighted: otherwise each neighbor has one vote.
    """

    shrinks: ClassVar[dict[str, str]] = {"k": "images"}
    paper: ClassVar[str] = (
        "Wu, Xiong, Yu & Lin, Unsupervised Feature Learning via Non-Parametric Instance Discrimination, "
        "CVPR 2018"
    )

    k: int | tuple[int, ...] = 200
    temperature: float = 0.07
    weighted: bool = True
    layer: str = "output"
    pooling: str = "none"
    size: int = 0
    side: int = 0

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        return (Tap(self.layer, self.pooling, self.size, self.side),)

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        (tap,) = self.taps(model.encoder)

        def unit_rows(samples: Samples) -> tuple[Features, Tensor]:
            rows, labels = labeled(samples)
            return unit(chosen(features(model, samples, [tap], run)[tap], rows)), labels

        bank, classes = unit_rows(target.train)
        counts = self.k if isinstance(self.k, tuple) else (self.k,)
        for split, samples in (("test", target.test), ("validation", target.validation)):
            if not len(samples):
                continue
            queries, labels = unit_rows(samples)
            similarity, neighbors = nearest(bank, queries, min(max(counts), len(bank)))
            for k in counts:
                scores = self._guesses(similarity[:, :k], classes[neighbors[:, :k]], target.classes)
                scores[neighbors[:, 0] < 0] = torch.nan  # features that are no numbers have no neighbors
                for found in accuracies(scores, labels, layer=column(self.layer), split=split):
                    suffix = "" if k == counts[0] else f"_k{k}"
                    yield Measurement(found.metric + suffix, found.value, found.layer, split)

    def _guesses(self, similarity: Tensor, classes: Tensor, count: int) -> Tensor:
        """Scores (N, classes); a class without a vote is no guess."""
        scores = votes(similarity, classes, count, self.temperature if self.weighted else None)
        voted = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, classes, value=True)
        return scores.masked_fill_(~voted, -torch.inf)


def votes(similarity: Tensor, neighbors: Tensor, classes: int, temperature: float | None) -> Tensor:
    """Scores (N, classes): sums of exp(s / temperature) over the neighbors (N, k) of each class.

    Divided by exp(1 / temperature), which changes no ranking and cannot overflow.
    """
    weights = (
        torch.ones_like(similarity) if temperature is None else torch.exp((similarity - 1) / temperature)
    )
    return similarity.new_zeros(len(similarity), classes).scatter_add_(1, neighbors, weights)
