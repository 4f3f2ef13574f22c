"""SLURM's commands: what the cluster allows, which jobs have a name, and an end to jobs.

Every command is a list of arguments and has a time limit; whoever does not answer in time is not
believed to have said anything: a silent controller never makes a job look dead.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.records import BenchError

TIMEOUT = 20.0  # seconds that a command may take; a busy controller needs several
_CHUNK = 200  # ids on one command line
_LOOKBACK = "now-14days"  # how far back sacct looks for a name

_T = TypeVar("_T")


class SlurmError(BenchError):
    """A command of SLURM that is not here, failed or did not answer; ``said`` is all it wrote to stderr."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


def run(*command: str, timeout: float = TIMEOUT, text: str = "", env: Mapping[str, str] | None = None) -> str:
    """What a command prints. Arguments are passed as they are, no shell sees them.

    :param text: its standard input; ``env``: in place of ours.
    :raises SlurmError: a BenchError, in one line, where the command is missing, fails or takes over ``timeout`` s.
    """
    name = command[0]
    try:
        done = subprocess.run(  # noqa: S603 - no shell: what a name holds stays in its argument
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env=_environment() if env is None else env,
        )
    except FileNotFoundError:
        raise SlurmError(f"{name} is not on this machine's PATH: there is no SLURM here") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{name}: SLURM did not answer within {timeout:g} s; try again later") from None
    except (OSError, ValueError) as error:
        raise SlurmError(f"{name}: cannot be run: {error}") from error
    if done.returncode:
        line = _first_line(done.stderr, done.returncode)
        raise SlurmError(f"{name}: {line.removeprefix(f'{name}: ')}", done.stderr)
    return done.stdout


