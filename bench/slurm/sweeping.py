"""Finds what died: a pack whose job is over without a word of its own is open again, what it was at is marked."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench import artifacts
from bench.launch import Places, Task, record
from bench.records import BenchError
from bench.slurm import cluster, ledger

_STATUS = {"oom": "oom", "TIMEOUT": "timeout", "DEADLINE": "timeout"}


@dataclass(frozen=True)
class Swept:
    """What a sweep found: packs still live, and those that it closed, with the reason."""

    live: tuple[ledger.View, ...]
    dead: tuple[tuple[ledger.View, str], ...]


def sweep(runs: Path, places: Places) -> Swept:
    """Close what is dead: mark what it was running, so that it is tried again; the rest is simply open."""
    _unborn(runs)
    _abandoned(runs)
    live, dead = [], []
    found = ledger.views(runs)
    now = {
        one.folder: ledger.exits(one)
        for one in {v.submission.folder: v.submission for v in found if v.dead}.values()
    }
    for view in found:
        if not view.dead:
            live.append(view)
        elif view.index not in now[view.submission.folder]:  # else it ended well just now
            dead.append((view, _bury(view, places)))
    ledger.close_all((view, "dead", reason) for view, reason in dead)
    for submission in ledger.submissions(runs):
        if len(ledger.exits(submission)) == len(submission.manifest["packs"]):
            (submission.folder / "closed").touch()
    return Swept(tuple(live), tuple(dead))


def _unborn(runs: Path) -> None:
    """The submitter died before its manifest: nothing was submitted."""
    for folder in ledger.home(runs).glob("*-*"):
        if folder.is_dir() and not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _abandoned(runs: Path) -> None:
    """The submitter died before it wrote down its jobs: they are cancelled, their packs are open again."""
    for submission in ledger.submissions(runs):
        over = ledger.exits(submission)
        for array in submission.manifest["arrays"]:
            packs = range(array["first"], array["first"] + array["count"])
            missing = [i for i in packs if str(i) not in submission.jobs and i not in over]
            if not missing:
                continue
            ledger.cancel_unknown(array["name"], submission.jobs.values())
            why = "abandoned", "its submitter died before sbatch was done"
            ledger.close_all((ledger.View(submission, index, "", None, {}), *why) for index in missing)


def _bury(view: ledger.View, places: Places) -> str:
    reason = _reason(view)
    if view.state and (view.state.stuck or view.state.hopeless):
        with contextlib.suppress(BenchError):  # a colleague's: should it be released, it ends at once
            cluster.cancel([view.job])
    elif view.beat and not view.blameless and (view.state is None or view.state.word != "CANCELLED"):
        for task in suspects(view, places):
            _accuse(task, view, reason, places)
    return reason


def _reason(view: ledger.View) -> str:
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
    if state.exit_code == ledger.AGAIN:
        return "nothing could be saved in a time slice: ask for more time"
    how = f"signal {state.signal}" if state.signal else f"exit code {state.exit_code}"
    where = f" on {state.node}" if state.node else ""
    return f"job {view.job} ended: {state.word} ({how}){where}"


def suspects(view: ledger.View, places: Places) -> list[Task]:
    """What a dead job was at: by its heartbeat, else the first open ledger.tasks, as they go in order."""
    left = [t for t in ledger.tasks(view.submission, view.index) if _open(t, view, places)]
    named = {str(one["training"]) for one in view.beat.get("running", [])}
    found = [t for t in left if artifacts.training_id(t.training) in named]
    return found or left[: int(view.beat.get("workers", 1))]


def _open(task: Task, view: ledger.View, places: Places) -> bool:
    name = artifacts.training_id(task.training)
    if name in view.beat.get("ended", {}):
        return False
    done = artifacts.outcomes(places.runs, task.training)
    return any(artifacts.cell_name(cell) not in done for cell in task.cells)


def _accuse(task: Task, view: ledger.View, reason: str, places: Places) -> None:
    """Mark a task as ended by its job's death, unless an orphan of that job is still at it."""
    state = view.state
    word = "oom" if state and state.out_of_memory else state.word if state else ""
    slice_lost = state is not None and state.exit_code == ledger.AGAIN
    outcome = {"status": "timeout" if slice_lost else _STATUS.get(word, "killed"), "reason": reason}
    if state and state.word in {"NODE_FAIL", "BOOT_FAIL"} and state.node:
        outcome["node"] = state.node
    folder = artifacts.folder(places.runs, task.training).path
    with artifacts.free(folder) as free:
        if free:
            record(task, outcome, places)
