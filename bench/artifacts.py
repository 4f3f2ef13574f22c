"""What lies in a folder: names that say what they are, files that are whole or not there.

``runs/<training>/`` holds ``spec.json``, ``status.json``, ``model.safetensors``, ``checkpoint.safetensors``
while it trains, ``snapshots/``, ``curves.parquet``, ``log`` and ``cells/<cell>.json``, one outcome a cell.
A name is readable parts + the digest of all resolved settings + the digest of the code behind them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.code import closure_digest
from bench.records import NUMERICS, Aim, BenchError, Cell, Training, Unit, digest
from bench.registry import code_digest, find

WHITENING = "bench.backbones._whitening"  # belongs to no unit, and to all trainings that whiten
FEATURES = "protocols._features"  # extracts what frozen protocols share


def slug(text: str) -> str:
    """A name that is safe as one part of a path."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:60] or "unnamed"


@functools.lru_cache(maxsize=100_000)
def training_settings(training: Training) -> str:
    """Digest of a training's settings, code apart."""
    return digest(training)


def training_code(training: Training) -> dict[str, str]:
    """Digests of the unit code behind a training, by unit."""
    code = {"numerics": str(NUMERICS), "method": code_digest("method", training.method.name)}
    code["dataset"] = code_digest("dataset", training.data.dataset.name)
    if training.backbone.name != "none":
        code["backbone"] = code_digest("backbone", training.backbone.name)
    if training.init is not None:
        code["init"] = training_id(training.init)
    if training.data.whitening:
        code["whitening"] = closure_digest(WHITENING)
    return code


def cell_code(cell: Cell) -> dict[str, str]:
    """Digests of the unit code behind an evaluation, its training apart."""
    return {
        "numerics": str(NUMERICS),
        "protocol": code_digest("protocol", cell.protocol.name),
        "target": code_digest("dataset", cell.aim.dataset.name),
    }


def features_code(cell: Cell) -> str:
    """Digest of the code that stored features of a cell's images come from, whichever protocol reads them."""
    return digest([str(NUMERICS), closure_digest(FEATURES), code_digest("dataset", cell.aim.dataset.name)])


@functools.lru_cache(maxsize=10_000)
def _code_mark(units: tuple[tuple[str, str], ...], rest: str) -> str:
    parts = [f"{kind} {name} {code_digest(kind, name)}" for kind, name in units]
    return digest([str(NUMERICS), *parts, rest], 8)


@functools.lru_cache(maxsize=100_000)
def training_stem(training: Training) -> str:
    """A training's name without the code digest: the same for all versions of the code."""
    data = training.data
    parts = [training.method.name, training.backbone.name, data.dataset.name]
    if data.labels not in (0, "all"):
        parts.append(f"{data.labels}labels")
    readable = "-".join(slug(str(p)) for p in parts)
    return f"{readable}-s{training.seed}-{training_settings(training)}"


@functools.lru_cache(maxsize=100_000)
def training_id(training: Training) -> str:
    """The name of a training's folder."""
    used = [("method", training.method.name), ("dataset", training.data.dataset.name)]
    if training.backbone.name != "none":
        used.append(("backbone", training.backbone.name))
    rest = training_id(training.init) if training.init else ""
    rest += closure_digest(WHITENING) if training.data.whitening else ""
    return f"{training_stem(training)}-{_code_mark(tuple(used), rest)}"


def cell_stem(cell: Cell) -> str:
    """A cell's own name without its training and the code digest."""
    return _cell_stem(cell.protocol, cell.aim, cell.variant, cell.snapshots)


@functools.lru_cache(maxsize=100_000)
def _cell_stem(protocol: Unit, aim: Aim, variant: str, snapshots: str) -> str:
    settings = digest([protocol, aim, variant, snapshots])
    named = f"-{slug(variant)}" if variant else ""
    return f"{slug(protocol.name)}-{slug(aim.dataset.name)}{named}-{settings}"


def cell_name(cell: Cell) -> str:
    """The name of a cell's outcome within its training's folder."""
    used = (("protocol", cell.protocol.name), ("dataset", cell.aim.dataset.name))
    return f"{cell_stem(cell)}-{_code_mark(used, '')}"


