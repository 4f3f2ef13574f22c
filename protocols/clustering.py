"""Do clusters agree with the classes: k-means on frozen features, and the clusters that a training kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from bench.contracts import Encoder, Evaluation, Measurement, Model, Run, Samples, Tap, Target
from bench.metrics import nmi
from protocols._features import column, features
from protocols._scores import labeled


@dataclass(frozen=True)
class Clustering(Evaluation):
    """k-means on the training images' features; every split's images go to the nearest center.

    ``nmi`` (I / sqrt(H H'), eq. 3) and ``ari`` (Hubert & Arabie, 1985) compare clusters with classes, 1 is
    equality; ``top1`` is the accuracy (%) when each cluster is named after most of its training images.
    Of a training that stored its clusters (DeepCluster), ``nmi_labels`` and ``nmi_previous`` compare each
    epoch's with the classes and with the epoch before (figure 2), ``step`` the epoch, split "train"; an
    image of unknown class does not count.

    :param clusters: 0: as many as there are classes; of several numbers, the first is reported as ``nmi``
        and each other one as ``nmi_k100``. No more than there are training images.
    :param normalize: rows of unit length first, as the paper does.
    :param restarts: k-means's best of so many.
    """

    paper: ClassVar[str] = (
        "Caron, Bojanowski, Joulin & Douze, Deep Clustering for Unsupervised Learning of Visual Features, ECCV 2018"
    )

    clusters: int | tuple[int, ...] = 0
    normalize: bool = True
    iterations: int = 20
    restarts: int = 5
    layer: str = "output"
    pooling: str = "none"
    size: int = 0
    side: int = 0

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        return (Tap(self.layer, self.pooling, self.size, self.side),)

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        yield from stored(run.assigned, run.assigned_labels)
        parts = {"train": target.train, "test": target.test, "validation": target.validation}
        data = {split: self._points(model, part, run) for split, part in parts.items() if len(part)}
        counts = self.clusters if isinstance(self.clusters, tuple) else (self.clusters,)
        for count in counts:
            suffix = "" if count == counts[0] else f"_k{count}"
            for split, metric, value in self._agreement(data, count or target.classes, target.classes, run):
                yield Measurement(metric + suffix, value, column(self.layer), split)

    def _points(self, model: Model, samples: Samples, run: Run) -> tuple[Tensor, Tensor]:
        """Features (N, d) and classes (N,) of the labeled images."""
        (tap,) = self.taps(model.encoder)
        rows, labels = labeled(samples)
        found = features(model, samples, [tap], run)[tap][rows]
        return F.normalize(found) if self.normalize else found, labels

    def _agreement(
        self, data: Mapping[str, tuple[Tensor, Tensor]], count: int, classes: int, run: Run
    ) -> Iterator[tuple[str, str, float]]:
        """(split, metric, value) of one number of clusters."""
        points, labels = data["train"]
        engine = self._fit(points, min(count, len(points)), run)
        names = majority(_nearest(engine, points), labels, count, classes)
        for split, (part, truth) in data.items():
            ids = _nearest(engine, part)
            yield split, "nmi", nmi(ids, truth)
            yield split, "ari", float(adjusted_rand_score(truth.numpy(), ids.numpy()))
            yield split, "top1", 100.0 * float((names[ids] == truth).double().mean())

    def _fit(self, points: Tensor, count: int, run: Run) -> Any:
        faiss.omp_set_num_threads(torch.get_num_threads())
        engine = faiss.Kmeans(
            points.shape[1],
            count,
            niter=self.iterations,
            nredo=self.restarts,
            seed=int(run.generator("clustering").initial_seed()) & 0x7FFFFFFF,
            min_points_per_centroid=1,
            max_points_per_centroid=max(1, len(points)),  # no subsampling
        )
        engine.train(np.ascontiguousarray(points.numpy()))
        return engine


def _nearest(engine: Any, points: Tensor) -> Tensor:
    """The nearest center of each point, int64 (N,)."""
    _, ids = engine.index.search(np.ascontiguousarray(points.numpy()), 1)
    return torch.from_numpy(ids[:, 0])


def majority(ids: Tensor, labels: Tensor, clusters: int, classes: int) -> Tensor:
    """The class of most images in each cluster, int64 (clusters,); of equals the first, also of an empty one."""
    return torch.bincount(ids * classes + labels, minlength=clusters * classes).view(clusters, -1).argmax(1)


def stored(assigned: Mapping[int, Tensor], labels: Tensor | None) -> Iterator[Measurement]:
    """How each stored epoch's clusters (N,) agree with the classes (N,), -1 unknown, and with the epoch before."""
    before: Tensor | None = None
    known = torch.zeros(0, dtype=torch.bool) if labels is None else labels >= 0
    for epoch in sorted(assigned):
        ids = assigned[epoch]
        if labels is not None and known.any():
            yield Measurement("nmi_labels", nmi(ids[known], labels[known]), split="train", step=epoch)
        if before is not None:
            yield Measurement("nmi_previous", nmi(ids, before), split="train", step=epoch)
        before = ids
