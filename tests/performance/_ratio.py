"""Two contenders, timed in turns within one process: a busy machine slows both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU seconds of this process for one call."""
    begin = time.process_time()
    action()
    return time.process_time() - begin


def in_turns(one: Callable[[], object], other: Callable[[], object], times: int, bar: float) -> float:
    """How often ``other``'s time ``one`` takes; the first call of each only warms up.

    A busy moment is measured again: what is really above ``bar`` is so twice.
    """
    one()
    other()

    def ratio() -> float:
        return middle([(cpu_seconds(one), cpu_seconds(other)) for _ in range(times)])

    return found if (found := ratio()) <= bar else ratio()


def middle(pairs: Sequence[tuple[float, float]]) -> float:
    """The median ratio of pairs that were measured one right after the other."""
    return statistics.median(a / b for a, b in pairs)


def tell(name: str, value: float, bar: str) -> None:
    """One line a measurement, seen with ``pytest -s``."""
    print(f"\n{name}: {value:.3f} ({bar})")
