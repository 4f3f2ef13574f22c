"""Submits what is left of a suite: whoever submits again retries, goes on after a death, or finds nothing to do."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.launch import Places
from bench.planning import plan
from bench.planning.plan import Planned
from bench.records import BenchError, Training, plain
from bench.slurm import cluster, ledger, packs
from bench.slurm.packs import Array, Forecast, Tried, Work
from bench.slurm.resources import Rules
from bench.slurm.sbatch import sbatch

_TRANSIENT = {"oom", "killed", "timeout"}  # worth another try; what a unit raised is not


@dataclass(frozen=True)
class Draft:
    """What would be submitted, and why the rest would not.

    :param done: cells that need nothing more (skipped ones included), of ``total``.
    :param owned: cells that live jobs of others (or of an earlier submission) will bring.
    :param given_up: cells that will not be tried again, with the reason.
    """

    arrays: tuple[Array, ...]
    total: int
    done: int
    owned: int
    given_up: tuple[tuple[str, str], ...]
    measured: int

    @property
    def jobs(self) -> int:
        return sum(len(array.packs) for array in self.arrays)

    @property
    def cells(self) -> int:
        return sum(len(work.task.cells) for array in self.arrays for work in array.works)


@dataclass(frozen=True)
class Sent:
    """One call of submit: what was found dead, what was left to do, what was submitted."""

    swept: ledger.Swept
    draft: Draft
    submission: ledger.Submission | None


# ---- what is left --------------------------------------------------------------------------------


def draft(
    planned: Sequence[Planned],
    rules: Rules,
    places: Places,
    live: Sequence[ledger.View],
    max_array: int,
    *,
    again: bool = False,
) -> Draft:
    """Plan what neither is done nor will be brought by a live job; ``again``: what was given up too."""
    left = plan.remaining(planned, artifacts.Done(places.runs))
    cells, jobs = ledger.owned(live)
    free = [p for p in left if (_training(p), artifacts.cell_name(p.cell)) not in cells]
    tried, lost = _tried(free, places.runs, rules.policy.retries, again=again)
    open_ = [p for p in free if p.cell not in lost]
    made = [t for t in plan.trainings(open_) if _status(places.runs, t).get("status") == "ok"]
    forecast = Forecast(rules.suite, planned, places.runs)
    works = packs.works(open_, rules, forecast, tried, jobs, made)
    return Draft(
        packs.arrays(works, rules.policy, max_array),
        len(planned),
        len(planned) - len(left),
        len(left) - len(free),
        tuple((artifacts.cell_id(cell), reason) for cell, reason in lost.items()),
        forecast.measured,
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
    for training, ones in plan.trainings(free).items():
        status = _status(runs, training)
        if status.get("status", "ok") != "ok":
            tried[training] = _before(status)
            if not again and (reason := _hopeless(status, retries)):
                lost |= {one.cell: reason for one in ones}
        for one in ones if status.get("status") == "ok" else ():
            files = artifacts.folder(runs, training)
            failed = artifacts.read_json(files.failed(artifacts.cell_name(one.cell))) or {}
            if failed and not again and (reason := _hopeless(failed, retries)):
                lost[one.cell] = reason
            elif failed:
                tried[training] = max(tried.get(training, Tried()), _before(failed), key=lambda t: t.attempts)
    return tried, lost


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


# ---- submitting ----------------------------------------------------------------------------------


def submit(planned: Sequence[Planned], rules: Rules, places: Places, *, again: bool = False) -> Sent:
    """Sweep what died, then submit what is left: under one lock, so that two submitters share the work.

    :raises BenchError: SLURM refuses, or cannot be reached; what was submitted before stays.
    """
    home = ledger.home(places.runs)
    if "%" in str(home) or not str(home).isprintable():
        raise BenchError(f"{home}: sbatch reads % in a path as a pattern; choose another folder with --runs")
    with artifacts.lock(home):
        swept = ledger.sweep(places.runs, places)
        limits = cluster.limits()
        found = draft(planned, rules, places, swept.live, limits.max_array, again=again)
        submission = _send(found, rules, places) if found.arrays else None
    return Sent(swept, found, submission)


def _send(found: Draft, rules: Rules, places: Places) -> ledger.Submission:
    submission = _written(found, rules, places)
    jobs: dict[str, str] = {}
    for number, array in enumerate(found.arrays):
        entry = submission.manifest["arrays"][number]
        lead = None if array.follows is None else submission.manifest["arrays"][array.follows]
        dependency = _dependency(array, lead, jobs)
        try:
            ids = sbatch(submission, entry, array.resources, dependency)
        except BenchError as error:
            for index in range(entry["first"], len(submission.manifest["packs"])):
                ledger.close(submission, index, "refused", str(error))
            with contextlib.suppress(BenchError):  # no answer in time may have been a yes
                cluster.cancel(cluster.find(entry["name"]))
            raise type(error)(f"{rules.suite.path}: slurm: {error}") from error
        jobs |= {str(entry["first"] + i): job for i, job in enumerate(ids)}
        artifacts.write_json(submission.folder / "jobs.json", jobs)
    return submission


def _written(found: Draft, rules: Rules, places: Places) -> ledger.Submission:
    """The folder of a submission, its manifest last: from then on it exists."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    folder = ledger.home(places.runs) / name
    first, entries, owns = 0, [], []
    for number, array in enumerate(found.arrays):
        for i, pack in enumerate(array.packs):
            artifacts.write_json(folder / "packs" / f"{first + i}.json", _record(pack, rules, places))
            owns.append(_owned(pack))
        entry = {"name": f"bench-{name}-{number}", "first": first, "count": len(array.packs)}
        asks = plain(array.resources)
        entries.append({**entry, "resources": asks, "follows": array.follows, "after": list(array.after)})
        first += len(array.packs)
    manifest = {
        "suite": rules.suite.name,
        "source": str(rules.suite.path.resolve()),
        "created": time.time(),
        "host": socket.gethostname(),
        "arrays": entries,
        "packs": owns,
    }
    artifacts.write_json(folder / "manifest.json", manifest)
    return ledger.Submission(folder, manifest)


def _owned(pack: Sequence[Work]) -> dict[str, list[str]]:
    owns: dict[str, list[str]] = {}
    for work in pack:
        names = owns.setdefault(artifacts.training_id(work.task.training), [])
        names += [artifacts.cell_name(cell) for cell in work.task.cells]
    return owns


def _record(pack: Sequence[Work], rules: Rules, places: Places) -> dict[str, Any]:
    resources, training = pack[0].resources, pack[0].task.training
    return {
        "tasks": [{**plain(work.task), "train": work.train} for work in pack],
        "places": {k: str(v.resolve()) for k, v in vars(places).items()},
        "workers": packs.workers(pack),
        "processes": training.processes,
        "threads": training.threads,
        "nodes": resources.nodes,
        "devices": resources.gpus,
        "stall": rules.policy.stall,
    }


def _dependency(array: Array, lead: Mapping[str, Any] | None, jobs: Mapping[str, str]) -> str:
    if lead is not None:
        job = jobs[str(lead["first"])]
        # Element by element: judging starts when its own training's job ended well.
        return f"aftercorr:{job.partition('_')[0]}" if "_" in job else f"afterok:{job}"
    ids = array.after if len(array.after) < 20 else {job.partition("_")[0] for job in array.after}
    return ":".join(["afterany", *sorted(ids)]) if ids else ""
