"""How far long work on files is, told to whoever watches: on a terminal in place, in a log a line a minute."""

from __future__ import annotations

import sys
import threading
import time


class Telling:
    """Counts from any thread; says ``what``, how many of ``total``, and how long the rest will take."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.every = 1.0 if sys.stderr.isatty() else 60.0
        self.begun = self.told = time.monotonic()
        self.lock = threading.Lock()

    def step(self) -> None:
        """One more is done."""
        with self.lock:
            self.done += 1
            now = time.monotonic()
            if now - self.told < self.every:
                return
            self.told = now
            left = (now - self.begun) * (self.total - self.done) / self.done
            line = f"{self.what}: {self.done:,} of {self.total:,}, {_duration(left)} left"
            sys.stderr.write(f"\r{line}\x1b[K" if sys.stderr.isatty() else f"{line}\n")
            sys.stderr.flush()

    def end(self) -> None:
        """Leave the terminal's line to others."""
        if sys.stderr.isatty() and self.told > self.begun:
            sys.stderr.write("\r\x1b[K")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
