"""Few images of a dataset, for a rehearsal: all else is the dataset's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.contracts import Dataset, Samples
from bench.data import splits
from bench.data.assemble import take
from bench.data.splits import Indices
from bench.facts import Facts

_TRAITS = (
    "name",
    "classes",
    "color",
    "flip",
    "annotations",
    "splits",
    "test_split",
    "image_side",
    "class_names",
)


class Few(Dataset):
    """The first ``images`` of each split by hash: balanced over the classes, those of unknown class last but half.

    Every split is read as a whole first, as a run reads it: what is wrong with its files is told in the same words.
    """

    def __init__(self, whole: Dataset, images: int) -> None:
        self.whole, self.images, self.of = whole, images, dict[str, int]()
        for trait in _TRAITS:
            setattr(self, trait, getattr(whole, trait))

    def facts(self, root: Path) -> Facts:
        """The whole dataset's."""
        return self.whole.facts(root)

    def paths(self, root: Path) -> list[Path]:
        """The whole dataset's."""
        return self.whole.paths(root)

    def load(self, split: str, root: Path) -> Samples:
        """Some of the split."""
        samples = self.whole.load(split, root)
        self.of[split] = len(samples)
        return take(samples, self._chosen(samples))

    def _chosen(self, samples: Samples) -> Indices:
        count = min(self.images, len(samples))
        if samples.labels is None:
            return np.sort(splits.unlabeled(np.ones(len(samples), np.bool_), count, self.name, 0))
        labels = samples.labels.cpu().numpy().astype(np.int64)
        known, unknown = int((labels >= 0).sum()), int((labels < 0).sum())
        shown = min(known, count - min(unknown, count // 2))
        hidden = splits.unlabeled(labels < 0, min(unknown, count - shown), self.name, 0)
        return np.sort(np.concatenate([splits.labeled(labels, shown, self.name, 0), hidden]))
