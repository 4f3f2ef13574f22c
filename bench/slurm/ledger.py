"""What was submitted and what became of it, as it lies in ``runs/.slurm``: one folder a submission.

Of each submission, however many jobs it has: ``manifest.json`` and ``packs.jsonl`` (written before sbatch),
``jobs.json`` (after each sbatch), ``over.json`` (packs that a submitter closed). Of each job that ran:
``beats/<n>.json`` (its heartbeat), ``exits/<n>.json`` (it is over) and its log.
A pack that is not over is live until SLURM says that its job is dead.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.launch import Task
from bench.records import BenchError, cell_from, plain, training_from
from bench.slurm import cluster, jobs

SILENT_SECONDS = 30.0  # three heartbeats
AGAIN = 75  # exit code of a job that was told to stop and wants to run again (sysexits: try again later)


@dataclass(frozen=True)
class Submission:
    """One folder of the ledger and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def suite(self) -> str:
        return str(self.manifest["suite"])

    @functools.cached_property
    def jobs(self) -> dict[str, str]:
        """Job ids by pack number; what is missing was never known to be submitted."""
        return dict(artifacts.read_json(self.folder / "jobs.json") or {})

    def file(self, kind: str, index: int) -> Path:
        """``kind``: beats or exits."""
        return self.folder / kind / f"{index}.json"


@dataclass(frozen=True)
class View:
    """A pack that is not over, as it is now."""

    submission: Submission
    index: int
    job: str
    state: jobs.JobState | None
    beat: Mapping[str, Any]

    @property
    def owns(self) -> Mapping[str, Sequence[str]]:
        """Cell names by training that this pack will bring."""
        return self.submission.manifest["packs"][self.index]  # type: ignore[no-any-return]

    @property
    def dead(self) -> bool:
        if self.state is None:  # SLURM was not asked
            return False
        never = self.state.stuck or self.state.hopeless
        return self.state.dead or never or (self.state.gone and self.silent)

    @property
    def blameless(self) -> bool:
        """Its job made room for others, or saved and may not run again by itself: no attempt was lost."""
        word = self.state.word if self.state else ""
        return word == "PREEMPTED" or bool(self.beat.get("saved"))

    @property
    def silent(self) -> bool:
        """A controller that came up again may have forgotten a job that still runs: its heartbeat tells."""
        heard = float(self.beat.get("time") or self.submission.manifest["created"])
        return time.time() - heard > SILENT_SECONDS

    @property
    def word(self) -> str:
        """``running``, ``suspended``, ``queued`` or ``dead``."""
        if self.dead:
            return "dead"
        if self.state and self.state.word in {"SUSPENDED", "STOPPED"}:
            return "suspended"
        waiting = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
        return "queued" if self.state and self.state.word in waiting else "running"


# ---- reading -------------------------------------------------------------------------------------


def home(runs: Path) -> Path:
    """Where the submissions of a runs folder are kept."""
    return artifacts.as_given(runs) / ".slurm"


def submissions(runs: Path, *, closed: bool = False) -> list[Submission]:
    """Submissions that are not over (``closed``: those too), oldest first."""
    found = []
    for folder in sorted(home(runs).glob("*-*")):
        if not folder.is_dir() or ((folder / "closed").exists() and not closed):
            continue
        manifest = artifacts.read_json(folder / "manifest.json")
        if manifest is not None:
            found.append(Submission(folder, manifest))
    return found


def exits(submission: Submission) -> set[int]:
    """Packs that are over."""
    try:
        with os.scandir(submission.folder / "exits") as entries:
            own = {int(e.name[:-5]) for e in entries if e.name[:-5].isdecimal() and e.name.endswith(".json")}
    except OSError:
        own = set()
    return own | {int(index) for index in artifacts.read_json(submission.folder / "over.json") or {}}


def outcome(submission: Submission, index: int) -> Mapping[str, Any]:
    """How a pack was over; nothing while it is not."""
    own = artifacts.read_json(submission.file("exits", index))
    over = artifacts.read_json(submission.folder / "over.json") or {} if own is None else {}
    found: Mapping[str, Any] = own or over.get(str(index), {})
    return found


def is_over(submission: Submission, index: int) -> bool:
    """Whether nothing is left to do for a pack's job."""
    return bool(outcome(submission, index))


