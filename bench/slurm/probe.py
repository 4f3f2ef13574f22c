"""A tiny job, asked for as ``bench submit`` asks: what a node sees of the folder, the clocks, the locks and its GPU.

``python -m bench.slurm.probe FOLDER`` is what it runs: it tells what it sees as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.records import BenchError
from bench.slurm import cluster, sbatch
from bench.slurm.resources import Resources
from bench.slurm.site import Finding

_START_SECONDS = 45  # so long the tiny job may wait for a place
JOB_SECONDS = 120.0  # so long it may take in all; torch alone can take half a minute from a slow disk
_SLOW_MS = 50.0  # a small file's way to the disk and back, from where on checkpoints and rows are felt
_LATE_SECONDS = 2.0  # so much later a node's file appears here, from where on progress lags
_APART_SECONDS = 5.0  # between two clocks, from where on a heartbeat's age means little
_PIECE = 4096  # bytes of the small file
_TRIES = 5

# Asked in a process of its own: planning stays free of torch, a broken one costs its line.
TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
names = [torch.cuda.get_device_name(i) for i in range(count)]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "names": names}))
"""


def nodes(runs: Path, asked: Resources, *, gpus: bool) -> Iterator[Finding]:
    """Run something small on a node: is it the same disk, the same Python, does it see the GPU?"""
    try:
        with _meeting_point(runs) as place:
            began, clock = time.monotonic(), time.time()
            with artifacts.lock(place):
                said = json.loads(_srun(place, asked, ["-P", "-m", "bench.slurm.probe", str(place)]))
            waited = time.monotonic() - began
            yield Finding(
                "Python on nodes",
                True,
                f"{said['python']} with bench on {said['node']}, {waited:.1f} s from here",
            )
            yield from _shared(runs, place, said)
            yield _clocks(said, clock, clock + waited)
            yield _locks(said)
            if asked.devices or gpus:
                yield _gpu_on_node(place, asked)
    except BenchError as error:
        yield Finding("Python on nodes", False, str(error))
    except ValueError:
        yield Finding("Python on nodes", False, "the tiny job printed something else than it should")
    except OSError as error:
        yield Finding("runs folder", False, f"{runs}: cannot be written: {error.strerror or error}")


@contextlib.contextmanager
def _meeting_point(runs: Path) -> Iterator[Path]:
    """A folder of our own below ``runs`` with a word in it; what was made for it goes again."""
    made = [p for p in (runs, *runs.parents) if not p.exists()]
    place = artifacts.as_given(runs) / f".doctor-{secrets.token_hex(6)}"
    place.mkdir(parents=True)
    try:
        (place / "here").write_text(place.name, "utf-8")
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _srun(place: Path, asked: Resources, arguments: Sequence[str]) -> str:
    """What Python prints on a node, asked for as submit does; a job that found no place, or hangs, is taken back."""
    name = f"bench{place.name.replace('.', '-')}"
    brief = dataclasses.replace(asked, time=min(5, asked.time or 5), nodes=1)
    only_sbatch = (
        "--requeue",
        "--open-mode",
        "--kill-on-invalid-dep",
        "--export",
        "--ntasks-per-node",
        "--signal",
    )
    asks = [word for word in sbatch.options(brief, name, "") if not word.startswith(only_sbatch)]
    asks += [
        "--ntasks=1",
        f"--immediate={_START_SECONDS}",
        "--quiet",
        f"--chdir={artifacts.as_given(Path())}",
    ]
    python = shlex.split(asked.python) or [sys.executable]
    lines_ = "\n".join([*asked.setup, f"exec {shlex.join([*python, *arguments])}"])
    command = ["srun", *asks, *asked.srun, "bash", "-c", lines_]
    try:
        return cluster.run(*command, timeout=JOB_SECONDS, env=sbatch.environment())
    except cluster.SlurmError as error:
        with contextlib.suppress(BenchError):
            cluster.cancel(cluster.find(name))
        raise BenchError(f"no job could be run: {told(error)}") from error


