"""Weighted k-nearest-neighbor classification on frozen features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts import Encoder, Evaluation, Measurement, Model, Run, Samples, Tap, Target
from protocols._features import column, features
from protocols._scores import accuracies, labeled

GPU_LIMIT = 2048  # neighbors that faiss can return on a GPU


@dataclass(frozen=True)
class Knn(Evaluation):
    """The k most similar training images (cosine) vote, each with weight exp(similarity / temperature).

    :param k: how many, no more than there are; of several values, the first is reported as ``top1`` and
        each other one as ``top1_k5``, all from one search.
    :param temperature: 0.07 on ImageNet; the paper's code has 0.1 on CIFAR.
    :param weighted: otherwise each neighbor has one vote.
    """

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

        def unit_rows(samples: Samples) -> tuple[Tensor, Tensor]:
            rows, labels = labeled(samples)
            return F.normalize(features(model, samples, [tap], run)[tap][rows]), labels

        bank, classes = unit_rows(target.train)
        counts = self.k if isinstance(self.k, tuple) else (self.k,)
        index = _index(bank, max(counts))
        for split, samples in (("test", target.test), ("validation", target.validation)):
            if not len(samples):
                continue
            queries, labels = unit_rows(samples)
            similarity, neighbors = search(index, queries, min(max(counts), len(bank)))
            for k in counts:
                scores = self._votes(similarity[:, :k], classes[neighbors[:, :k]], target.classes)
                scores[neighbors[:, 0] < 0] = torch.nan  # features that are no numbers have no neighbors
                for found in accuracies(scores, labels, layer=column(self.layer), split=split):
                    suffix = "" if k == counts[0] else f"_k{k}"
                    yield Measurement(found.metric + suffix, found.value, found.layer, split)

    def _votes(self, similarity: Tensor, classes: Tensor, count: int) -> Tensor:
        return votes(similarity, classes, count, self.temperature if self.weighted else None)


def votes(similarity: Tensor, neighbors: Tensor, classes: int, temperature: float | None) -> Tensor:
    """Scores (N, classes): sums of exp(s / temperature) over the neighbors (N, k) of each class.

    Divided by exp(1 / temperature), which changes no ranking and cannot overflow.
    """
    weights = (
        torch.ones_like(similarity) if temperature is None else torch.exp((similarity - 1) / temperature)
    )
    return similarity.new_zeros(len(similarity), classes).scatter_add_(1, neighbors, weights)


def _index(bank: Tensor, k: int) -> Any:
    """An exact inner-product index over (N, d), on a GPU where faiss has one."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    index: Any = faiss.IndexFlatIP(bank.shape[1])
    if k <= GPU_LIMIT and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(bank.numpy())
    return index


def search(index: Any, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities float32 and indices int64 (N, k), the most similar first."""
    similarity, neighbors = index.search(np.ascontiguousarray(queries.numpy()), k)
    return torch.from_numpy(similarity), torch.from_numpy(neighbors)
