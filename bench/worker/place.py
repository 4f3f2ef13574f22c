"""Where a worker finds things, and how it says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[str, int, int], None]  # what, steps done, of how many


@dataclass(frozen=True)
class Place:
    """Where things are: finished runs, datasets, the feature cache."""

    runs: Path
    data: Path
    cache: Path
