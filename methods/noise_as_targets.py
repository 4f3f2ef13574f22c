"""Noise as targets: every image is pulled to a point of its own, drawn on the unit sphere before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bench.contracts import Backbone, BenchError, DataShape, Draws, Model, Run, TrainingSet
from methods._loop import Batch, Loop, State
from methods.parts import heads

_TARGETS = 0x7A46  # tells the targets' draws apart from those of views and losses


@dataclass(frozen=True)
class NoiseAsTargets(Loop):
    """Move embeddings to fixed targets, and exchange the targets within a batch where that shortens the way.

    The defaults are ImageNet's (its Sobel input is the backbone's). The paper halves the mean of the squared
    distances (Eq. 2); the release, whose rate this is, sums them over the batch.

    :param dim: of the sphere; ``every``: epochs between two that reassign targets, the first one does.
    :param reduction: of the squared distances: ``sum``, or ``half_mean``.
    :param feature_norm: an affine-free batch norm before the unit sphere; short trainings need it.
    """

    paper: ClassVar[str] = "Bojanowski & Joulin, Unsupervised Learning by Predicting Noise, ICML 2017"

    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    dim: int = 2048
    every: int = 3
    reduction: str = "sum"
    feature_norm: bool = False

    def __post_init__(self) -> None:
        if self.reduction not in {"sum", "half_mean"}:
            raise BenchError(f"noise_as_targets.reduction must be sum or half_mean, not {self.reduction!r}")
        if self.every < 1:
            raise BenchError(f"noise_as_targets.every must be 1 or more epochs, not {self.every}")

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder and a linear embedding."""
        encoder = backbone.build(generator=generator)
        embedding = heads.linear(encoder.dim, self.dim, generator, std=encoder.dim**-0.5)
        if self.feature_norm:
            embedding.append(nn.BatchNorm1d(self.dim, affine=False))
        return Model(encoder, parts={"embedding": embedding})

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """Which target each image has, int64 (N,), and the epoch that it is."""
        first = torch.randperm(len(data), generator=run.generator("assignment"))
        return {"assignment": first.to(run.device), "epoch": torch.zeros((), dtype=torch.int64)}

    def begin_epoch(self, epoch: int, model: Model, state: State, data: TrainingSet, run: Run) -> None:
        """Some epochs reassign, the others keep what each image has."""
        state["epoch"].fill_(epoch)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Algorithm 1: embed, find the best permutation of the batch's targets, and approach them."""
        (view,) = batch.views
        embedded = F.normalize(model.parts["embedding"](model.encoder(view)).float())
        owned = state["assignment"][batch.index]
        found = targets(owned, self.dim, batch.seed)
        if int(state["epoch"]) % self.every == 0:
            order = best_permutation(embedded.detach(), found)
            owned, found = owned[order], found[order]
        batch.kept["owned"] = owned
        distance = (embedded - found).square().sum()
        return {"distance": distance if self.reduction == "sum" else distance / (2 * len(batch))}

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """The assignment stays a permutation: a batch only exchanges its own targets."""
        state["assignment"][batch.index] = batch.kept["owned"]


def targets(ids: Tensor, dim: int, seed: int) -> Tensor:
    """The targets of these ids, (B,) to (B, dim): uniform on the sphere, drawn anew each time to the same numbers."""
    return F.normalize(Draws(seed, 0, ids, stream=_TARGETS).normal(dim))


def best_permutation(embedded: Tensor, found: Tensor) -> Tensor:
    """``found[order]`` is nearest to ``embedded``, both (B, dim) on the sphere: int64 (B,), by the Hungarian method."""
    similar = (embedded @ found.T).cpu().double().numpy()
    _, order = linear_sum_assignment(similar, maximize=True)
    return torch.from_numpy(order).to(found.device)
