"""Submits what is left of a suite: whoever submits again retries, goes on after a death, or finds nothing to do."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.launch import Places
from bench.planning.part import Part
from bench.planning.plan import Planned
from bench.records import BenchError, plain
from bench.slurm import cluster, ledger, packs, sweeping
from bench.slurm.draft import Draft, draft
from bench.slurm.packs import Array, Work
from bench.slurm.resources import Resources, Rules
from bench.slurm.sbatch import RefusedError, asked, sbatch


@dataclass(frozen=True)
class Sent:
    """One call of submit: what was found dead, what was left to do, what was submitted.

    :param jobs: that were taken, with so many ``cells``; ``waiting``: cells for whose jobs there is no place now.
    :param refused: cells that sbatch will not take as they are, with its word.
    """

    swept: sweeping.Swept
    draft: Draft
    submission: ledger.Submission | None
    jobs: int = 0
    cells: int = 0
    waiting: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)


def submit(planned: Sequence[Planned], rules: Rules, places: Places, *, again: bool = False) -> Sent:
    """Sweep what died, then submit what is left: under one lock, so that two submitters share the work.

    :raises BenchError: SLURM refuses, or cannot be reached; what was submitted before stays.
    """
    home = ledger.home(places.runs)
    if "%" in str(home) or not str(home).isprintable():
        raise BenchError(f"{home}: sbatch reads % in a path as a pattern; choose another folder with --runs")
    with artifacts.lock(home):
        swept, site = sweeping.sweep(places.runs, places), cluster.limits()
        found = draft(planned, rules, places, swept.live, site, again=again)
        sent = Sent(swept, found, None)
        if found.arrays:
            room = cluster.room(
                site.enforced
            )  # what would be refused need not be written; one is always tried
            sent = _send(
                sent, found.arrays if room is None else packs.first(found.arrays, max(1, room)), rules, places
            )
        _note_refused(planned, places.runs, {**found.capped, **sent.refused})
    if sent.refused and not sent.jobs and not found.owned and not sent.waiting:
        raise BenchError(f"{rules.suite.path}: slurm: {next(iter(sent.refused.values()))}")
    return sent


def note_asked(suite: str, part: Part, runs: Path) -> None:
    """Beside the submissions: what was asked for, so that whoever looks later knows what belongs to the table.

    :raises BenchError: the folder cannot be written.
    """
    path, own = artifacts.asked_for(runs), plain(part)
    before = (artifacts.read_json(path) or {}).get(suite, [])
    if own not in before:
        with artifacts.lock(ledger.home(runs)):
            artifacts.merge_json(path, {suite: [*before, own]})


def _note_refused(planned: Sequence[Planned], runs: Path, reasons: Mapping[str, str]) -> None:
    """Beside the submissions, for the rows: why some of these cells are not with SLURM."""
    path = artifacts.why_not(runs)
    before = artifacts.read_json(path) or {}
    ours = {artifacts.cell_id(one.cell) for one in planned} if before else set()
    kept = {name: reason for name, reason in before.items() if name not in ours}
    if kept or reasons or before:
        artifacts.write_json(path, {**kept, **reasons})


def _send(sent: Sent, arrays: Sequence[Array], rules: Rules, places: Places) -> Sent:
    """Array by array; what is refused costs itself only, and what finds no place stays open."""
    submission = _written(arrays, rules, places)
    jobs: dict[str, str] = {}
    refused: dict[str, str] = {}
    never: dict[int, str] = {}
    full = False
    for number, array in enumerate(arrays):
        entry = submission.manifest["arrays"][number]
        part, dependency = range(entry["first"], entry["first"] + entry["count"]), _after(array)
        if array.follows in never:
            never[number] = never[array.follows]
            refused |= _names(array, never[number])
            continue
        if array.follows is not None:
            lead = submission.manifest["arrays"][array.follows]
            count = _first_batch(lead, jobs)
            part, dependency = part[:count], _like(lead, jobs) if count else ""
        try:
            for batch in () if full else _taken(submission, entry, array.resources, part, dependency):
                jobs |= batch
                artifacts.write_json(submission.folder / "jobs.json", jobs)
        except RefusedError as error:
            full |= error.full
            if not error.full:
                never[number] = f"{error} ({asked(array.resources)})"
                refused |= _names(array, never[number])
        except BenchError as error:
            _keep_sent(submission, jobs)
            with contextlib.suppress(BenchError):  # no answer in time may have been a yes
                ledger.cancel_unknown(entry["name"], jobs.values())
            raise type(error)(f"{rules.suite.path}: slurm: {error}") from error
    submission = _keep_sent(submission, jobs)
    cells = sum(len(names) for owns in submission.manifest["packs"] for names in owns.values())
    waiting = sent.draft.cells - cells - len(refused)
    return dataclasses.replace(
        sent,
        submission=submission if jobs else None,
        jobs=len(jobs),
        cells=cells,
        waiting=waiting,
        refused=refused,
    )


def _taken(
    submission: ledger.Submission,
    entry: Mapping[str, Any],
    resources: Resources,
    part: range,
    dependency: str,
) -> Iterator[dict[str, str]]:
    """What sbatch takes of an array, as jobs by pack: where places are few, in smaller and smaller parts.

    :raises RefusedError: of the rest.
    """
    size = len(part)
    while part:
        try:
            ids = sbatch(submission, entry, resources, dependency, part[:size])
        except RefusedError as error:
            if resources.avoid and not error.full:
                resources = dataclasses.replace(
                    resources, avoid=()
                )  # a preference, where nothing else is left
            elif size > 1 and error.full:
                size = -(-size // 2)
            else:
                raise
            continue
        yield dict(zip(map(str, part[:size]), ids, strict=True))
        part = part[size:]
        size = min(size, len(part))


def _first_batch(lead: Mapping[str, Any], jobs: Mapping[str, str]) -> int:
    """How many jobs of an array came with its first sbatch: element by element they can be awaited."""
    ids = [jobs.get(str(lead["first"] + i), "").partition("_")[0] for i in range(lead["count"])]
    return sum(one == ids[0] != "" for one in ids)


def _names(array: Array, reason: str) -> dict[str, str]:
    return {artifacts.cell_id(cell): reason for work in array.works for cell in work.task.cells}


def _keep_sent(submission: ledger.Submission, jobs: Mapping[str, str]) -> ledger.Submission:
    """Of packs that SLURM did not take, nothing stays: they are open, as if nobody had planned them."""
    owns = submission.manifest["packs"]
    if len(jobs) == len(owns):
        return submission
    if not jobs:
        shutil.rmtree(submission.folder, ignore_errors=True)
        return ledger.Submission(submission.folder, {**submission.manifest, "packs": []})
    left = {
        str(i): {"outcome": "unsent", "reason": "SLURM did not take it", "time": time.time()}
        for i in range(len(owns))
        if str(i) not in jobs
    }
    artifacts.merge_json(submission.folder / "over.json", left)
    mine = [own if str(i) in jobs else {} for i, own in enumerate(owns)]
    manifest = {**submission.manifest, "packs": mine}
    artifacts.write_json(submission.folder / "manifest.json", manifest)
    return ledger.Submission(submission.folder, manifest)


def _written(arrays: Sequence[Array], rules: Rules, places: Places) -> ledger.Submission:
    """The folder of a submission, its manifest last: from then on it exists."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    folder = ledger.home(places.runs) / name
    entries: list[dict[str, Any]] = []
    owns = [_owned(pack) for array in arrays for pack in array.packs]
    first = 0
    for number, array in enumerate(arrays):
        entry = {"name": f"bench-{name}-{number}", "first": first, "count": len(array.packs)}
        entry |= {"resources": plain(array.resources), "memory": array.resources.memory}
        entries.append({**entry, "follows": array.follows, "after": list(array.after)})
        first += len(array.packs)
    ledger.write_packs(folder, (_record(pack, rules, places) for array in arrays for pack in array.packs))
    manifest = {
        "suite": rules.suite.name,
        "source": str(artifacts.as_given(rules.suite.path)),
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
        "tasks": [{**ledger.task_record(work.task), "train": work.train} for work in pack],
        "places": {k: str(artifacts.as_given(v)) for k, v in vars(places).items()},
        "workers": packs.workers(pack),
        "processes": training.processes,
        "threads": training.threads,
        "nodes": resources.nodes,
        "devices": resources.devices,
        "srun": list(resources.srun),
        "python": resources.python,
        "stall": rules.policy.stall,
    }


def _like(lead: Mapping[str, Any], jobs: Mapping[str, str]) -> str:
    """Element by element: judging starts when its own training's job ended well."""
    job = jobs[str(lead["first"])]
    return f"aftercorr:{job.partition('_')[0]}" if "_" in job else f"afterok:{job}"


def _after(array: Array) -> str:
    ids = array.after if len(array.after) < 20 else {job.partition("_")[0] for job in array.after}
    return ":".join(["afterany", *sorted(ids)]) if ids else ""
