"""ImageNet (ILSVRC 2012), Places205 and Places365: images streamed from a folder a class, from tars, or by lists."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from bench.contracts import Dataset, Samples
from bench.data import _split, _trees
from bench.data._answers import answers
from bench.data._files import content_name, known_split
from bench.data._label_files import shown
from bench.data.sources import Files, Streamed
from bench.data.staging import staged
from bench.records import BenchError, aside, later

_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class _Folders(Dataset):
    """``root/NAME/{train,val}/CLASS/*``, or ``train`` and ``val`` as tars; labels are places among the sorted classes."""

    files: ClassVar[tuple[str, ...]] = ("label_file", "classes_file", "val_list")
    teller: ClassVar[str] = "bench.data._trees:subset_facts"
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    test_split: ClassVar[str] = "val"
    request: ClassVar[str]  # where the files can be had
    tars: ClassVar[dict[str, str]] = {}  # as they are published
    lists: ClassVar[tuple[str, ...]] = ()  # where the classes of val may stand, if it is one flat folder

    label_file: str = later("")
    label_file_sha256: str = later("")
    subset: tuple[str, ...] = later(())
    classes_file: str = later("")
    classes_file_sha256: str = later("")
    val_list: str = later("")
    val_list_sha256: str = later("")
    stage: str = aside("")

    def load(self, split: str, root: Path) -> Samples:
        """One split; its images are listed here and read when they are asked for."""
        known_split(self, split)
        found = self._split(split, root)
        known = torch.from_numpy(found.labels)
        if self.label_file and split == "train":
            paths = [f"/{name}" for name in found.names]
            known = shown(known, paths, Path(self.label_file).expanduser(), self.label_file_sha256)
        return Samples(content_name(self, split, str(root)), Streamed(found.reader), known)

    def paths(self, root: Path) -> list[Path]:
        """The images of both splits, or the tars, and the list of val's classes where there is one."""
        names = self._classes(root)
        ask = self._list(root)
        found = _split.files(self._place("train", root), names, flat=False)
        found += _split.files(self._place("val", root), names, flat=ask is not None)
        return sorted(found + ([ask] if ask else []))

    def get(self, root: Path) -> None:
        """These files cannot be downloaded freely.

        :raises BenchError: always; it says where to ask for them and where they belong.
        """
        raise BenchError(f"{self.name} cannot be downloaded freely: {self._remedy(root)}")

    def _remedy(self, root: Path) -> str:
        return f"request it at {self.request} and unpack it to {root / self.name}/{{train,val}}/CLASS/*.JPEG"

    def _split(self, split: str, root: Path) -> _split.Split:
        names, place = self._classes(root), self._place(split, root)
        ask = self._list(root) if split == "val" else None
        every = self._all(root) if ask else []
        asked = None if ask is None else functools.partial(answers, ask, classes=every)
        return _split.split(place, names, self.stage, f"{self.name}.stage", asked)

    def _place(self, split: str, root: Path) -> Path:
        base = root / self.name
        tar = base / self.tars.get(split, "")
        return tar if tar.is_file() and not _trees.is_there(base / split) else base / split

    def _all(self, root: Path) -> list[str]:
        """The classes of the training images."""
        try:
            return _trees.classes_in(self._place("train", root))
        except BenchError as error:
            raise BenchError(f"{error}; expected a folder a class: {self._remedy(root)}") from None

    def _classes(self, root: Path) -> list[str]:
        """The classes that are wanted; those of val must be the same where it has class folders."""
        there, wanted = self._all(root), _trees.listed_classes(_named_classes(self), self.name)
        if not wanted and len(there) != self.classes:
            raise BenchError(
                f"{root / self.name}: {len(there)} class folders, expected {self.classes}: {self._remedy(root)}"
            )
        if self._list(root) is None:
            self._same(there, root)
        return _trees.chosen(wanted, there, self._place("train", root))

    def _same(self, train: list[str], root: Path) -> None:
        place = self._place("val", root)
        try:
            val = _trees.classes_in(place)
        except BenchError as error:
            raise BenchError(f"{error}; expected a folder a class: {self._remedy(root)}") from None
        if self.lists and not set(val) & set(train):
            raise BenchError(
                f"{place}: images without class folders need the list of their classes: put {self.lists[0]} into "
                f"{root / self.name}, or write {self.name}.val_list"
            )
        odd = sorted(set(train) ^ set(val))
        if odd:
            where, other = ("train", "val") if odd[0] in train else ("val", "train")
            raise BenchError(f"{root / self.name / where / odd[0]}: there is no class {odd[0]!r} in {other}")

    def _list(self, root: Path) -> Path | None:
        """The list of val's classes, where its images lie flat."""
        if self.val_list:
            return _trees.expanded(self.val_list, f"{self.name}.val_list")
        found = next((root / self.name / n for n in self.lists if (root / self.name / n).is_file()), None)
        if found is None:
            return None
        flat = not set(_trees.classes_in(self._place("val", root))) & set(self._all(root))
        return found if flat else None


def _named_classes(dataset: _Folders) -> dict[str, object]:
    """The settings that name classes."""
    return {"subset": dataset.subset, "classes_file": dataset.classes_file}


@dataclass(frozen=True)
class ImageNet(_Folders):
    """1.28 million training images of a thousand classes; judged on the 50,000 of "val", as is usual.

    :param label_file: a list of the training images whose labels are known, one a line (or S4L's JSON): the
        published 1% and 10%. The others are there without a label. "": all are known.
    :param label_file_sha256: written by the plan; where a suite says it, the file must have it.
    :param subset: the classes (wnids) that are used, as ImageNet-100's; () is all. ``classes_file``: one a line.
    :param val_list: the classes of a flat "val": lines of NAME CLASS (or its place), Kaggle's table, or the devkit's
        ground truth; "": val.txt, LOC_val_solution.csv or the devkit beside the images, where one is needed.
    :param stage: a folder of the node's own, as "$SLURM_TMPDIR": files are copied there once and read from it.
    """

    name: ClassVar[str] = "imagenet"
    classes: ClassVar[int] = 1000
    request: ClassVar[str] = "https://image-net.org/download.php"
    tars: ClassVar[dict[str, str]] = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
    lists: ClassVar[tuple[str, ...]] = (
        "val.txt",
        "LOC_val_solution.csv",
        _DEVKIT,
        f"ILSVRC2012_devkit_t12/data/{_DEVKIT}",
    )


@dataclass(frozen=True)
class Places205(_Folders):
    """2.4 million training images of 205 kinds of places; judged on "val", as is usual.

    :param label_file: as ImageNet's, and so are ``subset``, ``classes_file``, ``val_list`` and ``stage``.
    """

    name: ClassVar[str] = "places205"
    classes: ClassVar[int] = 205
    request: ClassVar[str] = "http://places.csail.mit.edu"


@dataclass(frozen=True)
class Places365(_Folders):
    """1.8 million training images of 365 kinds of places; judged on the 36,500 of "val", as is usual.

    As published (and as torchvision has it): ``places365_train_standard.txt`` and ``places365_val.txt`` beside
    ``data_256`` (or ``data_256_standard``), with folders as a/abbey, and ``val_256``; or {train,val}/CLASS.

    :param size: of the published images: "256" or "large".
    :param label_file: as ImageNet's, and so are ``subset``, ``classes_file`` (/a/abbey) and ``stage``.
    """

    name: ClassVar[str] = "places365"
    classes: ClassVar[int] = 365
    request: ClassVar[str] = "http://places2.csail.mit.edu"

    size: str = "256"

    def __post_init__(self) -> None:
        if self.size not in {"256", "large"}:
            raise BenchError(f'places365: size is {self.size!r}; write "256" or "large"')

    def paths(self, root: Path) -> list[Path]:
        """The images of both splits and their lists."""
        if not self._listed(root):
            return super().paths(root)
        base, lists = root / self.name, ["categories_places365.txt", *_PLACES.values()]
        found = [self._images(s, root) / name for s in self.splits for name in self._split(s, root).names]
        return sorted([*found, *(base / name for name in lists)])

    def _listed(self, root: Path) -> bool:
        return (root / self.name / _PLACES["train"]).is_file()

    def _split(self, split: str, root: Path) -> _split.Split:
        if not self._listed(root):
            return super()._split(split, root)
        base, images = root / self.name, self._images(split, root)
        ids = {name: int(i) for name, i in _lines(base / "categories_places365.txt")}
        wanted = _trees.listed_classes(_named_classes(self), self.name)
        classes = _trees.chosen(wanted, sorted(ids, key=ids.__getitem__), base)
        labels = {ids[name]: label for label, name in enumerate(classes)}
        listed = [
            (name.lstrip("/"), labels[int(i)])
            for name, i in _lines(base / _PLACES[split])
            if int(i) in labels
        ]
        names = [name for name, _ in listed]
        moved = staged(images, names, self.stage, "places365.stage")
        reader = Files([f"{moved}/{name}" for name in names])
        return _split.Split(names, np.array([label for _, label in listed], np.int64), reader)

    def _images(self, split: str, root: Path) -> Path:
        base = root / self.name
        names = (
            [f"data_{self.size}_standard", f"data_{self.size}"] if split == "train" else [f"val_{self.size}"]
        )
        found = next((base / name for name in names if (base / name).is_dir()), None)
        if found is None:
            raise BenchError(f"{base / names[-1]}: missing; {self._remedy(root)}")
        return found


_PLACES = {"train": "places365_train_standard.txt", "val": "places365_val.txt"}


def _lines(path: Path) -> list[tuple[str, str]]:
    """A name and a class number a line."""
    remedy = "unpack filelist_places365-standard.tar again"
    try:
        found = [tuple(line.split()) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: missing or unreadable; {remedy}") from error
    for number, words in enumerate(found, 1):
        if len(words) != 2 or not words[1].isdigit():
            raise BenchError(f"{path}: line {number} is no name and class number; {remedy}")
    return found  # type: ignore[return-value]  # pairs, as was just seen
