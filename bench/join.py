"""A further process of a training: reads what is trained from standard input, joins, and ends with it.

Started by :mod:`bench.ranks`. When the input ends, rank 0 is gone, and it stops at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import TextIO

from bench import pause
from bench.records import training_from


def main() -> int:
    """Train as one rank."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; who was started here follows rank 0
    os.dup2(2, 1)  # units' own prints
    rank_0 = pause.own_input()
    message = json.loads(rank_0.readline())
    threading.Thread(target=_until_it_is_gone, args=(rank_0,), daemon=True).start()

    from bench.distributed import from_environment
    from bench.worker import Place, follow

    place = Place.told(message["place"])
    try:
        return 0 if follow(training_from(message["training"]), place, from_environment()) else 1
    except pause.PausedError:
        return 0


def _until_it_is_gone(rank_0: TextIO) -> None:
    rank_0.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
