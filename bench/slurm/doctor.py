"""What a run needs and what of it is missing: SLURM, its nodes, the shared folder, GPUs, libraries, data."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import registry
from bench.records import BenchError
from bench.slurm import cluster, probe, sbatch, site
from bench.slurm.resources import Resources
from bench.slurm.site import Finding

_COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "srun", "scancel")
_NO_TORCH = (
    "jobs need it, planning only to read units that changed: run bench list once where it is, with the same "
    "BENCH_CACHE, or install its CPU build here"
)
_FAISS = """
import json, faiss
gpu = hasattr(faiss, "StandardGpuResources")
print(json.dumps({"version": faiss.__version__, "gpu": gpu, "gpus": faiss.get_num_gpus()}))
"""


def examine(runs: Path, data: Path, asked: Resources, *, look: bool = True) -> list[Finding]:
    """Look at this machine, at SLURM and at its nodes.

    :param asked: what jobs will ask for, as ``bench submit`` does.
    :param look: run one tiny job, two where nodes have GPUs; without it the nodes are not looked at.
    """
    parts = {
        "SLURM": lambda: _slurm(runs, asked, look),
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


def _slurm(runs: Path, asked: Resources, look: bool) -> Iterator[Finding]:
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
    if look:
        yield Finding("jobs ask for", None, sbatch.asked(asked))
        yield from probe.nodes(runs, asked, gpus=any("gpu" in gres for gres, _ in nodes.values()))
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


# ---- libraries and data ------------------------------------------------------------------------


def _libraries() -> list[Finding]:
    return [_torch_here(), _faiss_here()]


def _ask_python(code: str) -> Any:
    """The JSON that a line of ours prints in a fresh Python."""
    try:
        printed = cluster.run(sys.executable, "-c", code, timeout=probe.JOB_SECONDS)
        return json.loads(printed)
    except cluster.SlurmError as error:
        raise BenchError(probe.told(error)) from error


def _torch_here() -> Finding:
    cards = _cards()
    try:
        said = _ask_python(probe.TORCH)
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
