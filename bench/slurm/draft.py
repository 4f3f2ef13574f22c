"""What is left of a suite, as jobs: neither done, nor with a live job, nor given up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.launch import Places
from bench.planning import plan
from bench.planning.plan import Planned
from bench.records import Cell, Training
from bench.slurm import cluster, ledger, packs
from bench.slurm.packs import Array, Forecast, Tried
from bench.slurm.resources import Rules

_TRANSIENT = {"oom", "killed", "timeout"}  # worth another try; what a unit raised is not


@dataclass(frozen=True)
class Draft:
    """What would be submitted, and why the rest would not.

    :param done: cells that need nothing more (skipped ones included), of ``total``.
    :param owned: cells that live jobs of others (or of an earlier submission) will bring.
    :param given_up: cells that will not be tried again, with the reason.
    :param capped: those of them of which no node has the memory.
    """

    arrays: tuple[Array, ...]
    total: int
    done: int
    owned: int
    given_up: tuple[tuple[str, str], ...]
    measured: int
    capped: Mapping[str, str] = field(default_factory=dict)

    @property
    def jobs(self) -> int:
        return sum(len(array.packs) for array in self.arrays)

    @property
    def cells(self) -> int:
        return sum(len(work.task.cells) for array in self.arrays for work in array.works)


def draft(
    planned: Sequence[Planned],
    rules: Rules,
    places: Places,
    live: Sequence[ledger.View],
    site: cluster.Limits,
    *,
    again: bool = False,
) -> Draft:
    """Plan what neither is done nor will be brought by a live job; ``again``: what was given up too."""
    left = plan.remaining(planned, artifacts.Done(places.runs))
    cells, jobs = ledger.owned(live)
    free = [p for p in left if (_training(p), artifacts.cell_name(p.cell)) not in cells]
    tried, lost = _tried(free, places.runs, rules.policy.retries, again=again)
    capped = {} if again else dict(_capped(free, tried, rules, site))
    lost |= {cell: reason for cell, reason in capped.items() if cell not in lost}
    open_ = [p for p in free if p.cell not in lost]
    made = [t for t in plan.trainings(open_) if _status(places.runs, t).get("status") == "ok"]
    forecast = Forecast(rules.suite, planned, places.runs)
    works = packs.works(open_, rules, forecast, tried, jobs, made, site)
    return Draft(
        packs.arrays(works, rules.policy, site.max_array),
        len(planned),
        len(planned) - len(left),
        len(left) - len(free),
        tuple((artifacts.cell_id(cell), reason) for cell, reason in lost.items()),
        forecast.measured,
        {artifacts.cell_id(cell): reason for cell, reason in capped.items()},
    )


def _training(one: Planned) -> str:
    return artifacts.training_id(one.cell.training)


def _status(runs: Path, training: Training) -> Mapping[str, Any]:
    return artifacts.read_json(artifacts.folder(runs, training).status) or {}


def _tried(
    free: Sequence[Planned], runs: Path, retries: int, *, again: bool
) -> tuple[dict[Training, Tried], dict[Any, str]]:
    """How each training was tried before, and which cells are given up for which reason."""
    tried: dict[Training, Tried] = {}
    lost: dict[Any, str] = {}
    memory = functools.cache(lambda: _memory(runs))
    for training, ones in plan.trainings(free).items():
        status = _status(runs, training)
        if status.get("status", "ok") != "ok":
            tried[training] = _before(status)
            if not again and (reason := _hopeless(status, retries)):
                lost |= dict.fromkeys((one.cell for one in ones), reason)
        for one in ones if status.get("status") == "ok" else ():
            files = artifacts.folder(runs, training)
            failed = artifacts.read_json(files.failed(artifacts.cell_name(one.cell))) or {}
            if failed and not again and (reason := _hopeless(failed, retries)):
                lost[one.cell] = reason
            elif failed:
                tried[training] = max(tried.get(training, Tried()), _before(failed), key=lambda t: t.attempts)
        if training in tried and tried[training].status == "oom":
            had = memory().get(artifacts.training_id(training), 0)
            tried[training] = dataclasses.replace(tried[training], mem=had)
    return tried, lost


def _memory(runs: Path) -> dict[str, int]:
    """MB that the last job of each training had."""
    found: dict[str, int] = {}
    for one in ledger.submissions(runs, closed=True):
        for array in one.manifest["arrays"]:
            packs_ = one.manifest["packs"][array["first"] : array["first"] + array["count"]]
            found |= {name: int(array.get("memory", 0)) for owns in packs_ for name in owns}
    return found


def _capped(
    free: Sequence[Planned], tried: Mapping[Training, Tried], rules: Rules, site: cluster.Limits
) -> Iterator[tuple[Cell, str]]:
    """What ran out of memory although it had as much as any node has."""
    for one in free:
        before = tried.get(one.cell.training, Tried())
        if before.status != "oom":
            continue
        asked = rules.training(one)
        most, had = site.largest(asked.partition), packs.last_memory(asked, before)
        if most and had >= most:
            where = f"of partition {asked.partition}" if asked.partition else "here"
            yield one.cell, f"out of memory with {had / 1024:.1f} GB: no node {where} has more"


def _before(outcome: Mapping[str, Any]) -> Tried:
    nodes = (str(outcome["node"]),) if outcome.get("node") else ()
    return Tried(int(outcome.get("attempt", 0)), str(outcome.get("status", "")), nodes)


def _hopeless(outcome: Mapping[str, Any], retries: int) -> str:
    """Why an outcome is not worth another try, or nothing."""
    status, attempt = outcome.get("status"), int(outcome.get("attempt", 0))
    if status not in _TRANSIENT:
        return f"{status}: {outcome.get('reason', '')}"
    if attempt > retries:
        return f"{status} {attempt} times: {outcome.get('reason', '')}"
    return ""
