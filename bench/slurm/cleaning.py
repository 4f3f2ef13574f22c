"""An end to files that nobody needs any more: what is removed says nothing about any result."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import artifacts
from bench.records import BenchError
from bench.slurm import hours, ledger

_HALF = re.compile(r"\..+\.[0-9a-f]{12}")  # what artifacts.written had not finished
_HALF_SECONDS = 86400.0  # nobody writes one file for longer


@dataclass(frozen=True)
class Spent:
    """A kind of files that goes, how many and how large."""

    what: str
    files: int
    megabytes: float


def clean(runs: Path, age: float, *, dry_run: bool = False) -> list[Spent]:
    """Remove what is spent below ``runs``, or only tell.

    :param age: seconds that logs and submissions stay after their last change.
    :raises BenchError: the folder cannot be locked.
    """
    if not runs.is_dir():
        return []
    with artifacts.lock(ledger.home(runs)):
        return [
            _gone("checkpoints of finished trainings", _checkpoints(runs), dry_run=dry_run),
            _gone("half-written files of killed jobs", _half(runs), dry_run=dry_run),
            _gone("logs of finished trainings", _logs(runs, age), dry_run=dry_run),
            _gone(
                "submissions that are over, with their jobs' logs",
                _over(runs, age),
                dry_run=dry_run,
                last=_keep_hours,
            ),
        ]


def _gone(
    what: str, paths: Iterable[Path], *, dry_run: bool, last: Callable[[Path], None] | None = None
) -> Spent:
    files, size = 0, 0
    for path in list(paths):
        inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        with contextlib.suppress(OSError):
            size += sum(p.stat().st_size for p in inside)
            files += len(inside)
        if dry_run:
            continue
        if last:
            last(path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return Spent(what, files, size / 2**20)


def _finished(runs: Path) -> Iterator[Path]:
    """Folders of trainings that came out and at which nobody works."""
    for status in runs.glob("*/status.json"):
        with contextlib.suppress(BenchError):
            if (artifacts.read_json(status) or {}).get("status") == "ok":
                with artifacts.free(status.parent) as free:
                    if free:
                        yield status.parent


def _checkpoints(runs: Path) -> Iterator[Path]:
    for folder in _finished(runs):
        yield from folder.glob("checkpoint.safetensors")
        for path in folder.glob("work/*/*/checkpoint.safetensors"):  # of an evaluation, by its cell's name
            if (folder / "cells" / f"{path.parent.parent.name}.json").exists():
                yield path


def _half(runs: Path) -> Iterator[Path]:
    for path in runs.glob("**/.*"):
        if _HALF.fullmatch(path.name) and path.is_file() and _age(path) > _HALF_SECONDS:
            yield path


def _logs(runs: Path, age: float) -> Iterator[Path]:
    return (f / "log" for f in _finished(runs) if (f / "log").exists() and _age(f / "log") >= age)


def _over(runs: Path, age: float) -> Iterator[Path]:
    for one in ledger.submissions(runs, closed=True):
        over = len(ledger.exits(one)) >= len(one.manifest["packs"])
        last = min((_age(p) for p in (one.folder, *one.folder.glob("*"))), default=0.0)
        if over and last >= age:
            yield one.folder


def _keep_hours(folder: Path) -> None:
    """What jobs cost stays known."""
    path = folder.parent / "spent.json"
    one = ledger.Submission(folder, artifacts.read_json(folder / "manifest.json") or {})
    kept = artifacts.read_json(path) or {}
    artifacts.write_json(path, {**kept, one.suite: hours.summed(one, kept.get(one.suite, {}))})


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
