"""Waits for a suite on SLURM: looks at exit files, asks SLURM now and then, submits again what died."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from bench import artifacts
from bench.launch import Places
from bench.planning import plan
from bench.planning.plan import Planned
from bench.records import BenchError
from bench.slurm import cluster, ledger
from bench.slurm.resources import Rules
from bench.slurm.submission import Sent, submit

LOOK = 1.0  # seconds between two looks at the exit files
ASK = 10.0  # seconds between two questions to SLURM
PATIENCE = 900.0  # seconds for which SLURM may be out of reach
_ROUNDS = 3  # submissions in a row of which no job began: something is wrong here, not there

Tell = Callable[[Sent], None]
Show = Callable[[int, int, str], None]  # jobs over, of how many, and what SLURM says of the others


@dataclass(frozen=True)
class Watched:
    """A suite that is waited for."""

    planned: Sequence[Planned]
    rules: Rules
    places: Places


def follow(watched: Watched, tell: Tell, *, again: bool = False) -> None:
    """Submit, wait, and submit again until nothing is left that could come out.

    :raises BenchError: jobs were canceled, stopped by something that concerns all, or none begins at all.
    """
    unborn = 0
    with _display(watched) as show:
        while True:
            sent = _patiently(watched, again=again)
            again = False  # what fails once more is given up again
            tell(sent)
            begun = [v.beat or v.blameless for v, _ in sent.swept.dead]
            unborn = 0 if any(begun) or not begun else unborn + 1
            if unborn >= _ROUNDS:
                raise BenchError(f"no job began: {sent.swept.dead[0][1]}; see bench logs and bench doctor")
            packs = _ours(watched)
            if not packs and not sent.waiting:
                return
            if packs:
                _until_over(packs, watched, show, places=sent.waiting > 0)
            else:
                time.sleep(ASK)  # others of this account have all its places


def _patiently(watched: Watched, *, again: bool) -> Sent:
    """Once more while SLURM is out of reach: a controller may be restarted under us."""
    since, told = time.monotonic(), ""
    while True:
        try:
            return submit(watched.planned, watched.rules, watched.places, again=again)
        except cluster.SlurmError as error:
            if time.monotonic() - since > PATIENCE:
                raise
            if str(error) != told:
                told = str(error)
                click.echo(f"asking again: {told}", err=True)
            time.sleep(5 * LOOK)


def _ours(watched: Watched) -> list[ledger.View]:
    """Open packs that will bring cells of this suite, whoever submitted them."""
    names = {artifacts.training_id(one.cell.training) for one in watched.planned}
    done = artifacts.Done(watched.places.runs)
    left = {
        (artifacts.training_id(p.cell.training), artifacts.cell_name(p.cell))
        for p in plan.remaining(watched.planned, done)
    }
    return [
        view
        for view in ledger.views(watched.places.runs, ask=False)
        if not names.isdisjoint(view.owns)
        and any((training, name) in left for training, cells in view.owns.items() for name in cells)
    ]


def _until_over(packs: Sequence[ledger.View], watched: Watched, show: Show, *, places: bool = False) -> None:
    """Return when all of them are over, or something is to be submitted (again).

    :param places: something waits until jobs are over: it is submitted then, at most every ``ASK`` seconds.
    """
    asked, said = time.monotonic(), ""
    waiting = list(packs)
    while waiting:
        time.sleep(LOOK)
        now = {
            one.folder: ledger.exits(one)
            for one in {v.submission.folder: v.submission for v in waiting}.values()
        }
        over = [v for v in waiting if v.index in now[v.submission.folder]]
        waiting = [v for v in waiting if v.index not in now[v.submission.folder]]
        show(len(packs) - len(waiting), len(packs), said if waiting else "")
        if any(_ended_badly(view) for view in over):
            return
        if time.monotonic() - asked > ASK:
            asked = time.monotonic()
            if places and len(waiting) < len(packs):
                return
            views = ledger.views(watched.places.runs)
            if any(view.dead or not view.job for view in views):  # without a job: its submitter may have died
                return
            ours = {(view.submission.folder, view.index) for view in waiting}
            said = _words(view for view in views if (view.submission.folder, view.index) in ours)


def _words(views: Iterable[ledger.View]) -> str:
    """What SLURM says of jobs, as ``2 RUNNING, 1 PENDING (Priority)``: who waits wants to know for what."""
    states = (view.state for view in views)
    words = Counter(f"{s.word} ({s.reason})" if s.reason else s.word for s in states if s)
    return ", ".join(f"{count} {word}" for word, count in words.most_common())


def _ended_badly(view: ledger.View) -> bool:
    facts: dict[str, Any] = dict(ledger.outcome(view.submission, view.index))
    if facts.get("outcome") in {"fatal", "canceled"}:
        raise BenchError(f"{view.submission.suite}: {facts['outcome']}: {facts['reason']}")
    return facts.get("outcome") != "done" or bool(facts.get("problems"))


# ---- what a person sees --------------------------------------------------------------------------


def _display(watched: Watched) -> Any:
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Lines:
    """No terminal: a line when more jobs are over or others wait, at most every ten seconds."""

    def __init__(self) -> None:
        self.last, self.told = 0.0, (0, 0, "")

    def __enter__(self) -> Show:
        return self.show

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, over: int, total: int, said: str) -> None:
        now = time.monotonic()
        if (over, total, said) != self.told and (over == total or now - self.last > 10):
            self.last, self.told = now, (over, total, said)
            sys.stderr.write(f"[{over}/{total}] jobs over{said and ': '}{said}\n")
            sys.stderr.flush()


class _Bar:
    """A bar over the jobs of the round at hand."""

    def __enter__(self) -> Show:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        done = TextColumn("{task.completed}/{task.total}")
        said = TextColumn("{task.fields[said]}", markup=False)
        columns = (TextColumn("jobs over"), BarColumn(), done, TimeElapsedColumn(), said)
        self.bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self.row = self.bars.add_task("jobs", total=1, said="")
        self.bars.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, over: int, total: int, said: str) -> None:
        self.bars.update(self.row, completed=over, total=total, said=said)