def views(runs: Path, *, ask: bool = True) -> list[View]:
    """Every pack that is not over. Without ``ask`` SLURM is left alone, and no pack is called dead."""
    open_packs = []
    for submission in submissions(runs):
        over = exits(submission)
        open_packs += [(submission, i) for i in range(len(submission.manifest["packs"])) if i not in over]
    ids = [s.jobs[str(i)] for s, i in open_packs if str(i) in s.jobs]
    states = jobs.states(ids) if ask and ids else {}
    return [_view(s, i, states) for s, i in open_packs]


def _view(submission: Submission, index: int, states: Mapping[str, jobs.JobState]) -> View:
    job = submission.jobs.get(str(index), "")
    beat: Mapping[str, Any] = {}
    with contextlib.suppress(BenchError):
        beat = artifacts.read_json(submission.file("beats", index)) or {}
    return View(submission, index, job, states.get(job), beat)


def write_packs(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A line a pack, the first one with their lengths in bytes: a job reads its own alone."""
    lines = [json.dumps(record, separators=(",", ":")) + "\n" for record in records]
    artifacts.write_text(
        folder / "packs.jsonl", json.dumps([len(line.encode()) for line in lines]) + "\n" + "".join(lines)
    )


def pack(submission: Submission, index: int) -> Mapping[str, Any]:
    """What :func:`write_packs` wrote of one pack.

    :raises BenchError: the file is gone or damaged.
    """
    path = submission.folder / "packs.jsonl"
    try:
        with path.open("rb") as file:
            lengths = json.loads(file.readline())
            file.seek(sum(lengths[:index]), os.SEEK_CUR)
            found: Mapping[str, Any] = json.loads(file.read(lengths[index]))
            return found
    except (OSError, ValueError, IndexError) as error:
        raise BenchError(f"{path}: cannot be read ({error}); bench submit makes another") from error


def tasks(submission: Submission, index: int) -> list[Task]:
    """The tasks of a pack, in the order in which they are worked off."""
    with contextlib.suppress(BenchError):
        return [task_from(record) for record in pack(submission, index)["tasks"]]
    return []


def task_record(task: Task) -> dict[str, Any]:
    """A task as JSON; its cells without the training that they share."""
    cells = [{k: v for k, v in plain(cell).items() if k != "training"} for cell in task.cells]
    return {"training": plain(task.training), "cells": cells, "label": task.label}


def task_from(record: Mapping[str, Any]) -> Task:
    """The inverse of :func:`task_record`."""
    training = record["training"]
    cells = tuple(cell_from({**cell, "training": training}) for cell in record["cells"])
    return Task(training_from(training), cells, record["label"])


def owned(live: Iterable[View]) -> tuple[set[tuple[str, str]], dict[str, tuple[str, ...]]]:
    """Cells that live packs will bring, as (training, cell); and which jobs make a training."""
    cells: set[tuple[str, str]] = set()
    makers: dict[str, tuple[str, ...]] = {}
    for view in live:
        for training, names in view.owns.items():
            cells |= {(training, name) for name in names}
            makers[training] = (*makers.get(training, ()), view.job)
    return cells, makers


# ---- closing (under the ledger's lock, but for what a job says of itself) ------------------------


def cancel_unknown(name: str, known: Iterable[str]) -> None:
    """Jobs of an array of which nobody wrote down that SLURM took them."""
    cluster.cancel(set(cluster.find(name)) - {job.partition("_")[0] for job in known})


def close(submission: Submission, index: int, outcome: str, reason: str, **more: Any) -> None:
    """A pack is over: should its job start after all, it ends at once."""
    facts = {"outcome": outcome, "reason": reason, "time": time.time(), **more}
    artifacts.write_json(submission.file("exits", index), facts)


def close_all(ended: Iterable[tuple[View, str, str]]) -> None:
    """The same for many packs (with outcome and reason), under the ledger's lock: a file a submission."""
    found: dict[Path, dict[str, Any]] = {}
    for view, word, reason in ended:
        facts = {"outcome": word, "reason": reason, "time": time.time(), "began": bool(view.beat)}
        found.setdefault(view.submission.folder / "over.json", {})[str(view.index)] = facts
    for path, facts in found.items():
        artifacts.merge_json(path, facts)
