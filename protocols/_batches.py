"""Batches of frozen features to train a classifier on: stored ones, or those of fresh crops in every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

from torch import Tensor

from bench.contracts import BenchError, Model, Run, Samples, Tap, Target
from bench.features import batches, chosen
from bench.training import epoch_batches
from protocols._features import features, read
from protocols._scores import labeled
from protocols._views import random_view

Batch: TypeAlias = "tuple[Tensor, Mapping[Tap, Tensor]]"  # labels (N,), features (N, d) of each layer


class Seen(Protocol):
    """What an evaluation says of the views that it trains on, as its settings."""

    @property
    def augment(self) -> str: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def side(self) -> int: ...
    @property
    def square(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def padding(self) -> str: ...


class Cached:
    """Batches of stored features."""

    def __init__(self, seen: Seen, model: Model, target: Target, taps: Sequence[Tap], run: Run) -> None:
        rows, labels = labeled(target.train)
        found = {tap: chosen(x, rows) for tap, x in features(model, target.train, taps, run).items()}
        self.features = {tap: x.to(run.device) if isinstance(x, Tensor) else x for tap, x in found.items()}
        self.labels, self.count = labels.to(run.device), len(rows)
        self.size, self.seed = min(seen.batch_size, self.count), run.seed

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        picks = epoch_batches(self.count, self.size, self.seed, epoch, first)
        device = self.labels.device
        for batch, found in zip(picks, batches(self.features, picks), strict=True):
            yield self.labels[batch.to(device)], {tap: x.to(device) for tap, x in found.items()}


class Cropped:
    """Batches of features of fresh crops: one forward pass for all layers."""

    def __init__(self, seen: Seen, model: Model, target: Target, taps: Sequence[Tap], run: Run) -> None:
        self.rows, labels = labeled(target.train)
        self.labels, self.count = labels.to(run.device), len(self.rows)
        self.images, self.encoder, self.taps, self.run = target.train.images, model.encoder, taps, run
        self.frame = random_view(
            self.images,
            seen.augment,
            seen.side,
            seen.pad,
            flip=target.flip,
            square=seen.square,
            padding=seen.padding,
        )
        self.size = seen.batch_size

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        batches = epoch_batches(self.count, self.size, self.run.seed, epoch, first)
        views = self.images.views([self.rows[b] for b in batches], [self.frame], self.run.seed, epoch)
        for index, (view,) in zip(batches, views, strict=True):
            yield self.labels[index.to(self.labels.device)], read(self.encoder, view, self.taps, self.run)


def check_batch_norm(protocol: str, train: Samples, batch_size: int, instead: str) -> None:
    """Statistics of a batch need two images.

    :param instead: another setting that does without, as text.
    :raises BenchError: batches of one image.
    """
    labels = len(labeled(train)[1])
    if min(labels, batch_size) < 2:
        small = f"batch_size is {batch_size}" if labels > 1 else f"there is {labels} labeled image"
        raise BenchError(
            f"{protocol}: batch normalization needs batches of two images, and {small}: write "
            f"{instead}more target.labels and a larger batch_size"
        )


def source_of(seen: Seen, model: Model, target: Target, taps: Sequence[Tap], run: Run) -> Cached | Cropped:
    """The batches of an evaluation: of stored features where no view is random."""
    return (Cached if seen.augment == "none" else Cropped)(seen, model, target, taps, run)
