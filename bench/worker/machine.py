"""The machine at hand: its device, what holds for a whole process on it, its name, versions and peak memory."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.records import BenchError, Training


def device() -> torch.device:
    """``BENCH_DEVICE``, else the GPU where there is one."""
    name = os.environ.get("BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise BenchError(f'BENCH_DEVICE: {name!r} is no device; write "cpu", "cuda" or "cuda:1"') from error
    if found.type not in {"cpu", "cuda"}:
        raise BenchError(f'BENCH_DEVICE: {name!r} is not supported; write "cpu", "cuda" or "cuda:1"')
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise BenchError(
            f'BENCH_DEVICE: {name!r} is not there ({count} GPUs are); write "cpu" or another one'
        )
    local = os.environ.get("LOCAL_RANK", "")
    if found.type == "cuda" and found.index is None and local.isdigit():
        return torch.device("cuda", int(local) % torch.cuda.device_count())  # srun may show each task its own
    return found


def settle(training: Training) -> None:
    """What holds for a whole process."""
    torch.set_num_threads(training.threads)
    if torch.are_deterministic_algorithms_enabled() is False:
        torch.use_deterministic_algorithms(True, warn_only=True)


@functools.cache
def facts() -> dict[str, Any]:
    """What every record says of where it was made: device, versions, commit."""
    where = device()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"cpu ({platform.machine()})"
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    return {"device": name, "versions": versions, "commit": _commit()}


def _commit() -> str:
    """The commit of a checkout, with "+dirty" where files differ; empty for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run(  # noqa: S603 - our own words
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(  # noqa: S603 - our own words
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")


def reset_peak() -> None:
    """Peak memory counts from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # else the peak is the process's, not the training's
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> int:
    """Peak memory in MiB: the GPU's, or without one the process's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() / 2**20)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
