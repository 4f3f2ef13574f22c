"""How many cores this process may use: fewer than the machine has in a container, a SLURM task, under taskset."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """At least 1; where the system does not tell (macOS, Windows), all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
