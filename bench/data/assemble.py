"""What a method is trained on and what a protocol judges on, put together from a dataset's splits.

The order is always the same: first validation images are held out of the training set (so that a
training and a target with as many of them hold out the same ones), then labels are given to some of
the rest. Labels that a method may not see are taken out here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts import Dataset, Images, Samples, Target, TrainingSet
from bench.data import sources, splits
from bench.data._lazy import Lazy
from bench.data.splits import Indices
from bench.data.standins import is_standin
from bench.records import Aim, BenchError, Data

T = TypeVar("T")
Info: TypeAlias = "dict[str, str | int]"

EXTRA = ("extra", "unlabeled")  # what datasets call the images beyond their training set


@dataclass(frozen=True)
class _Pool:
    """The images to choose from: those of the training set, then the extra ones."""

    images: Images
    labels: NDArray[np.int64]  # (N,), -1 where unknown
    count: int  # how many are of the training set

    def known(self, indices: Indices) -> NDArray[np.int64]:
        """The labels with all but those at ``indices`` made unknown."""
        out = np.full_like(self.labels, -1)
        out[indices] = self.labels[indices]
        return out


def training_set(
    data: Data, dataset: Dataset, root: Path, sees_labels: bool, device: torch.device
) -> tuple[TrainingSet, Info]:
    """The images of a training with the labels that it may see, and a record of the choice.

    Labeled images are drawn from the training set after the held-out ones have left it; extra images keep
    their labels only where ``data.labels`` is ``"all"``. ``data.unlabeled`` counts images beyond the labeled
    ones. An image of unknown class serves unless ``data.unlabeled_classes`` are named.

    :raises BenchError: more labels or images than there are; no extra images; missing files.
    """
    pool, classes = _pool(data, dataset, root), _class_count(dataset, root)
    held, shown, hidden = _choice(data, dataset, pool)
    chosen = np.union1d(shown, hidden)
    labels: Tensor | None = None
    if sees_labels:
        visible = pool.known(shown)
        visible = splits.noisy(visible, data.label_noise, dataset.name, data.label_split, classes)
        labels = torch.from_numpy(visible[chosen]).to(device)
    images = pool.images if len(chosen) == len(pool.labels) else sources.subset(pool.images, chosen)
    info = _info(shown, held, dataset, root) | {"images": len(chosen), "unlabeled": len(hidden)}
    return TrainingSet(images.to(device), labels, classes, dataset.flip), info


def _choice(data: Data, dataset: Dataset, pool: _Pool) -> tuple[Indices, Indices, Indices]:
    """Which of the pool's images are held out, which are shown with their labels, which without."""
    held = splits.validation(pool.labels[: pool.count], data.validation, dataset.name, data.resample)
    free = np.ones(len(pool.labels), np.bool_)
    free[held] = False
    shown = _shown(data, dataset.name, pool, free)
    return held, shown, _hidden(data, dataset.name, pool, free, shown)


def trained_labels(data: Data, dataset: Dataset, root: Path) -> Tensor:
    """The classes of the images that a training saw, in its order, shown to it or not: to judge it by.

    :returns: int64 (N,), -1 where the dataset itself does not know; without the noise of ``label_noise``.
    """
    pool = _pool(data, dataset, root)
    _, shown, hidden = _choice(data, dataset, pool)
    return torch.from_numpy(pool.labels[np.union1d(shown, hidden)])


def target(aim: Aim, dataset: Dataset, root: Path, device: torch.device) -> tuple[Target, Info]:
    """What a protocol judges on, and a record of the choice.

    Validation is taken from the training set: ``"auto"`` is a tenth of it, but with ``aim.labels`` = n no more
    than n (or one a class, if that is more): who has few labels to train with has few to choose with. The
    training images are the rest, or n of the rest. All of a smaller validation set is part of a larger one.
    Where ``aim.classes`` are named, images of others do not exist.

    :raises BenchError: more labels or images than there are; missing files.
    """
    train = _load(dataset, "train", root)
    classes = _classes(train)
    judged = _within(_load(dataset, dataset.test_split, root), aim)
    if aim.classes:
        classes = np.where(np.isin(classes, aim.classes), classes, -1)
    size = _validation_size(aim, len(train), _class_count(dataset, root))
    held = splits.validation(classes, size, dataset.name, 0)
    free = classes.copy()
    free[held] = -1
    count = int((free >= 0).sum()) if aim.labels == "all" else _count(aim.labels, "labels")
    shown = np.sort(splits.labeled(free, count, dataset.name, aim.label_split))
    parts = Target(
        train=_to(take(train, shown), device),
        validation=_to(take(train, np.sort(held)), device),
        test=_to(judged, device),
        classes=_class_count(dataset, root),
        flip=dataset.flip,
        class_names=dataset.facts(root).class_names,
    )
    return parts, _info(shown, held, dataset, root)


