"""What was submitted and what became of it, as it lies in ``runs/.slurm``: one folder a submission.

``manifest.json`` (written before sbatch), ``packs/<n>.json``, ``jobs.json`` (after each sbatch),
``beats/<n>.json`` (the heartbeat of a job) and ``exits/<n>.json`` (a pack that is over, however it ended).
A pack without an exit file is live until SLURM says that its job is dead.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.launch import Places, Task, record
from bench.records import BenchError, cell_from, training_from
from bench.slurm import cluster, jobs

SILENT_SECONDS = 30.0  # three heartbeats
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
        """``kind``: packs, beats or exits."""
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
        return self.state.dead or self.state.stuck or (self.state.gone and self.silent)

    @property
    def silent(self) -> bool:
        """A controller that came up again may have forgotten a job that still runs: its heartbeat tells."""
        heard = float(self.beat.get("time") or self.submission.manifest["created"])
        return time.time() - heard > SILENT_SECONDS

    @property
    def word(self) -> str:
        """``running``, ``queued`` or ``dead``."""
        if self.dead:
            return "dead"
        waiting = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
        return "queued" if self.state and self.state.word in waiting else "running"


# ---- reading -------------------------------------------------------------------------------------


def home(runs: Path) -> Path:
    """Where the submissions of a runs folder are kept."""
    return runs.resolve() / ".slurm"


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
    return {int(path.stem) for path in (submission.folder / "exits").glob("*.json") if path.stem.isdigit()}


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


def tasks(submission: Submission, index: int) -> list[Task]:
    """The tasks of a pack, in the order in which they are worked off."""
    pack = artifacts.read_json(submission.file("packs", index)) or {"tasks": []}
    return [task_from(record) for record in pack["tasks"]]


def task_from(record: Mapping[str, Any]) -> Task:
    """The inverse of what ``packs/<n>.json`` holds of a task."""
    cells = tuple(cell_from(cell) for cell in record["cells"])
    return Task(training_from(record["training"]), cells, record["label"])


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
    for view in views(runs):
        if not view.dead:
            live.append(view)
        elif not view.submission.file("exits", view.index).exists():  # it ended well just now
            dead.append((view, _bury(view, places)))
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
        for array in submission.manifest["arrays"]:
            packs = range(array["first"], array["first"] + array["count"])
            missing = [i for i in packs if str(i) not in submission.jobs]
            if not missing:
                continue
            cluster.cancel(cluster.find(array["name"]))
            for index in missing:
                close(submission, index, "abandoned", "its submitter died before sbatch was done")


def close(submission: Submission, index: int, outcome: str, reason: str, **more: Any) -> None:
    """A pack is over: should its job start after all, it ends at once."""
    facts = {"outcome": outcome, "reason": reason, "time": time.time(), **more}
    artifacts.write_json(submission.file("exits", index), facts)


def _bury(view: View, places: Places) -> str:
    reason = _reason(view)
    if view.state and view.state.stuck:
        with contextlib.suppress(BenchError):  # a colleague's: should it be released, it ends at once
            cluster.cancel([view.job])
    elif view.beat and (view.state is None or view.state.word != "CANCELLED" or view.state.out_of_memory):
        for task in suspects(view, places):
            _accuse(task, view, reason, places)
    close(view.submission, view.index, "dead", reason, began=bool(view.beat))
    return reason


def _reason(view: View) -> str:
    state = view.state
    if state and state.stuck:
        return f"job {view.job} could not be launched, SLURM held it"
    if state is None or not state.dead:
        return f"job {view.job} is gone: SLURM does not know it any more"
    if state.out_of_memory:
        return f"job {view.job} ran out of memory"
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
    outcome = {"status": _STATUS.get(word, "killed"), "reason": reason}
    if state and state.word in {"NODE_FAIL", "BOOT_FAIL"} and state.node:
        outcome["node"] = state.node
    folder = artifacts.folder(places.runs, task.training).path
    with artifacts.free(folder) as free:
        if free:
            record(task, outcome, places)
