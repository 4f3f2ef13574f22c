"""What SLURM itself says: its limits, what became of jobs, which jobs have a name.

Every command is a list of arguments and has a time limit; whoever does not answer in time is not
believed to have said anything: a silent controller never makes a job look dead.
"""

from __future__ import annotations

import os
import re
import shutil
import signal as signals
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bench.records import BenchError

TIMEOUT = 20.0  # seconds that a command may take; a busy controller needs several
_CHUNK = 200  # ids on one command line
_SINGLY = 8  # arrays that scontrol is asked for one by one; above that all jobs in one call
_LOOKBACK = "now-14days"  # how far back sacct looks for a name

# These may come back: they are over only when the queue has them no more.
_MAY_RETURN = frozenset({"NODE_FAIL", "PREEMPTED", "REQUEUED", "BOOT_FAIL"})
_ENDED = _MAY_RETURN | {"COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "DEADLINE", "REVOKED"}
_ALIVE = frozenset({"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING"})
_ALIVE |= {"SIGNALING", "STAGE_OUT", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_LAUNCH_FAILED = "launch failed requeued held"  # squeue's words; scontrol's have underscores

_T = TypeVar("_T")


class SlurmError(BenchError):
    """A command of SLURM that is not here, failed or did not answer; ``said`` is all it wrote to stderr."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


# ---- commands ----------------------------------------------------------------------------------


def run(*command: str, timeout: float = TIMEOUT) -> str:
    """What a command prints. Arguments are passed as they are, no shell sees them.

    :raises SlurmError: a BenchError, in one line, where the command is missing, fails or takes over ``timeout`` s.
    """
    name = command[0]
    try:
        done = subprocess.run(  # noqa: S603 - no shell: what a name holds stays in its argument
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env=_environment(),
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


def _chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


# ---- limits ------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Limits:
    """What the live cluster allows."""

    max_array: int  # tasks of one array; indices run from 0 to max_array - 1
    accounting: bool  # does sacct keep records
    max_jobs: int = 0  # jobs that the controller keeps at a time, all users together; 0: unknown
    version: str = ""
    cluster: str = ""
    min_job_age_s: int = 0  # how long the controller remembers a job that ended
    partitions: tuple[Partition, ...] = ()

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
    )


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


# ---- states ------------------------------------------------------------------------------------


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
    gone: bool = (
        False  # the controller answered and has it no more: it does not run; how it ended is not known
    )

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
    for some in _chunks(bases):
        try:
            printed = run(*command, f"--jobs={','.join(some)}")
        except SlurmError as error:
            if not _no_such_job(error):
                return _Answer(asked=False)
            continue
        for line in printed.splitlines():
            job, word, node, reason = ([*line.split("|", 3), "", "", ""])[:4]
            why = "" if reason == "None" else reason
            known |= dict.fromkeys(expand(job), JobState(word, why, node, queued=True))
    return _Answer(known)


def _no_such_job(error: SlurmError) -> bool:
    return "invalid job id" in error.said.lower()


def _sacct(bases: Sequence[str]) -> _Answer:
    """The newest record of each job; a job that was requeued has several."""
    fields = "JobID,State,ExitCode,NodeList,MaxRSS,ReqMem"
    command = ("sacct", "--duplicates", "--parsable2", "--noheader", f"--format={fields}")
    known: dict[str, JobState] = {}
    for some in _chunks(bases):
        try:
            printed = run(*command, f"--jobs={','.join(some)}")
        except SlurmError:
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
            printed = run("scontrol", "--all", "show", "job", *([base] if base else []))
        except SlurmError as error:
            if not _no_such_job(error):
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


# ---- names and ends ----------------------------------------------------------------------------


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
    for some in _chunks(list(dict.fromkeys(jobs))):
        try:
            run("scancel", *some, timeout=3 * TIMEOUT)
        except SlurmError as error:
            if not _no_such_job(error) and "already completing" not in error.said.lower():
                raise


def commands() -> dict[str, str]:
    """Where SLURM's commands are, ``""`` for those that are not here."""
    return {name: shutil.which(name) or "" for name in ("sbatch", "squeue", "sacct", "scontrol", "srun")}
