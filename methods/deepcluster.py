"""DeepCluster: cluster the features, learn to predict the clusters, and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import Backbone, DataShape, Draws, Encoder, Model, Run, TrainingSet
from bench.draws import order
from methods._loop import Batch, Loop, State
from methods.parts import heads, views
from methods.parts.kmeans import kmeans, match, whiten
from methods.parts.pictures import all_images

_SHUFFLE, _PICK, _MIX = 0xDC0, 0xDC1, 0xDC2  # tell the purposes of an epoch's draws apart


@dataclass(frozen=True)
class Deepcluster(Loop):
    """k-means on whitened features gives pseudo-labels; a new linear layer learns them; images are drawn
    uniformly over the clusters. The defaults are ImageNet's (its Sobel input is the backbone's).

    The release's flag runs 200 epochs, the paper reports 500. More clusters than images become one per image.

    :param every: epochs between two clusterings; ``pca``: components; ``iterations``: of k-means.
    :param matched: keep the top layer, and rename new clusters to agree with the old (Hungarian assignment);
        the paper makes a new layer each time, trained without momentum.
    :param dropout: before the top layer.
    """

    shrinks: ClassVar[dict[str, str]] = {"batch_size": "batch", "clusters": "images"}
    paper: ClassVar[str] = (
        "Caron, Bojanowski, Joulin & Douze, Deep Clustering for Unsupervised Learning of Visual Features, ECCV 2018"
    )
    repeats: ClassVar[bool] = True

    lr: float = 0.05
    weight_decay: float = 1e-5
    batch_size: int = 256
    augment: str = "resized_crop"
    clusters: int = 10_000
    every: int = 1
    pca: int = 256
    iterations: int = 20
    matched: bool = False
    dropout: float = 0.5

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder and a linear layer over the clusters."""
        encoder = backbone.build(generator=generator)
        head = heads.linear(encoder.dim, min(self.clusters, shape.count), generator, dropout=self.dropout)
        return Model(encoder, parts={"clusters": head})

    def groups(self, model: Model) -> list[dict[str, Any]]:
        """A layer that is thrown away keeps no momentum."""
        head = {"params": list(model.parts["clusters"].parameters())}
        return [
            {"params": list(model.encoder.parameters())},
            head if self.matched else head | {"momentum": 0.0, "nesterov": False},
        ]

    def passes(self, shape: DataShape) -> float:
        """Training, and the forward passes that the clustering reads."""
        return views.area(shape, self.crop) * (1 + 1 / (3 * self.every))

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """The cluster of every image, int64 (N,)."""
        return {"assignments": torch.zeros(len(data), dtype=torch.int64, device=run.device)}

    def begin_epoch(self, epoch: int, model: Model, state: State, data: TrainingSet, run: Run) -> None:
        """Cluster anew, and reset the top layer or match the clusters to it."""
        if epoch % self.every:
            return
        count = min(self.clusters, len(data))
        points = whiten(self._features(model, data, run), self.pca)
        seed = int(torch.randint(2**31 - 1, (), generator=run.generator(f"k-means {epoch}")))
        ids, _ = kmeans(points, count, seed, self.iterations)
        if not self.matched:
            heads.reset(self._top(model), run.generator(f"top layer {epoch}"))
        elif epoch:
            ids = match(ids, state["assignments"].cpu(), count)
        state["assignments"].copy_(ids)
        run.assignments(epoch, ids)

    @staticmethod
    def _top(model: Model) -> nn.Linear:
        layer = list(model.parts["clusters"].children())[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    @torch.no_grad()
    def _features(self, model: Model, data: TrainingSet, run: Run) -> Tensor:
        model.eval()
        with run.autocast():
            images = all_images(data.images, data.shape, self.batch_size, self.crop)
            features = torch.cat([unrectified(model.encoder, batch).float() for batch in images])
        model.train()
        return features

    def epoch_order(self, samples: Tensor, state: State, seed: int, epoch: int) -> Tensor:
        """Uniform over the clusters (section 3.3, trivial parametrization)."""
        return balanced(state["assignments"].cpu(), seed, epoch)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 1: the cross-entropy of the pseudo-labels."""
        (view,) = batch.views
        scores = model.parts["clusters"](model.encoder(view)).float()
        return {"clusters": F.cross_entropy(scores, state["assignments"][batch.index])}


def unrectified(encoder: Encoder, images: Tensor) -> Tensor:
    """Features (N, dim) before the ReLU that an encoder's top ends in: these the release clusters (main.py)."""
    top = encoder.top
    if not isinstance(top, nn.Sequential) or not isinstance(top[-1], nn.ReLU):
        return encoder(images)  # type: ignore[no-any-return]  # torch types a module's call as Any
    return top[:-1](encoder.maps(images))  # type: ignore[no-any-return]


def balanced(ids: Tensor, seed: int, epoch: int) -> Tensor:
    """N samples of the N with cluster ``ids``: each cluster as often; small ones with replacement."""
    shuffled = order(len(ids), seed, _SHUFFLE, epoch)
    members = shuffled[torch.argsort(ids[shuffled], stable=True)]
    sizes = torch.bincount(ids)
    sizes = sizes[sizes > 0][:, None]
    quota = len(ids) // len(sizes) + 1
    drawn = (Draws(seed, epoch, torch.arange(len(sizes)), _PICK).uniform(quota).double() * sizes).long()
    picks = torch.where(sizes > quota, torch.arange(quota), drawn) + sizes.cumsum(0) - sizes
    chosen = members[picks.flatten()]
    return chosen[order(len(chosen), seed, _MIX, epoch)][: len(ids)]
