"""ImageNet (ILSVRC 2012) and Places205: a folder a class, images streamed from their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from bench.contracts import Dataset, Samples
from bench.data import _listing
from bench.data._files import content_name, known_split
from bench.data._label_files import shown
from bench.data.sources import Streamed
from bench.records import BenchError, later


@dataclass(frozen=True)
class _Folders(Dataset):
    """``root/NAME/{train,val}/CLASS/*``; labels are places in the sorted list of class folders."""

    files: ClassVar[tuple[str, ...]] = ("label_file",)

    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    test_split: ClassVar[str] = "val"
    request: ClassVar[str]  # where the files can be had

    label_file: str = later("")
    label_file_sha256: str = later("")

    def load(self, split: str, root: Path) -> Samples:
        """One split; its images are listed here and read when they are asked for."""
        known_split(self, split)
        names = self._classes(root)
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            found = self._images(root / self.name / split / name)
            paths += found
            labels += [label] * len(found)
        known = torch.tensor(labels)
        if self.label_file and split == "train":
            known = shown(known, paths, Path(self.label_file).expanduser(), self.label_file_sha256)
        return Samples(content_name(self, split, str(root)), Streamed(paths), known)

    def paths(self, root: Path) -> list[Path]:
        """The images of both splits, and the list of labels that may be seen."""
        found = [
            Path(path)
            for split in self.splits
            for c in self._classes(root)
            for path in self._images(root / self.name / split / c)
        ]
        return sorted(found)

    def get(self, root: Path) -> None:
        """These files cannot be downloaded freely.

        :raises BenchError: always; it says where to ask for them and where they belong.
        """
        raise BenchError(f"{self.name} cannot be downloaded freely: {self._remedy(root)}")

    def _remedy(self, root: Path) -> str:
        return f"request it at {self.request} and unpack it to {root / self.name}/{{train,val}}/CLASS/*.JPEG"

    def _classes(self, root: Path) -> list[str]:
        """The class folders, which must be those of both splits."""
        names = {split: self._listed(root / self.name / split, root) for split in self.splits}
        odd = sorted(set(names["train"]) ^ set(names["val"]))
        if odd:
            where, other = ("train", "val") if odd[0] in names["train"] else ("val", "train")
            raise BenchError(f"{root / self.name / where / odd[0]}: there is no class {odd[0]!r} in {other}")
        if len(names["train"]) != self.classes:
            found = len(names["train"])
            raise BenchError(
                f"{root / self.name}: {found} class folders, expected {self.classes}: {self._remedy(root)}"
            )
        return names["train"]

    def _listed(self, folder: Path, root: Path) -> list[str]:
        try:
            return _listing.folders(folder)
        except BenchError as error:
            raise BenchError(f"{error}; expected a folder a class: {self._remedy(root)}") from None

    def _images(self, folder: Path) -> list[str]:
        found = [f"{folder}/{name}" for name in _listing.images(folder)]
        if not found:
            raise BenchError(
                f"{folder}: empty; expected images ({', '.join(_listing.ENDINGS)}): restore the class folder"
            )
        return found


@dataclass(frozen=True)
class ImageNet(_Folders):
    """1.28 million training images of a thousand classes; judged on the 50,000 of "val", as is usual.

    :param label_file: a list of the training images whose labels are known, one a line (or S4L's JSON): the
        published 1% and 10%. The others are there without a label. "": all are known.
    :param label_file_sha256: written by the plan; where a suite says it, the file must have it.
    """

    name: ClassVar[str] = "imagenet"
    classes: ClassVar[int] = 1000
    request: ClassVar[str] = "https://image-net.org/download.php"


@dataclass(frozen=True)
class Places205(_Folders):
    """2.4 million training images of 205 kinds of places; judged on "val", as is usual.

    :param label_file: as ImageNet's.
    """

    name: ClassVar[str] = "places205"
    classes: ClassVar[int] = 205
    request: ClassVar[str] = "http://places.csail.mit.edu"
