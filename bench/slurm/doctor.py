"""What a run needs and what of it is missing: SLURM, its nodes, the shared folder, GPUs, libraries, data.

``python -m bench.slurm.doctor FOLDER`` is what a tiny job runs on a node: it tells what it sees as JSON.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import artifacts, registry
from bench.records import BenchError
from bench.slurm import cluster, sbatch, site
from bench.slurm.resources import Resources
from bench.slurm.site import Finding

_COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "srun", "scancel")
_START_SECONDS = 45  # so long the tiny job may wait for a place
_JOB_SECONDS = 120.0  # so long it may take in all; torch alone can take half a minute from a slow disk
_SLOW_MS = 50.0  # a small file's way to the disk and back, from where on checkpoints and rows are felt
_LATE_SECONDS = 2.0  # so much later a node's file appears here, from where on progress lags
_APART_SECONDS = 5.0  # between two clocks, from where on a heartbeat's age means little
_NO_TORCH = (
    "jobs need it, planning only to read units that changed: run bench list once where it is, with the same "
    "BENCH_CACHE, or install its CPU build here"
)
_PIECE = 4096  # bytes of the small file
_TRIES = 5

# torch and faiss are asked in a process of their own: planning stays free of them, a broken one costs its line.
_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
names = [torch.cuda.get_device_name(i) for i in range(count)]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "names": names}))
"""
_FAISS = """
import json, faiss
gpu = hasattr(faiss, "StandardGpuResources")
print(json.dumps({"version": faiss.__version__, "gpu": gpu, "gpus": faiss.get_num_gpus()}))
"""


def examine(runs: Path, data: Path, asked: Resources, *, probe: bool = True) -> list[Finding]:
    """Look at this machine, at SLURM and at its nodes.

    :param asked: what jobs will ask for, as ``bench submit`` does.
    :param probe: run one tiny job, two where nodes have GPUs; without it the nodes are not looked at.
    """
    parts = {
        "SLURM": lambda: _slurm(runs, asked, probe),
        "libraries": _libraries,
        "data": lambda: _data(data),
    }
    return [one for name, part in parts.items() for one in _whole(name, part)]


