"""STL-10 (Coates, Ng & Lee, AISTATS 2011), from its binary files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from bench.contracts import Dataset, Samples
from bench.data._files import (
    checksum_problems,
    content,
    content_name,
    download,
    in_range,
    known_split,
    records,
    samples,
)
from bench.records import BenchError

_REMEDY = "run `bench data get stl10`"
_FOLDER = "stl10_binary"


@dataclass(frozen=True)
class Stl10(Dataset):
    """5,000 training, 8,000 test and 100,000 unlabeled images, 96 x 96.

    :param fold: 0 to 9: the training set is that one of the ten predefined folds of 1,000; -1: all of it.
    """

    name: ClassVar[str] = "stl10"
    classes: ClassVar[int] = 10
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "unlabeled")
    image_side: ClassVar[int | None] = 96

    fold: int = -1

    def __post_init__(self) -> None:
        if not -1 <= self.fold <= 9:
            raise BenchError(f"stl10: fold must lie in 0 to 9, or be -1 for all of them, not {self.fold}")

    def load(self, split: str, root: Path) -> Samples:
        """One split; the published labels 1 to 10 become 0 to 9."""
        known_split(self, split)
        folder = root / _FOLDER
        table = records(folder / f"{split}_X.bin", 3 * 96 * 96, "images of 27,648 bytes each", _REMEDY)
        pixels = table.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)  # published column by column
        labels = None if split == "unlabeled" else self._labels(folder / f"{split}_y.bin", len(pixels))
        if split == "train" and self.fold >= 0:
            chosen = self._fold(folder / "fold_indices.txt", len(pixels))
            pixels = pixels[chosen]
            labels = None if labels is None else labels[chosen]
        return samples(content_name(self, split), pixels, labels)

    def paths(self, root: Path) -> list[Path]:
        """The binary files; the unlabeled images where they are there, the folds where one is asked for."""
        folder = root / _FOLDER
        files = [folder / f"{split}_{part}.bin" for split in ("train", "test") for part in "Xy"]
        files += [folder / "unlabeled_X.bin"] * (folder / "unlabeled_X.bin").is_file()
        return sorted(files + [folder / "fold_indices.txt"] * (self.fold >= 0))

    def check(self, root: Path) -> list[str]:
        """Unreadable files, and files that are not the published ones."""
        problems = super().check(root)
        published = dict(datasets.STL10.train_list + datasets.STL10.test_list)
        return problems or checksum_problems(root / _FOLDER, published, _REMEDY)

    def get(self, root: Path) -> None:
        """Download and unpack the archive (2.6 GB) into ``root``."""
        by_hand = f"unpack the binary files of cs.stanford.edu/~acoates/stl10 to {root / _FOLDER}"
        download(self.name, lambda: datasets.STL10(str(root), download=True), by_hand)

    def _labels(self, path: Path, count: int) -> NDArray[np.int64]:
        labels = records(path, 1, f"{count} labels of one byte", _REMEDY)[:, 0].astype(np.int64) - 1
        if len(labels) != count:
            raise BenchError(f"{path}: truncated: {len(labels)} labels for {count} images: {_REMEDY}")
        in_range(path, labels, self.classes, _REMEDY)
        return labels

    def _fold(self, path: Path, count: int) -> NDArray[np.int64]:
        lines = content(path, "ten lines of image numbers", _REMEDY).decode("ascii", "replace").splitlines()
        try:
            chosen = np.array(lines[self.fold].split(), dtype=np.int64)
        except (IndexError, ValueError) as error:
            raise BenchError(
                f"{path}: corrupt or truncated: no line {self.fold + 1} of numbers: {_REMEDY}"
            ) from error
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
            raise BenchError(
                f"{path}: corrupt: line {self.fold + 1} names images outside 0 to {count - 1}: {_REMEDY}"
            )
        return chosen
