"""Clusters of features: whitened principal components on the sphere, then k-means.

Caron et al., Deep Clustering for Unsupervised Learning of Visual Features, ECCV 2018, section 4.1;
the release whitens inside faiss by a call that today's faiss refuses.
"""

from __future__ import annotations

import faiss
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bench.contracts import BenchError

_FLAT = 1e-6  # a component below this part of the first one's variance is numerical noise: dropped


def whiten(features: Tensor, components: int) -> Tensor:
    """The first principal components at unit variance, rows of unit length: (N, d) to (N, <= components).

    :raises BenchError: features that k-means cannot part: not finite, or the same for all images.
    """
    if not features.isfinite().all():
        raise BenchError("features are not finite: the training diverged (try a smaller lr)")
    centered = features.double() - features.double().mean(0)
    variance, axes = torch.linalg.eigh(centered.T @ centered / max(1, len(centered) - 1))
    if variance[-1] <= (torch.finfo(torch.float32).eps * features.abs().max()) ** 2:
        raise BenchError("features are the same for all images: the training collapsed (try a smaller lr)")
    keep = variance.flip(0)[:components] > _FLAT * variance[-1]
    axes, variance = axes.flip(1)[:, :components][:, keep], variance.flip(0)[:components][keep]
    return F.normalize((centered @ (axes / variance.sqrt())).float())


def kmeans(points: Tensor, clusters: int, seed: int, iterations: int = 20) -> tuple[Tensor, float]:
    """Cluster ids int64 (N,) and the sum of squared distances. Empty clusters are re-seeded inside faiss."""
    vectors = points.cpu().contiguous().numpy()
    engine = faiss.Kmeans(
        vectors.shape[1],
        clusters,
        niter=iterations,
        seed=seed & 0x7FFFFFFF,
        min_points_per_centroid=1,
        max_points_per_centroid=10_000_000,  # the release's: no subsampling
    )
    engine.train(vectors)
    distances, ids = engine.index.search(vectors, 1)
    return torch.from_numpy(ids[:, 0].copy()), float(distances.sum())


def match(new: Tensor, old: Tensor, clusters: int) -> Tensor:
    """``new`` ids renamed to agree with ``old`` on as many samples as can be (Hungarian assignment)."""
    overlap = torch.bincount(new * clusters + old, minlength=clusters**2).view(clusters, clusters)
    _, names = linear_sum_assignment(overlap.numpy(), maximize=True)
    return torch.from_numpy(names)[new]