def _whole(name: str, part: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Findings as far as they go: what nobody thought of is one, too."""
    try:
        yield from part()
    except Exception as error:  # noqa: BLE001 - an examination that stumbles over what it looks for helps nobody
        first = (str(error).splitlines() or [""])[0]
        yield Finding(name, False, f"could not be looked at: {type(error).__name__}: {first}")


def lines(findings: Iterable[Finding]) -> list[str]:
    """Plain text, a line a finding."""
    marks = {True: "ok ", False: "NO ", None: "-  "}
    found = list(findings)
    width = max((len(one.name) for one in found), default=0)
    return [f"{marks[one.ok]} {one.name:{width}}  {one.text}".rstrip() for one in found]


# ---- SLURM -------------------------------------------------------------------------------------


def _slurm(runs: Path, asked: Resources, probe: bool) -> Iterator[Finding]:
    missing = [name for name in _COMMANDS if not shutil.which(name)]
    if "sbatch" in missing:
        yield Finding(
            "SLURM", None, "not on this machine (no sbatch): bench submit needs it, bench run does not"
        )
        return
    yield _commands(missing)
    try:
        limits, nodes = cluster.limits(), _gres()
    except BenchError as error:
        yield Finding("controller", False, str(error))
        return
    yield _controller(limits)
    yield _accounting(limits, missing)
    yield from _partitions(limits)
    yield from site.findings(limits, asked)
    yield from _machines(nodes)
    if probe:
        yield Finding("jobs ask for", None, sbatch.asked(asked))
        yield from _nodes(runs, asked, gpus=any("gpu" in gres for gres, _ in nodes.values()))
    else:
        yield Finding("Python on nodes", None, "not looked at: no job was run")


def _commands(missing: Sequence[str]) -> Finding:
    with contextlib.suppress(BenchError):
        version = cluster.run("sbatch", "--version").strip()
        text = f"{version}; not here: {', '.join(missing)}" if missing else version
        return Finding("commands", not missing, text)
    return Finding("commands", False, "sbatch is here but cannot be run: is SLURM_CONF right?")


def _controller(limits: cluster.Limits) -> Finding:
    forgets = f", which forgets a job {limits.min_job_age_s} s after its end" if limits.min_job_age_s else ""
    return Finding("controller", True, f"cluster {limits.cluster!r} answers{forgets}")


def _accounting(limits: cluster.Limits, missing: Sequence[str]) -> Finding:
    if limits.accounting and "sacct" not in missing:
        return Finding("accounting", True, "on: how a job ended can be told at any time")
    why = "sacct is not here" if limits.accounting else "off"
    kept = f"for {limits.min_job_age_s} s after its end, " if limits.min_job_age_s else "for a while, "
    text = f"{why}: how a job ended is known {kept}later only that it left no result"
    return Finding("accounting", None, text)


def _partitions(limits: cluster.Limits) -> Iterator[Finding]:
    for one in limits.partitions:
        default = f"{_duration(one.default_time_s)} by default, " if one.default_time_s else ""
        most = f"at most {_duration(one.max_time_s)}" if one.max_time_s else "no time limit"
        size = f"{one.nodes} nodes, {one.cpus} cpus"
        state = "" if one.up else "; it takes no jobs now"
        mark = " (default)" if one.default else ""
        yield Finding(f"partition {one.name}", one.up, f"{size}; {default}{most}{mark}{state}")


def _duration(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


def _gres() -> dict[str, tuple[str, str]]:
    """The generic resources and the state of each node, ``("gpu:2", "idle")``."""
    printed = cluster.run("sinfo", "--noheader", "--Node", "--format=%N|%G|%t")
    parts = [line.split("|") for line in printed.splitlines() if line.count("|") == 2]
    return {name: (re.sub(r"\([^)]*\)", "", gres), state) for name, gres, state in parts}


def _machines(nodes: dict[str, tuple[str, str]]) -> Iterator[Finding]:
    """How many nodes are up, and which GPUs they declare."""
    up = [name for name, (_, state) in nodes.items() if not re.match("(down|drain|drng|fail|unk)", state)]
    yield Finding("nodes", bool(up), f"{len(up)} of {len(nodes)} are up")
    having = [gres for gres, _ in nodes.values() if "gpu" in gres]
    kinds = ", ".join(sorted(set(having)))
    told = f"{len(having)} of {len(nodes)} nodes declare {kinds}" if having else "no node declares any"
    yield Finding("GPUs on nodes", None, told)


# ---- a tiny job --------------------------------------------------------------------------------


def _nodes(runs: Path, asked: Resources, *, gpus: bool) -> Iterator[Finding]:
    """Run something small on a node: is it the same disk, the same Python, does it see the GPU?"""
    try:
        with _meeting_point(runs) as place:
            began, clock = time.monotonic(), time.time()
            with artifacts.lock(place):
                said = json.loads(_srun(place, asked, ["-m", "bench.slurm.doctor", str(place)]))
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
        return cluster.run(*command, timeout=_JOB_SECONDS, env=sbatch.environment())
    except cluster.SlurmError as error:
        with contextlib.suppress(BenchError):
            cluster.cancel(cluster.find(name))
        raise BenchError(f"no job could be run: {_told(error)}") from error


def _told(error: cluster.SlurmError) -> str:
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
        said = json.loads(_srun(place, one, ["-c", _TORCH]))
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


# ---- libraries and data ------------------------------------------------------------------------


def _libraries() -> list[Finding]:
    return [_torch_here(), _faiss_here()]


def _ask_python(code: str) -> Any:
    """The JSON that a line of ours prints in a fresh Python."""
    try:
        printed = cluster.run(sys.executable, "-c", code, timeout=_JOB_SECONDS)
        return json.loads(printed)
    except cluster.SlurmError as error:
        raise BenchError(_told(error)) from error


def _torch_here() -> Finding:
    cards = _cards()
    try:
        said = _ask_python(_TORCH)
    except (BenchError, ValueError) as error:
        if "No module named" in str(error):
            return Finding("torch here", None, f"{error}: {_NO_TORCH}")
        return Finding("GPUs here", False, f"torch cannot be asked: {error}")
    if names := said["names"]:
        return Finding("GPUs here", True, f"torch {said['version']} sees {', '.join(names)}")
    if cards:
        why = f"{', '.join(cards)}, but torch {said['version']} (CUDA {said['cuda']}) sees none: its driver is too old?"
        return Finding("GPUs here", False, why)
    return Finding("GPUs here", None, f"none; torch {said['version']} computes on the CPU")


def _cards() -> list[str]:
    """The names of the GPUs that the driver knows."""
    try:
        printed = cluster.run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    except BenchError:
        return []
    return [line.strip() for line in printed.splitlines() if line.strip()]


def _faiss_here() -> Finding:
    owners = sorted(set(metadata.packages_distributions().get("faiss", [])))
    try:
        said = _ask_python(_FAISS)
    except (BenchError, ValueError) as error:
        return Finding("faiss", False, str(error))
    kind = f"GPU build, sees {said['gpus']} GPUs" if said["gpu"] else "CPU build"
    text = f"{said['version']}, {kind} ({', '.join(owners) or 'not installed by pip'})"
    if len(owners) > 1:  # they share one folder: whichever was installed last is in force
        return Finding("faiss", False, f"{text}: keep one of them, uninstall all and install that one")
    return Finding("faiss", True, text)


def _data(data: Path) -> Iterator[Finding]:
    try:
        names = sorted(registry.units("dataset"))
    except BenchError as error:
        yield Finding("data", False, str(error))
        return
    for name in names:
        yield _dataset(name, data)


def _dataset(name: str, data: Path) -> Finding:
    """As ``bench data check`` sees it; one that is not there at all is no fault."""
    try:
        info = registry.find("dataset", name, "bench doctor")
        problems = registry.load("dataset", info.resolve({}, "bench doctor")).check(data)
    except BenchError as error:
        problems = [str(error)]
    except ImportError as error:
        return Finding(f"data {name}", None, f"not looked at here: {error}")
    if problems and all(": missing" in one for one in problems):
        return Finding(f"data {name}", None, f"not in {data}")
    return Finding(f"data {name}", not problems, "; ".join(problems) or "whole")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(on_node(Path(sys.argv[1]))) + "\n")
