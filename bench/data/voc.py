"""PASCAL VOC 2007 and 2012 (with SBD's masks), and ``scenes`` in the same form on disk."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from bench.contracts import Dataset, Samples
from bench.data import _voc_files as files
from bench.data._files import content_name, download, known_split
from bench.data._layout import CLASSES as SCENES
from bench.data._lazy import Lazy
from bench.data.proposals import attach
from bench.data.sources import Streamed
from bench.records import BenchError, digest

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_LISTS = {"main": "Main", "segmentation": "Segmentation"}
_SBD = {"sbd_train": "train.txt", "sbd_val": "val.txt"}


@dataclass(frozen=True)
class _Voc(Dataset):
    """What all years share. ``train`` and ``test`` name lists below ``ImageSets``; "train" is the first of them.

    :param folder: below the data root; JPEGImages, Annotations and ImageSets lie in it.
    :param sbd: the folder of SBD's lists and masks (sbd_train, sbd_val, train_aug), below the data root.
    :param proposals: a file of boxes from ``bench data convert``, below the data root; "": none.
    """

    annotations: ClassVar[tuple[str, ...]] = ("multilabel", "boxes", "mask")
    words: ClassVar[tuple[str, ...]] = VOC_CLASSES  # what the files call the classes
    class_names: ClassVar[tuple[str, ...]] = VOC_CLASSES
    classes: ClassVar[int] = len(VOC_CLASSES)
    counts: ClassVar[dict[str, int]] = {}  # published sizes: "main/trainval"
    archives: ClassVar[tuple[str, ...]] = ()  # what the year offers for download

    folder: str = ""
    task: str = "main"
    train: str = "trainval"
    test: str = "test"
    sbd: str = "benchmark_RELEASE/dataset"
    proposals: str = ""

    def __post_init__(self) -> None:
        if self.task not in _LISTS:
            raise BenchError(f"{self.name}: task is {self.task!r}; write {' or '.join(_LISTS)}")

    def remedy(self, root: Path) -> str:
        """The end of every error line."""
        return (
            f"run `bench data get {self.name}`, or unpack it so that {root / self.folder}/JPEGImages is there"
        )

    def get(self, root: Path) -> None:
        """Download and unpack the year's archives into ``root``."""
        year = self.name.removeprefix("voc")
        by_hand = f"unpack host.robots.ox.ac.uk/pascal/VOC/{self.name} to {root}/VOCdevkit"
        for split in self.archives:
            download(
                self.name,
                functools.partial(datasets.VOCDetection, str(root), year, split, download=True),
                by_hand,
            )

    def load(self, split: str, root: Path) -> Samples:
        """The "train" or "test" list: images stream from their files, masks are read when they are asked for.

        Presence comes from ``ImageSets/Main/CLASS_LIST.txt``, where these files are; else from the boxes.
        """
        known_split(self, split)
        name, base = self._list(split), root / self.folder
        ids = self._ids(name, root)
        if split == "test":
            self._apart(ids, root)
        remedy = self.remedy(root)
        boxes = [files.objects(base / "Annotations" / f"{i}.xml", self.words, remedy) for i in ids]
        if self.proposals:
            boxes = attach(boxes, ids, root / self.proposals)
        return Samples(
            content_name(self, split, str(root), digest(ids)),
            Streamed([base / "JPEGImages" / f"{i}.jpg" for i in ids]),
            multilabel=self._presence(name, ids, root, boxes),
            boxes=boxes,
            masks=self._masks(name, ids, root),
        )

    def paths(self, root: Path) -> list[Path]:
        """The images, annotations and masks of both lists, and the lists."""
        base, found = root / self.folder, set[Path]()
        for name in map(self._list, self.splits):
            found |= {path for path in self._lists(name, root) if path.is_file()}
            for i in self._ids(name, root):
                found |= {base / "JPEGImages" / f"{i}.jpg", base / "Annotations" / f"{i}.xml"}
                found |= {self._mask(name, i, root)} if self.task == "segmentation" else set()
        return sorted(found | ({root / self.proposals} if self.proposals else set()))

    def _lists(self, name: str, root: Path) -> list[Path]:
        """The files that may say which images a list has, and what is on them."""
        folder = root / self.folder / "ImageSets" / _LISTS[self.task]
        if name in _SBD:
            return [root / self.sbd / _SBD[name]]
        if name == "train_aug" and not (folder / "train_aug.txt").is_file():
            parts = ("sbd_train", "sbd_val", "train", "val")
            return [path for part in parts for path in self._lists(part, root)]
        words = self.words if self.task == "main" else ()
        return [folder / f"{name}.txt", *(folder / f"{word}_{name}.txt" for word in words)]

    def check(self, root: Path) -> list[str]:
        """Unreadable lists and annotations, missing or truncated images and masks, sizes other than the published."""
        problems = super().check(root)
        if problems:
            return problems
        for split in self.splits:
            name, base = self._list(split), root / self.folder
            ids = self._ids(name, root)
            expected = self.counts.get(f"{self.task}/{name}", len(ids))
            if len(ids) != expected:
                problems.append(
                    f"{base}: {name} lists {len(ids)} images, expected {expected}: {self.remedy(root)}"
                )
            paths = [base / "JPEGImages" / f"{i}.jpg" for i in ids]
            if self.task == "segmentation":
                paths += [self._mask(name, i, root) for i in ids]
            problems += [f"{found}: {self.remedy(root)}" for found in map(files.damage, paths) if found][:5]
        return problems

    def _list(self, split: str) -> str:
        return self.train if split == "train" else self.test

    def _ids(self, name: str, root: Path) -> list[str]:
        """The ids of a list; ``train_aug``, where no file says it, is SBD and VOC's training images without VOC's val."""
        folder = root / self.folder / "ImageSets" / _LISTS[self.task]
        if name in _SBD:
            return files.ids(root / self.sbd / _SBD[name], f"unpack SBD to {root / self.sbd}")
        if name == "train_aug" and not (folder / "train_aug.txt").is_file():
            parts = [self._ids(part, root) for part in ("sbd_train", "sbd_val", "train")]
            return sorted({i for part in parts for i in part} - set(self._ids("val", root)))
        there = sorted(path.stem for path in folder.glob("*.txt") if "_" not in path.stem)
        lists = f"; lists there are: {', '.join(there)}" if there else ""
        return files.ids(folder / f"{name}.txt", self.remedy(root) + lists)

    def _apart(self, tested: list[str], root: Path) -> None:
        """Refuse to judge on images that are trained on: SBD's training images are largely VOC2012's val."""
        try:
            trained = self._ids(self.train, root)
        except BenchError:  # who trains will be told
            return
        shared = len(set(tested) & set(trained))
        if shared:
            beside = f"; FCN's list beside {self.train} is seg11valid" if self.train in _SBD else ""
            raise BenchError(
                f"{self.name}: {shared} of the {len(tested)} images of test = {self.test!r} are in train = "
                f"{self.train!r} too: write lists that share none{beside}"
            )

    def _presence(self, name: str, ids: list[str], root: Path, boxes: list[files.Objects]) -> Tensor:
        folder = root / self.folder / "ImageSets" / "Main"
        paths = [folder / f"{label}_{name}.txt" for label in self.words]
        if self.task != "main" or not any(path.is_file() for path in paths):
            return files.multilabel(boxes, self.classes)
        columns = [files.presence(path, ids, self.remedy(root)) for path in paths]
        return torch.from_numpy(np.stack(columns, 1))

    def _masks(self, name: str, ids: list[str], root: Path) -> Lazy[Tensor] | None:
        """The masks of a segmentation list; the images of the other lists have none, or not all of them."""
        if self.task != "segmentation":
            return None
        remedy = self.remedy(root)

        def read(i: int) -> Tensor:
            return files.mask(self._mask(name, ids[i], root), self.classes, remedy)

        return Lazy(read, np.arange(len(ids)))

    def _mask(self, name: str, image: str, root: Path) -> Path:
        """Where a mask lies: SBD's own lists are judged by SBD's masks, others by VOC's where there is one."""
        own = root / self.folder / "SegmentationClass" / f"{image}.png"
        joined = root / self.folder / "SegmentationClassAug" / f"{image}.png"
        other = root / self.sbd / "cls" / f"{image}.mat"
        order = (other, joined, own) if name in _SBD else (own, joined, other)
        return next((path for path in order if path.is_file()), order[0])