def _load(dataset: Dataset, split: str, root: Path) -> Samples:
    """One split; that it is a stand-in's shows in its name, so that nothing kept under the name is taken for more."""
    found = dataset.load(split, root)
    return replace(found, name=f"standin-{found.name}") if is_standin(dataset.name, root) else found


def _within(samples: Samples, aim: Aim) -> Samples:
    """The images of the classes that are judged."""
    if not aim.classes:
        return samples
    return take(samples, np.flatnonzero(np.isin(_classes(samples), aim.classes)))


def take(samples: Samples, indices: Indices) -> Samples:
    """Some of the samples with all their annotations; the name says which."""
    if len(indices) == len(samples) and np.array_equal(indices, np.arange(len(samples))):
        return samples
    index = torch.from_numpy(np.asarray(indices, np.int64))
    return Samples(
        name=f"{samples.name}-{splits.split_digest(indices)[:10]}",
        images=sources.subset(samples.images, index),
        labels=None if samples.labels is None else samples.labels[index],
        multilabel=None if samples.multilabel is None else samples.multilabel[index],
        boxes=_some(samples.boxes, index),
        masks=_some(samples.masks, index),
    )


def _some(values: Sequence[T] | None, index: Tensor) -> Sequence[T] | None:
    if isinstance(values, Lazy):
        return values.some(index.numpy())
    return None if values is None else [values[i] for i in index.tolist()]


def _to(samples: Samples, device: torch.device) -> Samples:
    """Images and class labels move; boxes and masks, read one image at a time, stay."""
    return replace(
        samples,
        images=samples.images.to(device),
        labels=None if samples.labels is None else samples.labels.to(device),
        multilabel=None if samples.multilabel is None else samples.multilabel.to(device),
    )


def _class_count(dataset: Dataset, root: Path) -> int:
    count = dataset.facts(root).classes
    if count is None:
        raise BenchError(f"{dataset.name}: neither its settings nor its files say how many classes it has")
    return count


def _classes(samples: Samples) -> NDArray[np.int64]:
    """The labels; where a dataset has none of this kind, its images count as one class."""
    if samples.labels is None:
        return np.zeros(len(samples), np.int64)
    return samples.labels.cpu().numpy().astype(np.int64)


def _pool(data: Data, dataset: Dataset, root: Path) -> _Pool:
    train = _load(dataset, "train", root)
    if not data.extra:
        return _Pool(train.images, _classes(train), len(train))
    found = [split for split in EXTRA if split in dataset.splits]
    if not found:
        raise BenchError(f"data.extra: {dataset.name} has no extra images; write extra = false")
    extra = _load(dataset, found[0], root)
    unknown = np.full(len(extra), -1, np.int64)
    labels = np.concatenate([_classes(train), unknown if extra.labels is None else _classes(extra)])
    return _Pool(sources.joined(train.images, extra.images), labels, len(train))


def _shown(data: Data, name: str, pool: _Pool, free: NDArray[np.bool_]) -> Indices:
    """Which images of the pool are labeled."""
    if data.labels == "all":
        allowed = free & (pool.labels >= 0)
        if data.labeled_classes:
            allowed &= np.isin(pool.labels, data.labeled_classes)
        return np.flatnonzero(allowed)
    labels = np.where(free, pool.labels, -1)[: pool.count]
    return splits.labeled(
        labels, _count(data.labels, "data.labels"), name, data.label_split, data.labeled_classes
    )


def _hidden(data: Data, name: str, pool: _Pool, free: NDArray[np.bool_], shown: Indices) -> Indices:
    """Which images of the pool serve without a label."""
    allowed = free.copy()
    allowed[shown] = False
    if data.unlabeled_classes:
        allowed &= np.isin(pool.labels, data.unlabeled_classes)
    if data.unlabeled == "all":
        return np.flatnonzero(allowed)
    return splits.unlabeled(allowed, _count(data.unlabeled, "data.unlabeled"), name, data.label_split)


def _validation_size(aim: Aim, count: int, classes: int) -> int:
    if aim.validation != "auto":
        return _count(aim.validation, "validation")
    tenth = count // 10
    return tenth if aim.labels == "all" else min(tenth, max(_count(aim.labels, "labels"), classes))


def _count(value: int | str, what: str) -> int:
    if isinstance(value, str):
        raise BenchError(f'{what}: {value!r} is neither a number of images nor "all"')
    return value


def _info(shown: Indices, held: Indices, dataset: Dataset, root: Path) -> Info:
    """What rows and records say of the choice; a stand-in's are not taken for the real set's."""
    digest = splits.split_digest(shown) if len(shown) else ""
    return {
        "split_digest": f"standin-{digest}" if is_standin(dataset.name, root) else digest,
        "validation_digest": splits.split_digest(held) if len(held) else "",
        "labeled": len(shown),
        "validation": len(held),
    }
