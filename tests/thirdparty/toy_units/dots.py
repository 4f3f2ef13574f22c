"""Noise in which a bright column names the class."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.contracts import Dataset, Samples
from bench.data.sources import Resident


@dataclass(frozen=True)
class Dots(Dataset):
    """Images of 8 x 8 in 3 classes; gray where ``color`` is not set."""

    name: ClassVar[str] = "dots"
    classes: ClassVar[int] = 3
    color: ClassVar[bool] = False

    side: int = 8
    count: int = 36

    def load(self, split, root):
        count = self.count if split == "train" else 18
        generator = torch.Generator().manual_seed(len(split))
        labels = torch.arange(count) % self.classes
        pixels = torch.randint(0, 90, (count, 1, self.side, self.side), generator=generator)
        pixels[torch.arange(count), 0, :, labels] += 150
        images = Resident(pixels.to(torch.uint8).repeat(1, 3, 1, 1), color=False)
        return Samples(f"dots-{self.side}-{self.count}-{split}", images, labels)
