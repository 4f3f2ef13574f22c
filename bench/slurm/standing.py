"""How far a suite is, cell by cell: what its files say, and what live jobs are at."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import artifacts, store
from bench.planning.plan import Planned
from bench.records import BenchError
from bench.shared import rows_of, strangers
from bench.slurm import hours, ledger

_AT_WORK = {"running", "suspended"}
BAD = {"failed", "oom", "timeout", "killed", "dead"}


@dataclass(frozen=True)
class Standing:
    """``cells``: status and reason by id; ``running``: what each worker of a live job is at; ``damage``: unreadable files; ``strangers``: a line on cells of its table that it has not; ``spent``: GPU-hours and core-hours by account."""

    suite: str
    cells: Mapping[str, Mapping[str, Any]]
    running: Sequence[Mapping[str, Any]]
    damage: Sequence[str]
    strangers: str = ""
    spent: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(str(cell["status"]) for cell in self.cells.values()).items()))


def standing(loaded: Any, planned: Sequence[Planned], runs: Path, results: Path) -> Standing:
    """Where every cell of a suite stands now; SLURM is asked only where jobs are open.

    What is pending here and stands in the suite's table was measured elsewhere (see ``--missing``).
    """
    rows, damage = rows_of(loaded, planned, runs)
    cells = {f"{r['training']}/{r['cell']}": {"status": r["status"], "reason": r["reason"]} for r in rows}
    table = results / f"{loaded.name}.csv"
    before = store.measured(table)
    for name in before:
        if cells.get(name, {}).get("status") == "pending":
            cells[name] = {"status": "elsewhere", "reason": f"measured elsewhere, its rows are in {table}"}
    trainings = {artifacts.training_id(one.cell.training) for one in planned}
    running = []
    for view in _views(runs, damage):
        if trainings.isdisjoint(view.owns):
            continue
        here = {str(one["training"]): one for one in view.beat.get("running", [])}
        running += [_worker(one, view) for one in here.values()] if view.word in _AT_WORK else []
        for name in _owned(view, cells):
            word = view.word
            if word in _AT_WORK and name.partition("/")[0] not in here:
                word = "queued"  # its job works at others first
            reason = f"job {view.job} died; bench submit goes on" if word == "dead" else _job(view)
            cells[name] = {"status": word, "reason": reason}
    foreign = strangers(str(loaded.name), table, before, planned)
    return Standing(loaded.name, cells, running, damage, foreign, hours.spent(runs, loaded.name))


def _job(view: ledger.View) -> str:
    """A job, and why it waits."""
    reason = view.state.reason if view.state else ""
    return f"job {view.job} ({reason})" if reason else f"job {view.job}"


def is_over(found: Standing, asked: Sequence[Planned]) -> bool:
    """Whether nothing of what was asked for is still to come."""
    words = {str(found.cells.get(artifacts.cell_id(one.cell), {}).get("status", "")) for one in asked}
    return bool(words) and not words & {"running", "suspended", "queued", "dead", "pending"}


def _views(runs: Path, damage: list[str]) -> list[ledger.View]:
    try:
        return ledger.views(runs)
    except BenchError as error:
        damage.append(str(error))
    with contextlib.suppress(BenchError):
        return ledger.views(runs, ask=False)
    return []


def _owned(view: ledger.View, cells: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The cells of a pack that are still to come."""
    for training, names in view.owns.items():
        if training in view.beat.get("ended", {}):
            continue
        for name in names:
            if cells.get(f"{training}/{name}", {"status": "ok"})["status"] not in {"ok", "skipped"}:
                yield f"{training}/{name}"


def _worker(one: Mapping[str, Any], view: ledger.View) -> dict[str, Any]:
    return {
        **one,
        "job": view.job,
        "state": view.word,
        "node": view.beat.get("node", ""),
        "heartbeat_age": round(time.time() - float(view.beat["time"]), 1),
    }


def lines(found: Standing, *, every: bool) -> Iterator[str]:
    """What a person reads: what went wrong, what runs, the counts."""
    for name, cell in found.cells.items():
        if every or cell["status"] in BAD:
            yield f"{cell['status']:9} {name}  {cell['reason']}".rstrip()
    for one in found.running:
        done, total = int(one.get("done", 0)), int(one.get("total", 0))
        far = f"{one.get('what', 'starting')} {done}/{total}" if total else str(one.get("what", "starting"))
        yield (
            f"{one['state']:9} {one['training']}  {far}, job {one['job']} on {one['node']}, "
            f"heartbeat {one['heartbeat_age']:.0f} s ago"
        )
    if found.strangers:
        yield found.strangers
    for account, (gpus, cores) in found.spent.items():
        yield f"spent: {hours.told(gpus, cores, account)}"
    yield f"{found.suite}: " + ", ".join(f"{n} {s}" for s, n in found.counts.items())
