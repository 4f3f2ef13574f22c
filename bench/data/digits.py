"""Scikit-learn's 1,797 real handwritten digits (8 x 8, gray), enlarged: runs anywhere, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from bench.contracts import Dataset, Samples
from bench.data import splits
from bench.data._files import content_name, known_split
from bench.data.sources import Resident
from bench.records import BenchError

_SIZES = {"train": 1000, "val": 297, "test": 500}


@dataclass(frozen=True)
class Digits(Dataset):
    """Bilinear to ``side`` pixels, three equal channels; a fixed split, drawn by SHA-256."""

    name: ClassVar[str] = "digits"
    classes: ClassVar[int] = 10
    color: ClassVar[bool] = False
    flip: ClassVar[bool] = False
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    side: int = 16

    def __post_init__(self) -> None:
        if self.side not in {16, 32}:
            raise BenchError(f"digits: side must be 16 or 32, not {self.side}")

    def load(self, split: str, root: Path) -> Samples:
        """1,000 "train", 297 "val" or 500 "test" images; ``root`` is not read."""
        known_split(self, split)
        start = 0
        for name, count in _SIZES.items():
            if name == split:
                break
            start += count
        chosen = np.argsort(splits.places("digits:split", sum(_SIZES.values())))[start : start + count]
        table = load_digits()
        gray = torch.from_numpy(table.images[chosen].astype(np.float32))[:, None]
        # Every weight is a small power of two, so that the sums are exact on every machine.
        large = F.interpolate(gray, size=(self.side, self.side), mode="bilinear", align_corners=False)
        pixels = (large * 255 / 16).round().to(torch.uint8).repeat(1, 3, 1, 1)
        labels = torch.from_numpy(table.target[chosen].astype(np.int64))
        return Samples(content_name(self, split), Resident(pixels, color=False), labels)