def _environment() -> dict[str, str]:
    """Ours, without the settings of users that would filter or reshape what the commands print."""
    shaping = ("SQUEUE_", "SACCT_", "SCONTROL_", "SINFO_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(shaping)}
    # 0 is no limit: by default a long range of array indices is cut off after 64 characters.
    return {**kept, "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard"}


def _first_line(stderr: str, code: int) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[0] if lines else f"failed with exit code {code}"


def no_such_job(error: SlurmError) -> bool:
    """A command was refused for ids that the controller has forgotten or never had."""
    return "invalid job id" in error.said.lower()


def chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """``values`` in parts that fit on one command line."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


@dataclass(frozen=True)
class Partition:
    """A queue: its time limits in seconds, 0 where there is none."""

    name: str
    default: bool = False
    default_time_s: int = 0
    max_time_s: int = 0
    nodes: int = 0
    cpus: int = 0
    up: bool = True
    max_mem: int = 0  # MB that a job may have on a node, by the partition's own limit; 0: no such limit
    accounts: str = "ALL"  # that it admits
    preempt: str = "OFF"  # what becomes of a job that makes room


@dataclass(frozen=True)
class Node:
    """A machine: in which partitions, with what, in which state."""

    name: str
    partitions: frozenset[str]
    mem: int
    state: str

    @property
    def up(self) -> bool:
        return not re.match("down|drain|drng|fail|unk|boot|maint", self.state) and "*" not in self.state


@dataclass(frozen=True)
class Limits:
    """What the live cluster allows."""

    max_array: int  # tasks of one array; indices run from 0 to max_array - 1; below 2 there are none
    accounting: bool  # does sacct keep records
    max_jobs: int = 0  # jobs that the controller keeps at a time, all users together; 0: unknown
    version: str = ""
    cluster: str = ""
    min_job_age_s: int = 0  # how long the controller remembers a job that ended
    partitions: tuple[Partition, ...] = ()
    nodes: tuple[Node, ...] = ()
    requeue: bool = True  # jobs may run again unless they say otherwise
    preempt: str = "OFF"
    enforced: str = ""  # which limits of accounts count

    def largest(self, partition: str = "") -> int:
        """MB of the largest node that a job of this partition (or one of these) may have; 0: unknown."""
        names = {name for name in partition.split(",") if name}
        names = names or {one.name for one in self.partitions if one.default}
        sizes = [node.mem for node in self.nodes if node.partitions & names]
        own = [one.max_mem for one in self.partitions if one.name in names]
        most = max(own) if own and all(own) else 0
        return min(most, max(sizes, default=0)) if most and sizes else max(sizes, default=0)

    def is_up(self, node: str) -> bool:
        """Whether a node takes jobs now."""
        return any(one.name == node and one.up for one in self.nodes)

    def partition(self, name: str = "") -> Partition | None:
        """The partition of this name, or the default one."""
        return next((p for p in self.partitions if (p.name == name if name else p.default)), None)


def limits() -> Limits:
    """Limits of the cluster, asked now.

    :raises BenchError: in one line, where there is no SLURM or it does not answer.
    """
    config = _settings(run("scontrol", "show", "config"))
    return Limits(
        max_array=_max_array(config),
        accounting=config.get("AccountingStorageType", "") == "accounting_storage/slurmdbd",
        max_jobs=_number(config.get("MaxJobCount", "")),
        version=config.get("SLURM_VERSION", ""),
        cluster=config.get("ClusterName", ""),
        min_job_age_s=_number(config.get("MinJobAge", "")),
        partitions=_partitions(run("scontrol", "--oneliner", "show", "partition")),
        nodes=_nodes(),
        requeue=config.get("JobRequeue", "1") != "0",
        preempt=config.get("PreemptMode", "OFF"),
        enforced=config.get("AccountingStorageEnforce", "none"),
    )


def _nodes() -> tuple[Node, ...]:
    """Nothing where sinfo does not answer: then no limit is known, which is not that there is none."""
    try:
        printed = run("sinfo", "--noheader", "--Node", "--all", "--format=%N|%R|%m|%t")
    except SlurmError:
        return ()
    found: dict[str, Node] = {}
    for name, partition, mem, state in (
        line.split("|") for line in printed.splitlines() if line.count("|") == 3
    ):
        before = found[name].partitions if name in found else frozenset()
        found[name] = Node(name, before | {partition}, _number(mem), state)
    return tuple(found.values())


def _settings(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _max_array(config: Mapping[str, str]) -> int:
    size = _number(config.get("MaxArraySize", ""))
    fewer = re.search(r"\bmax_array_tasks=(\d+)", config.get("SchedulerParameters", ""))
    return min(size, int(fewer[1])) if fewer else size


def _partitions(text: str) -> tuple[Partition, ...]:
    lines = [dict(p.split("=", 1) for p in line.split() if "=" in p) for line in text.splitlines()]
    return tuple(
        Partition(
            name=one["PartitionName"],
            default=one.get("Default") == "YES",
            default_time_s=_seconds(one.get("DefaultTime", "")),
            max_time_s=_seconds(one.get("MaxTime", "")),
            nodes=_number(one.get("TotalNodes", "")),
            cpus=_number(one.get("TotalCPUs", "")),
            up=one.get("State", "UP") == "UP",
            max_mem=_number(one.get("MaxMemPerNode", "")),
            accounts=one.get("AllowAccounts", "ALL"),
            preempt=one.get("PreemptMode", "OFF"),
        )
        for one in lines
        if "PartitionName" in one
    )


def _seconds(text: str) -> int:
    """``[days-]hours:minutes:seconds`` in seconds; 0 for UNLIMITED and NONE."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not found:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def room(enforced: str) -> int | None:
    """Jobs that the user's associations admit now; ``None``: no limit is known. A guess: sbatch decides."""
    if "limits" not in enforced:
        return None
    user = str(os.getuid())
    try:
        shape = ("--noheader", "--parsable2", "show", "assoc", f"user={pwd.getpwuid(os.getuid()).pw_name}")
        limits_ = run("sacctmgr", *shape, "format=MaxSubmit").split()
        there = run("squeue", "--noheader", "--array", f"--user={user}", "--format=%i").split()
    except (SlurmError, KeyError):
        return None
    known = [int(one) for one in limits_ if one.isdecimal()]
    return max(0, max(known) - len(there)) if known else None


def find(name: str) -> list[str]:
    """Ids of our jobs and arrays with this name, oldest first: those of a submitter that died after sbatch.

    :raises BenchError: SLURM does not answer, so that "there is none" cannot be said.
    """
    # A comma would make it a list of names, and a database reads it: other names are compared here.
    only = [f"--name={name}"] if re.fullmatch(r"[A-Za-z0-9_.-]+", name) else []
    mine = f"--user={os.getuid()}"
    printed = run("squeue", "--noheader", "--all", "--states=all", mine, "--format=%F|%j", *only)
    shape = ("--allocations", "--duplicates", "--parsable2", "--noheader", "--format=JobID,JobName")
    try:
        printed += run("sacct", *shape, f"--starttime={_LOOKBACK}", mine, *only)
    except SlurmError as error:
        if "storage is disabled" not in error.said:
            raise
    lines = (line.partition("|") for line in printed.splitlines())
    ids = {job.partition("_")[0] for job, _, called in lines if called == name}
    return sorted(ids, key=_number)


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; those that have ended already are left alone.

    :raises BenchError: SLURM does not answer.
    """
    for some in chunks(list(dict.fromkeys(jobs))):
        try:
            run("scancel", *some, timeout=3 * TIMEOUT)
        except SlurmError as error:
            if not no_such_job(error) and "already completing" not in error.said.lower():
                raise


def commands() -> dict[str, str]:
    """Where SLURM's commands are, ``""`` for those that are not here."""
    return {name: shutil.which(name) or "" for name in ("sbatch", "squeue", "sacct", "scontrol", "srun")}
