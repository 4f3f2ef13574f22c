"""How long it will take, in words."""

from __future__ import annotations

import time

_FIRST_SECONDS = 2.0  # before which nothing is foretold


def minutes(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Clock:
    """What is left of a work of so many steps, by those that were seen: a resumed one begins in its middle."""

    def __init__(self) -> None:
        self.total, self.first, self.begun = 0, 0, 0.0

    def left(self, done: int, total: int) -> str:
        """As ``", 3.2 h left"``; nothing as long as nothing can be said."""
        now = time.monotonic()
        if total != self.total or done < self.first:  # another work
            self.total, self.first, self.begun = total, done, now
        seen, spent = done - self.first, now - self.begun
        if not seen or spent < _FIRST_SECONDS or done == total:
            return ""
        return f", {minutes(spent / seen * (total - done))} left"
