"""Where a worker finds things, and how it says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.outlook import Clock

Progress = Callable[[str, int, int], None]  # what, steps done, of how many


def reporter(what: str, progress: Progress) -> Callable[[int, int], None]:
    """Steps done, of how many, to progress with the time that is left."""
    clock = Clock()
    return lambda done, total: progress(what + clock.left(done, total), done, total)


@dataclass(frozen=True)
class Place:
    """Where things are: finished runs, datasets, the feature cache."""

    runs: Path
    data: Path
    cache: Path
