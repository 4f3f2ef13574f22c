"""Jobs: a training with the cells that wait for it, done as far as it is not done already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import artifacts, distributed, pause, ranks
from bench.contracts import Model
from bench.records import BenchError, Cell, Training
from bench.session import Session
from bench.worker import forecast
from bench.worker.evaluation import evaluate
from bench.worker.machine import device, settle
from bench.worker.outcomes import guarded
from bench.worker.place import Place, Progress
from bench.worker.training import attempt, descend


@dataclass(frozen=True)
class Job:
    """A training with the cells that wait for it."""

    training: Training
    cells: tuple[Cell, ...]


def work(job: Job, place: Place, progress: Progress) -> list[str]:
    """Do what a job still lacks. Returns the reasons of what failed, a line each."""
    device()  # one that is not there concerns everything
    settle(job.training)
    files = artifacts.folder(place.runs, job.training)

    def waiting() -> None:
        progress("wait", 0, 1)  # another process is at it: a sign of life
        pause.check()

    def make(first: Training) -> list[str]:
        return work(Job(first, ()), place, progress)

    def look(model: Model, session: Session) -> None:
        forecast.check(job.cells, model, session, place)

    with artifacts.lock(files.path, waiting):
        pause.check()
        try:
            status = artifacts.read_json(files.status) or {}
        except BenchError as error:  # one training's file: the others go on
            return [str(error)]
        if status.get("status") != "ok" or not files.model.exists():
            status = attempt(job.training, status, files, place, progress, make, look)
        if status["status"] != "ok":
            return [f"{files.path.name}: {status['reason']}"]
        done = artifacts.outcomes(place.runs, job.training)
        return evaluate([c for c in job.cells if artifacts.cell_name(c) not in done], files, place, progress)


def follow(
    training: Training, place: Place, seat: distributed.Seat, over: Callable[[], bool] = lambda: False
) -> bool:
    """Train with rank 0, which keeps what comes of it; tells it what went wrong.

    :param over: while rank 0 is looked for: whether it has nothing to train.
    :returns: whether all went well.
    """
    if training.processes == 1:
        return True
    settle(training)
    files = artifacts.folder(place.runs, training)
    found = ranks.follow(seat, files.path.name, over)
    if found is None:
        return True
    store, join = found

    def train() -> dict[str, Any]:
        # Rank 0 alone makes what it starts from.
        descend(training, files, place, lambda *_: None, join, lambda _: [])
        return {}

    outcome = guarded(train, files.log)
    if outcome["status"] != "ok":
        distributed.tell(store, seat.world.rank, outcome)
    return bool(outcome["status"] == "ok")
