"""A worker process: reads jobs from standard input, a JSON line each, and answers with events.

Started by :mod:`bench.launch`. When the input ends, its parent is gone, and it stops at once.

With ``--slurm`` it is a task of ``srun``, which hands the input to all tasks of the step: rank 0 works, the
others train with it where a training asks for as many processes as there are tasks, and are silent.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from bench import pause
from bench.records import BenchError, cell_from, training_from

_EVERY = 0.25  # seconds between two progress events


class _Speaker:
    """Writes events; units' own prints go elsewhere, so that the line stays clean."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.last = out, 0.0

    def say(self, **event: Any) -> None:
        self.out.write(json.dumps(event) + "\n")
        self.out.flush()

    def progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last > _EVERY or done == total:
            self.last = now
            self.say(event="progress", what=what, done=done, total=total)


def main() -> int:
    """Serve until told to stop."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all; who was started here follows its parent
    rank = _rank() if "--slurm" in sys.argv else 0
    out = Path(os.devnull).open("w") if rank else os.fdopen(os.dup(1), "w", encoding="utf-8")  # noqa: SIM115
    os.dup2(2, 1)
    speaker = _Speaker(out)
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(pause.own_input(), jobs), daemon=True).start()

    from bench.distributed import from_slurm
    from bench.worker import Job, Place, follow, work

    while "stop" not in (message := jobs.get()):
        place = Place.told(message["place"])
        job = Job(training_from(message["training"]), tuple(cell_from(c) for c in message["cells"]))
        try:
            if rank:
                follow(job.training, place, from_slurm(), lambda: not jobs.empty())
                continue
            speaker.say(event="end", problems=work(job, place, speaker.progress))
        except BenchError as error:
            speaker.say(event="fatal", reason=str(error))
        except OSError as error:
            speaker.say(event="fatal", reason=f"{error.filename or 'a file'}: {error.strerror or error}")
        except pause.PausedError:
            speaker.say(event="paused")
            return 0
    return 0


def _rank() -> int:
    """Which task of srun's step this is; it takes the GPU of its number."""
    from bench import ranks
    from bench.distributed import from_slurm

    seat = from_slurm()
    os.environ["LOCAL_RANK"] = str(seat.local)
    if not seat.world.rank:
        ranks.assign(seat)
    return seat.world.rank


def _listen(lines: TextIO, jobs: queue.Queue[dict[str, Any]]) -> None:
    for line in lines:
        message = json.loads(line)
        if "pause" in message:
            pause.ask()  # the job at hand saves at its next step
            continue
        jobs.put(message)
        if "stop" in message:
            pause.ask()  # who is told so amid a job was interrupted
            return
    os._exit(1)  # the parent died: what was saved stays, nobody waits for the rest


if __name__ == "__main__":
    sys.exit(main())
