"""Do clusters agree with the classes: k-means on frozen features, and the clusters that a training kept."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import faiss
import numpy as np
import torch
from faiss.contrib.clustering import kmeans
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from bench.contracts import Encoder, Evaluation, Measurement, Model, Rows, Run, Samples, Tap, Target
from bench.features import Features, blocks, chosen
from bench.metrics import nmi
from protocols._features import column, features
from protocols._nearest import unit
from protocols._scores import labeled


@dataclass(frozen=True)
class Clustering(Evaluation):
    """k-means on the training images' features; every split's images go to the nearest center.

    ``nmi`` (I / sqrt(H H'), eq. 3) and ``ari`` (Hubert & Arabie, 1985) compare clusters with classes, 1 is
    equality; ``top1`` is the accuracy (%) when each cluster is named after most of its training images, on average where several
    classes are as many.
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

    def _points(self, model: Model, samples: Samples, run: Run) -> tuple[Features, Tensor]:
        """Features (N, d) and classes (N,) of the labeled images."""
        (tap,) = self.taps(model.encoder)
        rows, labels = labeled(samples)
        found = chosen(features(model, samples, [tap], run)[tap], rows)
        return unit(found) if self.normalize else found, labels

    def _agreement(
        self, data: Mapping[str, tuple[Features, Tensor]], count: int, classes: int, run: Run
    ) -> Iterator[tuple[str, str, float]]:
        """(split, metric, value) of one number of clusters."""
        points, labels = data["train"]
        index = self._fit(points, min(count, len(points)), run)
        names = majority(_nearest(index, points), labels, count, classes)
        for split, (part, truth) in data.items():
            ids = _nearest(index, part)
            yield split, "nmi", nmi(ids, truth)
            yield split, "ari", float(adjusted_rand_score(truth.numpy(), ids.numpy()))
            yield split, "top1", 100.0 * float(names[ids, truth].mean())

    def _fit(self, points: Features, count: int, run: Run) -> Any:
        """An index over the centers."""
        faiss.omp_set_num_threads(torch.get_num_threads())
        seed = int(run.generator("clustering").initial_seed()) & 0x7FFFFFFF
        if not isinstance(points, Tensor):
            return _by_blocks(points, count, self.iterations, [seed + r for r in range(self.restarts)])
        engine = faiss.Kmeans(
            points.shape[1],
            count,
            niter=self.iterations,
            nredo=self.restarts,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=max(1, len(points)),  # no subsampling
        )
        engine.train(np.ascontiguousarray(points.numpy()))
        return engine.index


def _by_blocks(points: Rows, count: int, iterations: int, seeds: Sequence[int]) -> Any:
    """The best of several k-means over points on disk, faiss's own in Python: an index over its centers."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        found = [
            kmeans(count, _Points(points), iterations, seed, verbose=False, return_stats=True)  # type: ignore[no-untyped-call]  # faiss
            for seed in seeds
        ]
    centers, _ = min(found, key=lambda one: float(one[1][-1]["obj"]))
    index: Any = faiss.IndexFlatL2(points.shape[1])
    index.add(np.ascontiguousarray(centers))
    return index


class _Points:
    """What faiss's k-means asks of its data, a block at a time."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def count(self) -> int:
        return len(self.rows)

    def dim(self) -> int:
        return self.rows.shape[1]

    def get_subset(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.rows[torch.from_numpy(places)].numpy()
        return found

    def assign_to(self, centers: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Each point's nearest center, its squared distance, and each center's sum of its points."""
        index: Any = faiss.IndexFlatL2(self.dim())
        index.add(np.ascontiguousarray(centers))
        sums, ids, distances = torch.zeros(centers.shape, dtype=torch.float64), [], []
        for block in blocks(self.rows):
            far, near = index.search(block.numpy(), 1)
            sums.index_add_(0, torch.from_numpy(near[:, 0]), block.double())
            ids.append(near[:, 0])
            distances.append(far[:, 0])
        return np.concatenate(ids), np.concatenate(distances), sums.float().numpy()


def _nearest(index: Any, points: Features) -> Tensor:
    """The nearest center of each point, int64 (N,)."""
    parts = [points] if isinstance(points, Tensor) else blocks(points)
    return torch.cat(
        [torch.from_numpy(index.search(np.ascontiguousarray(p.numpy()), 1)[1][:, 0]) for p in parts]
    )


def majority(ids: Tensor, labels: Tensor, clusters: int, classes: int) -> Tensor:
    """How surely each cluster is named after each class, float64 (clusters, classes): that of most of its images.

    Of several, each with the same chance, as of all in an empty cluster.
    """
    counts = torch.bincount(ids * classes + labels, minlength=clusters * classes).view(clusters, -1)
    most = (counts == counts.amax(1, keepdim=True)).double()
    return most / most.sum(1, keepdim=True)


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
