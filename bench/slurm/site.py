"""What the settings of a site do to a suite, for what its jobs ask for, and what to write in [slurm]."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.records import BenchError
from bench.slurm import cluster
from bench.slurm.cluster import Limits, Partition
from bench.slurm.resources import Resources

_PREEMPTED = {
    "REQUEUE": "a job that makes room saves, if it is told in time, and runs again by itself",
    "CANCEL": "a job that makes room is over: bench submit again (--wait does it) goes on where it had saved",
    "SUSPEND": "a job that makes room sleeps and goes on; that time counts nowhere, bench status calls it suspended",
    "GANG": "jobs take turns on a node; the time in which one sleeps counts nowhere",
}


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``ok`` is ``None`` where it is neither good nor bad, or was not looked at."""

    name: str
    ok: bool | None
    text: str


def findings(limits: Limits, asked: Resources) -> Iterator[Finding]:
    """What a site allows, as far as it can be told without a job."""
    yield _arrays(limits)
    yield _requeue(limits)
    partitions = _asked_for(limits, asked)
    if isinstance(partitions, Finding):
        yield partitions
        return
    yield _preemption(limits, partitions)
    yield _time(partitions, asked)
    yield _memory(limits, asked)
    yield from _accounts(limits, partitions, asked)


def _arrays(limits: Limits) -> Finding:
    if limits.max_array < 2:
        return Finding(
            "arrays", None, "none here (MaxArraySize): jobs are sent one by one, which takes longer"
        )
    jobs = f"; {limits.max_jobs:,} jobs at a time, all users together" if limits.max_jobs else ""
    return Finding("arrays", True, f"up to {limits.max_array:,} tasks each, larger ones are split{jobs}")


def _requeue(limits: Limits) -> Finding:
    if limits.requeue:
        return Finding("requeue", True, "a job at its time limit saves and runs again by itself")
    text = "JobRequeue=0: jobs ask for it themselves; where that is refused, bench submit (--wait) goes on"
    return Finding("requeue", None, text)


def _asked_for(limits: Limits, asked: Resources) -> list[Partition] | Finding:
    names = (
        asked.partition.split(",") if asked.partition else [p.name for p in limits.partitions if p.default]
    )
    known = {one.name: one for one in limits.partitions}
    if missing := [name for name in names if name not in known]:
        text = f"there is no {missing[0]!r}, every sbatch will be refused: write partition = one of {', '.join(known)}"
        return Finding("partition", False, text)
    if not names:
        text = (
            f"none is the default, every sbatch will be refused: write partition = one of {', '.join(known)}"
        )
        return Finding("partition", False, text)
    return [known[name] for name in names]


def _preemption(limits: Limits, partitions: Sequence[Partition]) -> Finding:
    words = {word for one in partitions for word in (one.preempt or limits.preempt).split(",")}
    told = [text for word, text in _PREEMPTED.items() if word in words and limits.preempt != "OFF"]
    return Finding(
        "preemption", True if not told else None, "; ".join(told) or "off: a job that runs is left alone"
    )


def _time(partitions: Sequence[Partition], asked: Resources) -> Finding:
    most = max((one.max_time_s for one in partitions), default=0)
    if any(one.max_time_s == 0 for one in partitions):
        most = 0
    if most and (not asked.time or asked.time * 60 > most):
        text = f"jobs ask for {asked.time or 'unlimited'} minutes and never start: write time = {most // 60}"
        return Finding("time", False, text)
    return Finding("time", True, f"jobs ask for {asked.time or 'unlimited'} minutes")


def _memory(limits: Limits, asked: Resources) -> Finding:
    most = limits.largest(asked.partition)
    if most and asked.memory > most:
        text = f"jobs ask for {asked.memory} MB and are refused: no node has it, write mem = {most} or less"
        return Finding("memory", False, text)
    grows = f", after running out of it up to the {most} MB of the largest node" if most else ""
    return Finding("memory", True, f"jobs ask for {asked.memory or 'an unknown number of'} MB{grows}")


def _accounts(limits: Limits, partitions: Sequence[Partition], asked: Resources) -> Iterator[Finding]:
    """What the user's associations admit."""
    admitted = {name for one in partitions for name in one.accounts.split(",")}
    if asked.account and not {"ALL", asked.account} & admitted:
        text = f"{asked.partition or 'the default partition'} does not admit {asked.account!r}: "
        others = [p.name for p in limits.partitions if {"ALL", asked.account} & {*p.accounts.split(",")}]
        text += f"write partition = {' or '.join(map(repr, others)) or 'another one'}, or account = one of {', '.join(sorted(admitted))}"
        yield Finding("account", False, text)
    if limits.accounting:
        yield from _associations(asked, limits.enforced)


def _associations(asked: Resources, enforced: str) -> Iterator[Finding]:
    try:
        shape = "format=Account,Partition,MaxSubmit,MaxJobs,GrpSubmit,MaxWall,DefaultQOS"
        user = pwd.getpwuid(os.getuid()).pw_name
        printed = cluster.run("sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}", shape)
    except (BenchError, KeyError) as error:
        yield Finding("associations", None, f"not looked at: {error}")
        return
    lines = [([*line.split("|"), *[""] * 7])[:7] for line in printed.splitlines() if line]
    names = list(dict.fromkeys(line[0] for line in lines))
    if asked.account and names and asked.account not in names and "associations" in enforced:
        text = f"you are not in {asked.account!r}, every sbatch will be refused: write account = one of {', '.join(names)}"
        yield Finding("associations", False, text)
        return
    for account, partition, submit, jobs, group, wall, _ in lines:
        if asked.account in {"", account} and (submit or jobs or group or wall):
            where = f"{account}{partition and f' on {partition}'}"
            yield Finding(f"account {where}", None, _admits(submit, jobs, group, wall))


def _admits(submit: str, jobs: str, group: str, wall: str) -> str:
    least = min((int(n) for n in (submit, group) if n.isdecimal()), default=0)
    parts = (
        [f"{least} jobs at a time: larger arrays are sent in parts, the rest as places come free (--wait)"]
        if least
        else []
    )
    parts += [f"{jobs} of them run at once"] if jobs else []
    parts += [f"at most {wall} each: write no longer time"] if wall else []
    return "; ".join(parts)
