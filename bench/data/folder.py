"""Any folder of images: a folder a class, or tars and shards, in the layouts that torchvision's users have."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from bench.contracts import Dataset, Samples
from bench.data import _split, _trees
from bench.data._answers import answers
from bench.data._files import content_name, known_split
from bench.data.sources import Streamed
from bench.records import BenchError, aside


@dataclass(frozen=True)
class Folder(Dataset):
    """Images of your own: ``root/{train,test}/CLASS/*``, or one folder of classes and a fraction that is the test.

    Labels are places among the sorted classes, and images are ordered as torchvision's ImageFolder orders them.
    A split may also be a tar of class folders (``train.tar``), a folder of tars, a class each, or WebDataset's shards
    (``train-000000.tar``, ..., with ``KEY.jpg`` beside ``KEY.cls`` or ``KEY.json``).

    :param root: the folder, below the data root unless it is absolute.
    :param train: the training images, below ``root``; "": train, or ``root`` itself where a fraction is drawn.
    :param test: the images to be judged on; "": the first of test, val and validation that is there.
    :param test_fraction: of the images in ``train`` that are the test: drawn by the SHA-256 of CLASS/NAME, the same
        everywhere; 0: ``test`` is a folder of its own.
    :param test_list: the classes of a flat ``test``: lines of NAME CLASS.
    :param subset: the classes that are used; () is all. ``classes_file``: one a line.
    :param stage: a folder of the node's own, as "$SLURM_TMPDIR": files are copied there once and read from it.
    """

    name: ClassVar[str] = "folder"
    teller: ClassVar[str] = "bench.data._trees:folder_facts"
    files: ClassVar[tuple[str, ...]] = ("classes_file", "test_list")

    root: str
    train: str = ""
    test: str = ""
    test_fraction: float = 0.0
    test_list: str = ""
    test_list_sha256: str = ""
    subset: tuple[str, ...] = ()
    classes_file: str = ""
    classes_file_sha256: str = ""
    stage: str = aside("")

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise BenchError(f"folder: test_fraction must lie in 0 to 1, not {self.test_fraction}")
        if self.test_fraction and (self.test or self.test_list):
            raise BenchError("folder: write test (and test_list) or test_fraction, not both")

    def load(self, split: str, root: Path) -> Samples:
        """One split; its images are listed here and read when they are asked for."""
        known_split(self, split)
        place = _trees.folder_places(self._settings(), root)[split]
        found = _split.split(place, self._classes(root), self.stage, "folder.stage", self._ask(split, root))
        if self.test_fraction:
            drawn = np.array([_drawn(name) < self.test_fraction for name in found.names], np.bool_)
            found = _split.some(found, np.flatnonzero(drawn == (split == "test")))
            if not len(found.names):
                raise BenchError(f"{place}: test_fraction = {self.test_fraction} leaves no {split} image")
        name = content_name(self, split, str(root))
        return Samples(name, Streamed(found.reader), torch.from_numpy(found.labels))

    def paths(self, root: Path) -> list[Path]:
        """The images or tars of both splits, and the list of the test's classes."""
        places, classes = _trees.folder_places(self._settings(), root), self._classes(root)
        found = set(_split.files(places["train"], classes, flat=False))
        found |= set(_split.files(places["test"], classes, flat=bool(self.test_list)))
        return sorted(found)

    def get(self, root: Path) -> None:
        """Nobody else has them.

        :raises BenchError: always.
        """
        raise BenchError(f"folder: {self.root} is a folder of yours: put it below {root}, or write its path")

    def _settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _classes(self, root: Path) -> tuple[str, ...]:
        return self.facts(root).class_names

    def _ask(self, split: str, root: Path) -> _split.Ask | None:
        """Who knows the classes of images that lie flat."""
        if split == "train" or not self.test_list:
            return None
        every = _trees.classes_in(_trees.folder_places(self._settings(), root)["train"])
        return functools.partial(answers, _trees.expanded(self.test_list, "folder.test_list"), classes=every)


def _drawn(name: str) -> float:
    """In [0, 1), from the image's name alone."""
    word = hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:7]
    return int.from_bytes(word, "big") / 2**56
