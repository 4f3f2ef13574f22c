"""Runs as TensorBoard reads them: a folder a run, scalars, hyper-parameters for its HPARAMS page, the outcome as text.

TensorBoard keeps 32-bit floats; the exact numbers are in the rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.records import BenchError
from bench.reporting.tracking.runs import TrackedRun


def write(folder: Path, runs: Iterable[TrackedRun]) -> int:
    """One folder a run below ``folder``, in place of what stood there. Returns how many.

    :raises BenchError: TensorBoard is not installed.
    """
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise BenchError(
            "--format tensorboard needs TensorBoard: pip install 'representation-bench[tensorboard]'"
        ) from error
    for old in folder.glob("*/events.out.tfevents.*"):  # of results that may be stale
        old.unlink()
    count = 0
    for run in runs:
        count += 1
        writer = EventFileWriter(str(folder / run.name))
        for event in _events(run):
            writer.add_event(event)
        writer.close()
    return count


def _events(run: TrackedRun) -> Iterable[Any]:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # its api wants TensorFlow
    from tensorboard.plugins.text.summary import text_pb

    now = time.time()
    yield Event(wall_time=now, summary=hparams_pb(dict(run.settings), trial_id=run.name))
    facts = "\n".join(f"- {name}: {value}" for name, value in run.facts.items())
    told = f"{run.outcome.replace(chr(10), chr(10) * 2)}\n\n{facts}"  # Markdown
    yield Event(wall_time=now, summary=text_pb("outcome", told))
    for name, step, value in run.scalars:
        one = Summary.Value(tag=name, simple_value=value)
        yield Event(wall_time=now, step=step, summary=Summary(value=[one]))