def told(error: cluster.SlurmError) -> str:
    """The line that says most: that of Python or of the step, else SLURM's first."""
    telling = re.compile(r"\w*(Error|Exception)\b|.*(No module named|execve\(\)|: No such file)")
    said = [line.strip() for line in error.said.splitlines() if telling.match(line)]
    return said[-1] if said else str(error)


def _shared(runs: Path, place: Path, said: dict[str, Any]) -> Iterator[Finding]:
    if said["word"] != place.name:
        why = f"{runs.absolute()} on {said['node']} is not the folder that is here: choose --runs on a shared disk"
        yield Finding("runs folder", False, why)
        return
    late = _seconds_until(place / "there")
    if late is None:
        yield Finding(
            "runs folder",
            False,
            f"what {said['node']} writes to {artifacts.as_given(runs)} does not appear here",
        )
        return
    milliseconds = statistics.median(said["milliseconds"])
    slow = milliseconds > _SLOW_MS or late > _LATE_SECONDS
    text = f"shared with {said['node']}; {milliseconds:.1f} ms to write and read a small file, seen here {late:.1f} s later"
    yield Finding("runs folder", None if slow else True, text + ("; that is slow" if slow else ""))


def _seconds_until(path: Path, patience: float = 15.0) -> float | None:
    """How long until a file is seen here; network disks keep old listings for seconds."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < patience:
        with contextlib.suppress(OSError):
            list(path.parent.iterdir())  # a new listing, not what is remembered
            if path.read_text("utf-8"):
                return waited
        time.sleep(0.05)
    return None


def _clocks(said: dict[str, Any], before: float, after: float) -> Finding:
    """A node's own time must lie within that of our asking."""
    apart = max(before - said["time"], said["time"] - after, 0.0)
    if apart > _APART_SECONDS:
        why = f"that of {said['node']} is {apart:.0f} s from this one's: heartbeats look too old or too young, a job that lives may be called dead; ask for synchronized clocks (NTP)"
        return Finding("clocks", False, why)
    return Finding("clocks", True, f"that of {said['node']} is this one's")


def _locks(said: dict[str, Any]) -> Finding:
    """We held the folder while the node asked for it."""
    if said["locked"] == "held":
        return Finding("file locks", True, f"a lock taken here holds on {said['node']}")
    how = "do not reach the nodes" if said["locked"] == "free" else f"are not there ({said['locked']})"
    why = f"on this disk locks {how}: two jobs may make the same model; choose --runs on another disk, or mount it with locks (flock)"
    return Finding("file locks", False, why)


def _gpu_on_node(place: Path, asked: Resources) -> Finding:
    one = asked if asked.devices else dataclasses.replace(asked, gpus=1)
    try:
        said = json.loads(_srun(place, one, ["-c", TORCH]))
    except (BenchError, ValueError) as error:
        return Finding("torch on a GPU node", False, str(error))
    seen = ", ".join(said["names"]) or f"no GPU there (it is built for CUDA {said['cuda']})"
    return Finding("torch on a GPU node", bool(said["names"]), f"torch {said['version']} sees {seen}")


def on_node(folder: Path) -> dict[str, Any]:
    """What a node sees of the folder: the word that lies in it, and the time a small file takes in milliseconds."""
    try:
        word = (folder / "here").read_text("utf-8")
    except OSError:
        word = ""
    spent = [_write_and_read(folder / "there") for _ in range(_TRIES)] if word else []
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    facts = {"node": node, "python": sys.version.split()[0], "time": time.time(), "locked": _locked(folder)}
    return {"word": word, "milliseconds": spent, **facts}


def _locked(folder: Path) -> str:
    """``held`` by somebody, ``free``, or why it cannot be told."""
    try:
        with artifacts.free(folder) as free:
            return "free" if free else "held"
    except BenchError as error:
        return getattr(error.__cause__, "strerror", None) or str(error)
    except OSError as error:
        return error.strerror or str(error)


def _write_and_read(path: Path) -> float:
    began = time.perf_counter()
    with path.open("wb") as file:
        file.write(b"x" * _PIECE)
        file.flush()
        os.fsync(file.fileno())
    path.read_bytes()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    sys.stdout.write(json.dumps(on_node(Path(sys.argv[1]))) + "\n")
