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
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.launch import Places, Task, record
from bench.records import BenchError, cell_from, plain, training_from
from bench.slurm import cluster, jobs

SILENT_SECONDS = 30.0  # three heartbeats
AGAIN = 75  # exit code of a job that was told to stop and wants to run again (sysexits: try again later)
_STATUS = {"oom": "oom", "TIMEOUT": "timeout", "DEADLINE": "timeout"}


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


def spent(runs: Path, suite: str) -> dict[str, list[float]]:
    """GPU-hours and core-hours by account, of jobs of a suite that ran, as their heartbeats tell."""
    hours = dict((artifacts.read_json(home(runs) / "spent.json") or {}).get(suite, {}))
    for one in submissions(runs, closed=True):
        hours = summed(one, hours) if one.suite == suite else hours
    return hours


def summed(one: Submission, hours: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """``hours`` with those of one more submission."""
    found = {account: list(both) for account, both in hours.items()}
    for account, gpus, cores in _spent(one):
        before = found.get(account, [0.0, 0.0])
        found[account] = [before[0] + gpus, before[1] + cores]
    return found


def _spent(one: Submission) -> Iterator[tuple[str, float, float]]:
    with contextlib.suppress(OSError):
        indices = {int(p.name[:-5]) for p in os.scandir(one.folder / "beats") if p.name[:-5].isdecimal()}
        for array in one.manifest["arrays"]:
            asked = array["resources"]
            gpus = asked["nodes"] * int(str(asked["gpus"]).rpartition(":")[2])
            for index in sorted(indices & {*range(array["first"], array["first"] + array["count"])}):
                with contextlib.suppress(BenchError):
                    beat = artifacts.read_json(one.file("beats", index)) or {}
                    hours = float(beat.get("seconds", 0.0)) / 3600
                    yield asked["account"], gpus * hours, asked["nodes"] * asked["cpus"] * hours


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


# ---- sweeping (under the ledger's lock) ----------------------------------------------------------


@dataclass(frozen=True)
class Swept:
    """What a sweep found: packs still live, and those that it closed, with the reason."""

    live: tuple[View, ...]
    dead: tuple[tuple[View, str], ...]


def sweep(runs: Path, places: Places) -> Swept:
    """Close what is dead: mark what it was running, so that it is tried again; the rest is simply open."""
    _unborn(runs)
    _abandoned(runs)
    live, dead = [], []
    found = views(runs)
    now = {
        one.folder: exits(one)
        for one in {v.submission.folder: v.submission for v in found if v.dead}.values()
    }
    for view in found:
        if not view.dead:
            live.append(view)
        elif view.index not in now[view.submission.folder]:  # else it ended well just now
            dead.append((view, _bury(view, places)))
    close_all((view, "dead", reason) for view, reason in dead)
    for submission in submissions(runs):
        if len(exits(submission)) == len(submission.manifest["packs"]):
            (submission.folder / "closed").touch()
    return Swept(tuple(live), tuple(dead))


def _unborn(runs: Path) -> None:
    """The submitter died before its manifest: nothing was submitted."""
    for folder in home(runs).glob("*-*"):
        if folder.is_dir() and not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _abandoned(runs: Path) -> None:
    """The submitter died before it wrote down its jobs: they are cancelled, their packs are open again."""
    for submission in submissions(runs):
        over = exits(submission)
        for array in submission.manifest["arrays"]:
            packs = range(array["first"], array["first"] + array["count"])
            missing = [i for i in packs if str(i) not in submission.jobs and i not in over]
            if not missing:
                continue
            cancel_unknown(array["name"], submission.jobs.values())
            why = "abandoned", "its submitter died before sbatch was done"
            close_all((View(submission, index, "", None, {}), *why) for index in missing)


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


def _bury(view: View, places: Places) -> str:
    reason = _reason(view)
    if view.state and (view.state.stuck or view.state.hopeless):
        with contextlib.suppress(BenchError):  # a colleague's: should it be released, it ends at once
            cluster.cancel([view.job])
    elif view.beat and not view.blameless and (view.state is None or view.state.word != "CANCELLED"):
        for task in suspects(view, places):
            _accuse(task, view, reason, places)
    return reason


def _reason(view: View) -> str:
    state = view.state
    if state and state.stuck:
        return f"job {view.job} could not be launched, SLURM held it"
    if state and state.hopeless:
        return f"job {view.job} can never start as it is asked for: {state.reason}"
    if state is None or not state.dead:
        return f"job {view.job} is gone: SLURM does not know it any more"
    if state.out_of_memory:
        return f"job {view.job} ran out of memory"
    if view.blameless:
        how = "was preempted" if state.word == "PREEMPTED" else "saved, and SLURM does not run it again"
        return f"job {view.job} {how}: no attempt is lost"
    if state.exit_code == AGAIN:
        return "nothing could be saved in a time slice: ask for more time"
    how = f"signal {state.signal}" if state.signal else f"exit code {state.exit_code}"
    where = f" on {state.node}" if state.node else ""
    return f"job {view.job} ended: {state.word} ({how}){where}"


def suspects(view: View, places: Places) -> list[Task]:
    """What a dead job was at: by its heartbeat, else the first open tasks, as they go in order."""
    left = [t for t in tasks(view.submission, view.index) if _open(t, view, places)]
    named = {str(one["training"]) for one in view.beat.get("running", [])}
    found = [t for t in left if artifacts.training_id(t.training) in named]
    return found or left[: int(view.beat.get("workers", 1))]


def _open(task: Task, view: View, places: Places) -> bool:
    name = artifacts.training_id(task.training)
    if name in view.beat.get("ended", {}):
        return False
    done = artifacts.outcomes(places.runs, task.training)
    return any(artifacts.cell_name(cell) not in done for cell in task.cells)


def _accuse(task: Task, view: View, reason: str, places: Places) -> None:
    """Mark a task as ended by its job's death, unless an orphan of that job is still at it."""
    state = view.state
    word = "oom" if state and state.out_of_memory else state.word if state else ""
    slice_lost = state is not None and state.exit_code == AGAIN
    outcome = {"status": "timeout" if slice_lost else _STATUS.get(word, "killed"), "reason": reason}
    if state and state.word in {"NODE_FAIL", "BOOT_FAIL"} and state.node:
        outcome["node"] = state.node
    folder = artifacts.folder(places.runs, task.training).path
    with artifacts.free(folder) as free:
        if free:
            record(task, outcome, places)