def cell_id(cell: Cell) -> str:
    """The full name of a cell: its training's and its own."""
    return f"{training_id(cell.training)}/{cell_name(cell)}"


def unit_about(kind: str, name: str) -> str:
    """One line of what a unit is."""
    return find(kind, name, "the record").about


# ---- files -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """The files of one training."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def cell(self, name: str) -> Path:
        """The outcome of a cell that is done."""
        return self.path / "cells" / f"{name}.json"

    def failed(self, name: str) -> Path:
        """The outcome of a cell that was tried and is not done: it is tried again."""
        return self.path / "cells" / f"{name}.failed.json"


def as_given(path: Path) -> Path:
    """An absolute path through the links that a person took: their targets may be called otherwise on other machines."""
    here = Path(os.environ.get("PWD") or ".")
    with contextlib.suppress(OSError):
        if here.is_absolute() and here.samefile("."):
            return here / path
    return path.absolute()


def folder(runs: Path, training: Training) -> Folder:
    """The folder of a training below ``runs``."""
    return Folder(runs / training_id(training))


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well: readers see all of it or nothing."""
    # A name of its own: threads share a process number, and machines on one disk may.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BenchError(f"{path}: cannot be written: {reason}; {_advice(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _advice(error: OSError) -> str:
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "you may not write there: ask its owner or choose another folder"
    if error.errno in {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}:
        return "its disk does not answer as it should: try again later or choose another folder"
    return "free some space or choose another folder"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON table; ``None`` where there is no such file.

    :raises BenchError: the file is damaged; deleting it makes it again.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: cannot be read ({error}); delete it and it is made again") from error
    if not isinstance(value, dict):
        raise BenchError(
            f"{path}: damaged: a {type(value).__name__}, not a table; delete it and it is made again"
        )
    return value


def file_digest(path: Path) -> str:
    """SHA-256 hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a folder: who comes second waits. The system lets go when the holder dies.

    :param waiting: called about twice a second while another process holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("w")
    except OSError as error:
        raise BenchError(
            f"{path}: cannot be written: {error.strerror}; choose another folder with --runs"
        ) from error
    with file:
        while not _taken(file, wait=waiting is None):
            assert waiting is not None
            waiting()
            time.sleep(0.4)
        yield


def _taken(file: IO[str], *, wait: bool) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:  # Lustre without -o flock, NFS without its lock service
        raise BenchError(
            f"{file.name}: this disk has no file locks ({error.strerror}), and two processes could make the same "
            "model; choose another disk with --runs, or mount it with locks (flock)"
        ) from error
    return True


@contextlib.contextmanager
def free(path: Path) -> Iterator[bool]:
    """Hold a folder if nobody else does; tells whether that worked."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as file:
        yield _taken(file, wait=False)


def why_not(runs: Path) -> Path:
    """A table of reasons by cell: what is not with SLURM although it is not done."""
    return runs / ".slurm" / "refused.json"


def asked_for(runs: Path) -> Path:
    """Which parts of which suites were ever submitted: a list by suite."""
    return runs / ".slurm" / "suites.json"


# ---- outcomes ----------------------------------------------------------------------------------


def tried(files: Folder) -> set[str]:
    """The names of the files of a training's cells, done or not."""
    try:
        with os.scandir(files.path / "cells") as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def outcomes(runs: Path, training: Training) -> set[str]:
    """The names of a training's cells that are done."""
    there = tried(folder(runs, training))
    return {name[:-5] for name in there if name.endswith(".json") and not name.endswith(".failed.json")}


class Done:
    """Knows which cells are done: looks into each training's folder once."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.seen: dict[Training, set[str]] = {}

    def __call__(self, cell: Cell) -> bool:
        if cell.training not in self.seen:
            whole = folder(self.runs, cell.training).status.exists()  # a lost record is made again
            self.seen[cell.training] = outcomes(self.runs, cell.training) if whole else set()
        return cell_name(cell) in self.seen[cell.training]


def siblings(runs: Path, training: Training) -> list[Path]:
    """Folders of the same training made by another version of the code, newest first."""
    own = training_id(training)
    found = [p for p in runs.glob(f"{training_stem(training)}-????????") if p.name != own and p.is_dir()]
    return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)


def merge_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Rewrite a JSON table with some keys changed."""
    write_json(path, {**(read_json(path) or {}), **changes})
