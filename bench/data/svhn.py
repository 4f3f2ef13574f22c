"""SVHN, cropped digits (Netzer et al., 2011), from its MATLAB files."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.io import loadmat
from torchvision import datasets

from bench.contracts import Dataset, Samples
from bench.data._files import (
    checksum_problems,
    content,
    content_name,
    download,
    in_range,
    known_split,
    samples,
)
from bench.records import BenchError

_REMEDY = "run `bench data get svhn`"


@dataclass(frozen=True)
class Svhn(Dataset):
    """House numbers' digits, 32 x 32: ``svhn/{train,extra,test}_32x32.mat`` below the root."""

    name: ClassVar[str] = "svhn"
    classes: ClassVar[int] = 10
    flip: ClassVar[bool] = False
    splits: ClassVar[tuple[str, ...]] = ("train", "extra", "test")
    image_side: ClassVar[int | None] = 32

    def load(self, split: str, root: Path) -> Samples:
        """One split; the published label 10 is the digit 0."""
        known_split(self, split)
        path = root / "svhn" / f"{split}_32x32.mat"
        data = content(path, "a MATLAB file with X (32, 32, 3, N) and y (N, 1)", _REMEDY)
        try:
            table = loadmat(io.BytesIO(data), variable_names=["X", "y"])  # type: ignore[arg-type]  # a file will do
        except Exception as error:  # a damaged file fails in any way it likes
            raise BenchError(f"{path}: corrupt or truncated ({error}): {_REMEDY}") from error
        pixels, labels = table.get("X"), table.get("y")
        if (
            pixels is None
            or labels is None
            or pixels.dtype != np.uint8
            or pixels.shape != (32, 32, 3, labels.size)
        ):
            raise BenchError(f"{path}: corrupt: expected X uint8 (32, 32, 3, N) and y (N, 1): {_REMEDY}")
        digits = labels.reshape(-1).astype(np.int64)
        digits[digits == 10] = 0
        in_range(path, digits, 10, _REMEDY)
        return samples(content_name(self, split), pixels.transpose(3, 2, 0, 1), digits)

    def paths(self, root: Path) -> list[Path]:
        """The MATLAB files that are there; ``extra`` is read only where a suite asks for it."""
        files = [root / "svhn" / f"{split}_32x32.mat" for split in self.splits]
        return sorted(path for path in files if "extra" not in path.name or path.is_file())

    def check(self, root: Path) -> list[str]:
        """Unreadable files, and files that are not the published ones."""
        problems = super().check(root)
        published = {name: md5 for _, name, md5 in datasets.SVHN.split_list.values()}
        return problems or checksum_problems(root / "svhn", published, _REMEDY)

    def get(self, root: Path) -> None:
        """Download all three files (2.7 GB) into ``root / "svhn"``."""
        by_hand = f"put the .mat files of ufldl.stanford.edu/housenumbers into {root / 'svhn'}"
        for split in self.splits:
            fetch = functools.partial(datasets.SVHN, str(root / "svhn"), split=split, download=True)
            download(self.name, fetch, by_hand)
