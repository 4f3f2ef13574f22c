"""Nearest-neighbor retrieval on frozen features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import faiss
import numpy as np
import torch
from torch import Tensor

from bench.contracts import (
    BenchError,
    Encoder,
    Evaluation,
    Measurement,
    Model,
    Picture,
    Run,
    Samples,
    Tap,
    Target,
)
from bench.features import Features, blocks, chosen, in_memory
from protocols._features import column, features
from protocols._nearest import nearest, unit
from protocols._pictures import OTHER, QUERY, SAME, framed, grid, thumbnails
from protocols._scores import labeled

LISTS_PER_ROOT = 4  # inverted lists for each square root of the gallery's size: faiss's own advice


@dataclass(frozen=True)
class Retrieval(Evaluation):
    """The images most similar (cosine) to a query: how often they are of its class.

    ``recall@k``: percent of queries with one of their class among the k nearest (Jegou, Douze & Schmid,
    PAMI 2011; Song et al., CVPR 2016). ``agreement@k``: percent of the k nearest that are of the query's
    class. The picture shows a few queries with their neighbors, in blue where they are of the query's class.

    :param k: how many neighbors count, no more than the gallery has.
    :param gallery: what is searched: the ``train`` images, or the queries' ``own`` split without the query.
    :param index: ``exact``, or ``ivf``: inverted lists, of which only ``probes`` are searched.
    :param lists: of ``ivf``; 0: four times the square root of the gallery's size.
    :param queries: drawn for the picture, by the run's seed alone: all models of a seed show the same ones;
        ``shown`` neighbors each, ``picture_side`` pixels a side.
    """

    paper: ClassVar[str] = (
        "Doersch, Gupta & Efros, Unsupervised Visual Representation Learning by Context Prediction, ICCV 2015"
    )

    k: tuple[int, ...] = (1, 5, 10)
    gallery: str = "train"
    index: str = "exact"
    lists: int = 0
    probes: int = 8
    layer: str = "output"
    pooling: str = "none"
    size: int = 0
    side: int = 0
    queries: int = 8
    shown: int = 8
    picture_side: int = 64

    def __post_init__(self) -> None:
        for name, known in {"gallery": ("train", "own"), "index": ("exact", "ivf")}.items():
            if getattr(self, name) not in known:
                raise BenchError(f"retrieval.{name} is {getattr(self, name)!r}; write {' or '.join(known)}")
        if not self.k or min(self.k) < 1:
            raise BenchError(f"retrieval.k must be a list of numbers from 1 up, not {list(self.k)}")

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        return (Tap(self.layer, self.pooling, self.size, self.side),)

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement | Picture]:
        gallery = self._part(model, target.train, run) if self.gallery == "train" else None
        for split, samples in (("test", target.test), ("validation", target.validation)):
            if not len(samples):
                continue
            queries = self._part(model, samples, run)
            neighbors = self.search(gallery or queries, queries)
            classes = (gallery or queries).classes(neighbors)
            for metric, value in scores(classes, queries.labels, self.k):
                yield Measurement(metric, value, column(self.layer), split)
            if split == "test" and self.queries:
                yield Picture("neighbors", self._picture(gallery or queries, queries, neighbors, run))

    def _part(self, model: Model, samples: Samples, run: Run) -> _Part:
        (tap,) = self.taps(model.encoder)
        rows, labels = labeled(samples)
        found = chosen(features(model, samples, [tap], run)[tap], rows)
        return _Part(samples, rows, labels, unit(found))

    def search(self, gallery: _Part, queries: _Part) -> Tensor:
        """The places in the gallery, int64 (N, k), the most similar first; -1 where ``ivf`` found no more.

        Where the queries are the gallery, no query is its own neighbor.
        """
        own = gallery is queries
        count = min(max(*self.k, self.shown), len(gallery.rows) - own)
        if count < 1:
            raise BenchError(f"{queries.samples.name}: one image alone has no neighbors to retrieve")
        neighbors = self._places(gallery.features, queries.features, count + own)
        return without_self(neighbors) if own else neighbors

    def _places(self, gallery: Features, queries: Features, k: int) -> Tensor:
        if self.index == "exact":
            return nearest(gallery, queries, k)[1]
        vectors = in_memory(gallery, 'inverted lists lie in memory: write index = "exact"').numpy()
        faiss.omp_set_num_threads(torch.get_num_threads())
        lists = min(self.lists or round(LISTS_PER_ROOT * math.sqrt(len(vectors))), len(vectors))
        exact: Any = faiss.IndexFlatIP(vectors.shape[1])
        index: Any = faiss.IndexIVFFlat(exact, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe, index.cp.min_points_per_centroid = min(self.probes, lists), 1
        index.train(vectors)
        index.add(vectors)
        return torch.from_numpy(np.concatenate([index.search(q.numpy(), k)[1] for q in blocks(queries)]))

    def _picture(self, gallery: _Part, queries: _Part, neighbors: Tensor, run: Run) -> Tensor:
        """A row a query: itself, then its neighbors."""
        order = torch.randperm(len(queries.rows), generator=run.generator("retrieval"))
        chosen = order[: self.queries]
        found = neighbors[chosen, : self.shown]
        rows, side = gallery.rows[found.clamp_min(0)], self.picture_side
        near = thumbnails(gallery.samples.images, rows.flatten(), side).view(*found.shape, 3, side, side)
        near = near * (found >= 0)[..., None, None, None]
        first = thumbnails(queries.samples.images, queries.rows[chosen], side)[:, None]
        same = gallery.classes(found) == queries.labels[chosen][:, None]
        colors = [[QUERY, *(SAME if s else OTHER for s in line)] for line in same.tolist()]
        tiles = framed(torch.cat([first, near], 1).flatten(0, 1), [c for line in colors for c in line])
        return grid(tiles, 1 + found.shape[1])


@dataclass(frozen=True)
class _Part:
    """The labeled images of a split: which they are (N,), classes (N,), features (N, d) of unit length."""

    samples: Samples
    rows: Tensor
    labels: Tensor
    features: Features

    def classes(self, places: Tensor) -> Tensor:
        """The classes at ``places``; -1, which is no class, where there is nothing (-1)."""
        return torch.where(places >= 0, self.labels[places.clamp_min(0)], -1)


def without_self(neighbors: Tensor) -> Tensor:
    """Row i of (N, k + 1) without i, or without its last place where i is not among them: (N, k)."""
    own = neighbors == torch.arange(len(neighbors))[:, None]
    own[~own.any(1), -1] = True
    return neighbors[~own].view(len(neighbors), -1)


def scores(classes: Tensor, labels: Tensor, ks: Sequence[int]) -> Iterator[tuple[str, float]]:
    """recall@k and agreement@k in percent, of the neighbors' classes (N, K) and the queries' own (N,)."""
    same = classes == labels[:, None]
    for k in ks:
        yield f"recall@{k}", 100.0 * float(same[:, :k].any(1).double().mean())
        yield f"agreement@{k}", 100.0 * float(same[:, :k].double().mean())