@dataclass(frozen=True)
class Voc2007(_Voc):
    """VOC2007: 5,011 training and 4,952 test images of varying size, 20 classes.

    :param task: whose lists: main (classification, detection) or segmentation (with masks).
    :param train: the list to train on: train, val, trainval; ``test``: the list to be judged on.
    """

    name: ClassVar[str] = "voc2007"
    archives: ClassVar[tuple[str, ...]] = ("trainval", "test")  # 0.9 GB
    counts: ClassVar[dict[str, int]] = {
        "main/train": 2501,
        "main/val": 2510,
        "main/trainval": 5011,
        "main/test": 4952,
        "segmentation/train": 209,
        "segmentation/val": 213,
        "segmentation/trainval": 422,
        "segmentation/test": 210,
    }

    folder: str = "VOCdevkit/VOC2007"


@dataclass(frozen=True)
class Voc2012(_Voc):
    """VOC2012, and SBD's masks by their lists: judged on val, since the test set's annotations are secret.

    :param task: whose lists: segmentation (with masks) or main (classification, detection).
    :param train: train (1,464), sbd_train (8,498, as in FCN), train_aug (10,582), trainval, or any list there.
    :param test: val (1,449), seg11valid (736: put FCN's list beside the others), or any list there.
    """

    name: ClassVar[str] = "voc2012"
    archives: ClassVar[tuple[str, ...]] = ("trainval",)  # 2 GB
    counts: ClassVar[dict[str, int]] = {
        "main/train": 5717,
        "main/val": 5823,
        "main/trainval": 11540,
        "segmentation/train": 1464,
        "segmentation/val": 1449,
        "segmentation/trainval": 2913,
        "segmentation/sbd_train": 8498,
        "segmentation/sbd_val": 2857,
        "segmentation/train_aug": 10582,
        "segmentation/seg11valid": 736,
    }

    folder: str = "VOCdevkit/VOC2012"
    task: str = "segmentation"
    train: str = "train"
    test: str = "val"


@dataclass(frozen=True)
class VocScenes(_Voc):
    """``scenes`` as ``bench data scenes --voc`` writes them, in VOC's own form on disk.

    :param folder: the folder that was written, below the data root.
    :param task: main (classification, detection) or segmentation (with masks).
    :param train: the list to train on: train, val, trainval; ``test``: the list to be judged on.
    """

    name: ClassVar[str] = "voc_scenes"
    classes: ClassVar[int] = len(SCENES)
    words: ClassVar[tuple[str, ...]] = SCENES
    class_names: ClassVar[tuple[str, ...]] = SCENES

    folder: str = "scenes_voc"

    def remedy(self, root: Path) -> str:
        """The end of every error line."""
        return f"run `bench data scenes --voc {root / self.folder}`"

    def get(self, root: Path) -> None:
        """Render them.

        :raises BenchError: always; it names the command.
        """
        raise BenchError(f"{self.name} are rendered: {self.remedy(root)}")
