"""What jobs cost, as their heartbeats tell."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench import artifacts
from bench.records import BenchError
from bench.slurm import ledger


def spent(runs: Path, suite: str) -> dict[str, list[float]]:
    """GPU-hours and core-hours by account, of jobs of a suite that ran, as their heartbeats tell."""
    hours = dict((artifacts.read_json(ledger.home(runs) / "spent.json") or {}).get(suite, {}))
    for one in ledger.submissions(runs, closed=True):
        hours = summed(one, hours) if one.suite == suite else hours
    return hours


def summed(one: ledger.Submission, hours: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """``hours`` with those of one more submission."""
    found = {account: list(both) for account, both in hours.items()}
    for account, gpus, cores in _spent(one):
        before = found.get(account, [0.0, 0.0])
        found[account] = [before[0] + gpus, before[1] + cores]
    return found


def _spent(one: ledger.Submission) -> Iterator[tuple[str, float, float]]:
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


def told(gpus: float, cores: float, account: str) -> str:
    """What jobs cost, for people."""
    whose = f" of account {account}" if account else ""
    return f"{gpus:.2f} GPU-hours, {cores:.2f} core-hours{whose}"
