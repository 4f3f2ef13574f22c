"""One split of a dataset of image files: its images in folders or tars, their names and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.data import _listing
from bench.data._trees import in_tars, tars_of
from bench.data.archives import Archived
from bench.data.loading import Reader
from bench.data.sources import Chosen, Files
from bench.data.staging import staged
from bench.records import BenchError

Ask = Callable[[Sequence[str]], Sequence[str]]  # names of images that lie flat -> the names of their classes


@dataclass(frozen=True)
class Split:
    """Images, each with its name CLASS/.../NAME below the split's place and its label."""

    names: Sequence[str]
    labels: NDArray[np.int64]
    reader: Reader


def split(place: Path, classes: Sequence[str], stage: str, where: str, ask: Ask | None = None) -> Split:
    """The images of a place that belong to ``classes``, in the order of torchvision's ImageFolder.

    :param ask: for images that lie flat; None: the folder of an image is its class.
    :raises BenchError: nothing there, a class without images, a tar that cannot be read.
    """
    tars = tars_of(place)
    if not tars:
        names = _listing.images(place) if ask else _in_classes(place, classes)
        labels = _labels(names, classes, ask)
        names = [names[i] for i in np.flatnonzero(labels >= 0)]
        base = staged(place, names, stage, where)
        return Split(names, labels[labels >= 0], Files([f"{base}/{name}" for name in names]))
    found, names, order = in_tars(tars)
    said = np.concatenate([index.labels for index in found])[order]
    labels = said if (said >= 0).any() else _labels(names, classes, ask)
    if labels.max(initial=-1) >= len(classes):
        raise BenchError(f"{place}: a label is {labels.max()}, and there are {len(classes)} classes")
    keep = np.flatnonzero(labels >= 0)
    moved = staged(tars[0].parent, [tar.name for tar in tars], stage, where)
    reader = Archived([moved / tar.name for tar in tars], found, order[keep])
    _none_empty(place, labels, classes)
    return Split([names[i] for i in keep], labels[keep], reader)


def files(place: Path, classes: Sequence[str], *, flat: bool) -> list[Path]:
    """What is read of a place: its tars, or its images."""
    tars = tars_of(place)
    if tars:
        return tars
    return [place / name for name in (_listing.images(place) if flat else _in_classes(place, classes))]


def some(whole: Split, indices: NDArray[np.int64]) -> Split:
    """Some of the images."""
    names = [whole.names[i] for i in indices]
    return Split(names, whole.labels[indices], Chosen([whole.reader], indices))


def _in_classes(place: Path, classes: Sequence[str]) -> list[str]:
    names = []
    for name in classes:
        found = _listing.images(place / name)
        if not found:
            raise BenchError(
                f"{place / name}: empty; expected images ({', '.join(_listing.ENDINGS)}): restore the class folder"
            )
        names += [f"{name}/{image}" for image in found]
    return names


def _labels(names: Sequence[str], classes: Sequence[str], ask: Ask | None) -> NDArray[np.int64]:
    """Places among the classes; -1 for images of other ones."""
    places = {name: label for label, name in enumerate(classes)}
    said = ask(names) if ask else [name.partition("/")[0] for name in names]
    return np.array([places.get(name, -1) for name in said], np.int64)


def _none_empty(place: Path, labels: NDArray[np.int64], classes: Sequence[str]) -> None:
    empty = np.flatnonzero(np.bincount(labels[labels >= 0], minlength=len(classes)) == 0)
    if len(empty):
        raise BenchError(f"{place}: class {classes[empty[0]]!r} has no image in it")
