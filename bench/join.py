"""A further process of a training: reads what is trained from standard input, joins, and ends with it.

Started by :mod:`bench.ranks`. When the input ends, rank 0 is gone, and it stops at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from bench import pause
from bench.records import training_from


def main() -> int:
    """Train as one rank."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; who was started here follows rank 0
    os.dup2(2, 1)  # units' own prints
    message = json.loads(sys.stdin.readline())
    threading.Thread(target=_until_rank_0_is_gone, daemon=True).start()

    from bench.distributed import from_environment
    from bench.worker import Place, follow

    place = Place(*(Path(message["place"][k]) for k in ("runs", "data", "cache")))
    try:
        return 0 if follow(training_from(message["training"]), place, from_environment()) else 1
    except pause.PausedError:
        return 0


def _until_rank_0_is_gone() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
