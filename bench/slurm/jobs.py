"""What became of jobs, by squeue, sacct and scontrol together: none of them knows all.

The queue wins while it has a job; a final record closes it; what nobody knows is neither alive nor dead.
"""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.slurm import cluster

_SINGLY = 8  # arrays that scontrol is asked for one by one; above that all jobs in one call

# These may come back: they are over only when the queue has them no more.
_MAY_RETURN = frozenset({"NODE_FAIL", "PREEMPTED", "REQUEUED", "BOOT_FAIL"})
_ENDED = _MAY_RETURN | {"COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "DEADLINE", "REVOKED"}
_ALIVE = frozenset({"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING"})
_ALIVE |= {"SIGNALING", "STAGE_OUT", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
# What a job that waits for these will never come to: a person has to ask for something else.
_NEVER = frozenset(
    {"PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "InvalidAccount", "InvalidQOS"}
)
_NEVER |= {
    "AccountNotAllowed",
    "QOSNotAllowed",
    "AssocMaxWallDurationPerJobLimit",
    "DependencyNeverSatisfied",
}
_NEVER |= {"QOSMaxWallDurationPerJobLimit", "AssocMaxCpuPerJobLimit", "QOSMaxCpuPerJobLimit"}
_LAUNCH_FAILED = "launch failed requeued held"  # squeue's words; scontrol's have underscores


@dataclass(frozen=True)
class JobState:
    """What is known of a job or of one task of an array.

    ``UNKNOWN`` is neither alive nor dead: SLURM does not answer, or (``gone``) answers that it has no such job.
    """

    word: str  # SLURM's state, its first word
    reason: str  # why it waits, or what is known of its end; "" where there is nothing to say
    node: str = ""
    exit_code: int | None = None
    signal: int | None = None
    restarts: int = 0
    queued: bool = False  # squeue has it now
    gone: bool = False  # the controller answered and has it no more: it runs no more, its end is not known

    @property
    def alive(self) -> bool:
        """It waits, runs, or will run again."""
        return self.queued or self.word in _ALIVE

    @property
    def dead(self) -> bool:
        """Known to have ended, in whatever way."""
        return not self.alive and self.word in _ENDED

    @property
    def stuck(self) -> bool:
        """A node could not launch it and SLURM holds it since: it never starts again by itself."""
        return self.word == "PENDING" and self.reason.replace("_", " ").lower() == _LAUNCH_FAILED

    @property
    def hopeless(self) -> bool:
        """It waits for what will not come."""
        return self.word == "PENDING" and self.reason in _NEVER

    @property
    def out_of_memory(self) -> bool:
        """SLURM itself says that it ran out of memory."""
        return self.word == "OUT_OF_MEMORY"


@dataclass(frozen=True)
class _Answer:
    """What one command knows of jobs, by id; ``asked`` is False where it did not answer."""

    known: Mapping[str, JobState] = field(default_factory=dict)
    asked: bool = True


def states(jobs: Iterable[str]) -> dict[str, JobState]:
    """What became of jobs (``"123"``, ``"123_7"``): one squeue, one sacct, scontrol for what is still open.

    An array asked for as a whole is as alive as its most alive task.
    """
    wanted = list(dict.fromkeys(jobs))
    if not wanted:
        return {}
    bases = list(dict.fromkeys(job.partition("_")[0] for job in wanted))
    queue = _squeue(bases)  # first: a job that it has not has ended by the time the others are asked
    records = _sacct(bases)
    found = {job: _decided(job, queue, records) for job in wanted}
    unclear = [job for job, state in found.items() if state.word == "UNKNOWN"]
    if unclear and queue.asked:
        held = _scontrol(list(dict.fromkeys(job.partition("_")[0] for job in unclear)))
        found |= {job: _at_last(job, held, records) for job in unclear}
    return found


def _look(answer: _Answer, job: str) -> JobState | None:
    """What an answer says of a job; of an array asked for as a whole, its most alive task."""
    if job in answer.known or "_" in job:
        return answer.known.get(job)
    tasks = [state for key, state in answer.known.items() if key.partition("_")[0] == job]
    return min(tasks, key=_liveliness, default=None)


def _liveliness(state: JobState) -> int:
    """0 runs, 1 waits, 2 cannot tell, 3 ended badly, 4 ended well."""
    if state.alive:
        return 0 if state.word == "RUNNING" else 1
    return (3 + (state.word == "COMPLETED")) if state.dead else 2


def _decided(job: str, queue: _Answer, records: _Answer) -> JobState:
    """The queue wins while it has the job; then a record that ended for good; else it is open."""
    in_queue, record = _look(queue, job), _look(records, job)
    if in_queue is not None:
        restarts = max(in_queue.restarts, record.restarts if record else 0)
        return replace(in_queue, restarts=restarts)
    if record is not None and record.dead and record.word not in _MAY_RETURN:
        return record
    return JobState("UNKNOWN", "" if queue.asked else "SLURM does not answer")


def _at_last(job: str, held: _Answer, records: _Answer) -> JobState:
    """Where the queue lacks a job and no final record closes it: the controller's memory, then any record."""
    if not held.asked:
        return JobState("UNKNOWN", "SLURM does not answer")
    state, record = _look(held, job), _look(records, job)
    if state is not None:
        return state
    if record is not None and record.dead:
        return record
    return JobState("UNKNOWN", "SLURM has no such job (any more)", gone=True)


def expand(job: str) -> list[str]:
    """The tasks that an id stands for: ``123_[5-7%4]`` is 123_5, 123_6, 123_7."""
    base, bracket, rest = job.partition("_[")
    if not bracket:
        return [job]
    tasks: list[str] = []
    for part in rest.partition("]")[0].partition("%")[0].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if found:
            first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
            tasks += [f"{base}_{index}" for index in range(first, last + 1, step)]
    return tasks


def _squeue(bases: Sequence[str]) -> _Answer:
    command = ("squeue", "--noheader", "--all", "--format=%i|%T|%N|%r")
    known: dict[str, JobState] = {}
    for some in cluster.chunks(bases):
        try:
            printed = cluster.run(*command, f"--jobs={','.join(some)}")
        except cluster.SlurmError as error:
            if not cluster.no_such_job(error):
                return _Answer(asked=False)
            continue
        for line in printed.splitlines():
            job, word, node, reason = ([*line.split("|", 3), "", "", ""])[:4]
            why = "" if reason == "None" else reason
            known |= dict.fromkeys(expand(job), JobState(word, why, node, queued=True))
    return _Answer(known)


def _sacct(bases: Sequence[str]) -> _Answer:
    """The newest record of each job; a job that was requeued has several."""
    fields = "JobID,State,ExitCode,NodeList,MaxRSS,ReqMem"
    command = ("sacct", "--duplicates", "--parsable2", "--noheader", f"--format={fields}")
    known: dict[str, JobState] = {}
    for some in cluster.chunks(bases):
        try:
            printed = cluster.run(*command, f"--jobs={','.join(some)}")
        except cluster.SlurmError:
            return _Answer(asked=False)
        known |= _records(printed)
    return _Answer(known)


def _records(printed: str) -> dict[str, JobState]:
    """Records come oldest first, each with its steps behind it."""
    own: dict[str, JobState] = {}
    ranges: dict[str, JobState] = {}
    memory = ""
    for line in printed.splitlines():
        job, word, code, node, used, asked = ([*line.split("|"), *[""] * 5])[:6]
        owner, dot, _ = job.partition(".")
        if "[" in job:
            ranges |= dict.fromkeys(expand(job), _ended(word, code, node, 0))
        elif not dot:
            memory = asked
            own[job] = _ended(word, code, node, own[job].restarts + 1 if job in own else 0)
        elif owner in own:
            own[owner] = _with_step(own[owner], word, code, _bytes(used) > _bytes(memory) > 0)
    return ranges | own  # a range is told late: it may still list tasks that have a record of their own


def _with_step(job: JobState, word: str, code: str, over: bool) -> JobState:
    """What a step knows better than its job, which SLURM calls FAILED with a mutilated exit code.

    :param over: it used more memory than the job asked for.
    """
    sign = int(code.partition(":")[2] or 0)
    if not job.dead or job.word in _MAY_RETURN or job.word == "COMPLETED":
        return job
    if word.startswith("OUT_OF_MEMORY") or (over and sign == signals.SIGKILL):
        return replace(job, word="OUT_OF_MEMORY", reason="out of memory")
    if job.word == "FAILED" and not job.signal and sign and job.exit_code == sign:  # of 128 + signal
        return replace(job, reason=f"signal {sign}", exit_code=128 + sign, signal=sign)
    return job


def _bytes(text: str) -> float:
    """``177456K``, ``100M``, ``2000Mc`` in bytes; 0 where nothing is told (``16?``: not yet known)."""
    found = re.fullmatch(r"([0-9.]+)([KMGTP]?)[cn]?", text)
    return float(found[1]) * 1024.0 ** " KMGTP".index(found[2] or " ") if found else 0.0


def _scontrol(bases: Sequence[str]) -> _Answer:
    """What the controller still holds in memory, ended jobs too."""
    known: dict[str, JobState] = {}
    for base in bases if len(bases) <= _SINGLY else [""]:
        try:
            printed = cluster.run("scontrol", "--all", "show", "job", *([base] if base else []))
        except cluster.SlurmError as error:
            if not cluster.no_such_job(error):
                return _Answer(asked=False)
            continue
        known |= _held(printed)
    return _Answer(known)


_HEAD = re.compile(r"^JobId=(\d+)(?: ArrayJobId=(\d+) ArrayTaskId=(\S+))?")
_STATE = re.compile(r"^ +JobState=(\S+) Reason=(\S*)", re.MULTILINE)
_RESTARTS = re.compile(r"^ +Requeue=.* Restarts=(\d+)", re.MULTILINE)
_EXIT = re.compile(r"^ +Requeue=.* ExitCode=(\d+:\d+)", re.MULTILINE)
_NODES = re.compile(r"^ +NodeList=(\S+)", re.MULTILINE)


def _held(printed: str) -> dict[str, JobState]:
    """Fields are read at the starts of their lines: a name may hold whatever looks like one."""
    own: dict[str, JobState] = {}
    ranges: dict[str, JobState] = {}
    for record in printed.split("\n\n"):
        head = _HEAD.match(record.strip())
        if not head or (state := _held_state(record)) is None:
            continue
        job, array, tasks = head.groups()
        if array is None:
            own[job] = state
        elif tasks.isdecimal():
            own[f"{array}_{tasks}"] = state
        else:
            ranges |= dict.fromkeys(expand(f"{array}_[{tasks}]"), state)
    return ranges | own


def _held_state(record: str) -> JobState | None:
    word = _STATE.search(record)
    if word is None:
        return None
    node = _group(_NODES, record).replace("(null)", "")
    state = _ended(word[1], _group(_EXIT, record), node, int(_group(_RESTARTS, record) or 0))
    waits = "" if word[2] == "None" else word[2]
    return replace(state, reason=waits) if state.alive else state


def _group(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


def _ended(words: str, exit_code: str, node: str, restarts: int) -> JobState:
    """A state out of SLURM's words, ``code:signal`` and the nodes it had."""
    word = (words.split() or ["UNKNOWN"])[0].rstrip("+")
    code, _, number = exit_code.partition(":")
    status, sign = int(code or 0), int(number or 0)
    if not sign and status > 128:  # a shell's way to tell that a signal killed its child
        sign = status - 128
    node = "" if node.startswith("None") else node
    if word in _ALIVE:
        return JobState(word, "", node, restarts=restarts)
    return JobState(word, _why(word, words, status, sign, node), node, status, sign or None, restarts)


def _why(word: str, words: str, status: int, sign: int, node: str) -> str:
    told = {
        "COMPLETED": "",
        "TIMEOUT": "ran into its time limit",
        "DEADLINE": "ran into its deadline",
        "OUT_OF_MEMORY": "out of memory",
        "NODE_FAIL": f"{node or 'a node'} failed",
        "BOOT_FAIL": f"{node or 'a node'} did not boot",
        "PREEMPTED": "preempted by another job",
        "REQUEUED": "requeued",
        "CANCELLED": words.lower(),
    }
    if word in told:
        return told[word]
    return f"signal {sign}" if sign else f"exit code {status}"
