"""Where a worker finds things, and how it says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from bench import registry
from bench.backbones._whitening import RECIPES
from bench.contracts import Dataset
from bench.data._few import Few
from bench.records import Aim, Data, Rehearsal

Progress = Callable[[str, int, int], None]  # what, steps done, of how many


@dataclass(frozen=True)
class Place:
    """Where things are: finished runs, datasets, the feature cache; and whether all this is a rehearsal."""

    runs: Path
    data: Path
    cache: Path
    rehearsal: Rehearsal | None = None

    @classmethod
    def told(cls, message: dict[str, Any]) -> Self:
        """The inverse of :meth:`message`."""
        few = message.get("rehearsal")
        runs, data, cache = (Path(message[k]) for k in ("runs", "data", "cache"))
        return cls(runs, data, cache, Rehearsal(**few) if few else None)

    def message(self) -> dict[str, Any]:
        """What another process is told, JSON-ready."""
        return {
            **{k: str(getattr(self, k)) for k in ("runs", "data", "cache")},
            "rehearsal": asdict(self.rehearsal) if self.rehearsal else None,
        }

    @property
    def steps(self) -> int:
        """At most so many of each descent; 0: all."""
        return self.rehearsal.steps if self.rehearsal else 0

    def dataset(self, part: Data | Aim) -> Dataset:
        """The dataset of a training or a target; in a rehearsal, few images of it."""
        found: Dataset = registry.load("dataset", part.dataset)
        if not self.rehearsal:
            return found
        side = part.dataset.get("side", found.image_side)
        fitted = isinstance(part, Data) and part.whitening in RECIPES and isinstance(side, int)
        # A whitening needs more images than an image has numbers, beside those that are held out.
        return Few(found, self.rehearsal.images + (3 * side**2 if fitted and isinstance(side, int) else 0))
