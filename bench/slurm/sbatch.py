"""An array of jobs: what sbatch is told, the script that each job runs, and what a refusal means.

What jobs ask for goes to sbatch as arguments, which win over the ``SBATCH_*`` of the user; no shell reads them.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench
from bench import artifacts, children
from bench.records import BenchError
from bench.slurm import cluster, ledger
from bench.slurm.resources import VARIABLES, Resources

_SECONDS = 120.0  # that sbatch may take: a controller with a full queue lets it wait
_AWAY = ("contact", "timed out", "temporarily", "connect", "zero bytes", "did not answer")
# Where there is no place for a job now, in SLURM's words; its last is also said of other limits.
_FULL = re.compile(r"(Assoc|QOS)\w*Submit\w*Limit|MaxSubmitJobs|job submit limit", re.IGNORECASE)
_OTHER = re.compile(r"(Assoc|QOS|Partition)(?!\w*Submit)\w+", re.IGNORECASE)

# A job that saved and wants to run again says so by its exit code; that the queue still calls it running means
# that nobody else decided over it. Where SLURM refuses, its heartbeat tells that it paused.
_SCRIPT = """\
#!/bin/bash
trap : TERM
{setup}
code=0
{command} || code=$?
if [ "$code" = {again} ] && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


class RefusedError(BenchError):
    """sbatch will not take these jobs as they are; ``full``: as long as so many others are there."""

    def __init__(self, message: str, *, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


def options(resources: Resources, name: str, dependency: str) -> list[str]:
    """What sbatch is told of a job."""
    signal = min(90, 20 * resources.time) if resources.time else 90
    asked = {
        "job-name": name,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "time": resources.time or "UNLIMITED",
        "nodes": resources.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus,
        "gpus-per-node": resources.gpus if resources.devices else "",
        **_memory(resources),
        "constraint": resources.constraint,
        "exclude": ",".join(dict.fromkeys((*resources.exclude, *resources.avoid))),
        "dependency": dependency,
        "kill-on-invalid-dep": "yes" if dependency else "",  # else it would wait for ever
        "signal": f"USR2@{signal}",
        "open-mode": "append",
        "export": "ALL",
        **{key: value for key, value in resources.extra if value is not True},
    }
    flags = ["requeue", *(key for key, value in resources.extra if value is True)]
    return [f"--{key}={value}" for key, value in asked.items() if value != ""] + [f"--{f}" for f in flags]


def _memory(resources: Resources) -> dict[str, str]:
    if resources.mem_per_cpu:
        return {"mem-per-cpu": f"{resources.mem_per_cpu}M"}
    if resources.mem_per_gpu:
        return {"mem-per-gpu": f"{resources.mem_per_gpu}M"}
    return {} if resources.mem is None else {"mem": f"{resources.mem}M" if resources.mem else "0"}


def script(resources: Resources, folder: Path, first: int) -> str:
    """What a job runs: the user's lines, then one supervisor on its first node.

    :param first: number of the array's first pack.
    """
    return _script(resources, ["-u", "-P", "-m", "bench.slurm.supervisor", str(folder), str(first)])


def _script(resources: Resources, python: Sequence[str]) -> str:
    # Since 22.05 srun does not take the job's CPUs by itself.
    start = ["srun", "--unbuffered", "--nodes=1", "--ntasks=1", f"--cpus-per-task={resources.cpus}"]
    own = [*(shlex.split(resources.python) or [sys.executable]), *python]
    command = shlex.join([*start, *resources.srun, *own])
    return _SCRIPT.format(setup="\n".join(resources.setup), command=command, again=ledger.AGAIN)


def sbatch(
    submission: ledger.Submission,
    entry: Mapping[str, Any],
    resources: Resources,
    dependency: str,
    part: range,
) -> list[str]:
    """Submit packs of an array, by their numbers in the submission; the ids of their jobs.

    :raises RefusedError: sbatch refused; a :class:`cluster.SlurmError` where the controller was not there.
    """
    logs = submission.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    many = len(part) > 1
    array = [f"--array=0-{len(part) - 1}%{min(len(part), resources.parallelism)}"] if many else []
    where = [f"--output={logs}/{'%A_%a' if many else '%j'}_log.out", f"--chdir={artifacts.as_given(Path())}"]
    words = [*options(resources, entry["name"], dependency), *array, *where]
    job = _sent(words, script(resources, submission.folder, part.start))
    return [f"{job}_{i}" for i in range(len(part))] if many else [job]


def command(python: Sequence[str], folder: Path, resources: Resources, name: str) -> str:
    """Submit one job that runs Python with these arguments; its id. What it prints lies in ``folder``/ID_log.out.

    :raises RefusedError: as :func:`sbatch`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = [f"--output={artifacts.as_given(folder)}/%j_log.out", f"--chdir={artifacts.as_given(Path())}"]
    return _sent([*options(resources, name, ""), *where], _script(resources, python))


def _sent(words: Sequence[str], text: str) -> str:
    try:
        printed = cluster.run("sbatch", "--parsable", *words, timeout=_SECONDS, text=text, env=environment())
    except cluster.SlurmError as error:
        raise _refusal(error) from error
    job = printed.strip().splitlines()[-1].partition(";")[0] if printed.strip() else ""
    if not job.isdecimal():
        raise BenchError(f"sbatch printed no job's number but {printed.strip()!r}; try bench doctor")
    return job


def _refusal(error: cluster.SlurmError) -> BenchError:
    """A controller that is away for a while is another matter than a mistake."""
    said = [line.strip() for line in error.said.splitlines() if line.strip()]
    said = [line.partition("error: ")[2] or line for line in said] or [str(error)]
    if not error.said or any(word in " ".join(said).lower() for word in _AWAY):
        return cluster.SlurmError(f"sbatch refused: {said[0]}", error.said)
    text = " ".join(said)
    full = bool(_FULL.search(text)) and not _OTHER.search(text)
    return RefusedError(f"sbatch refused: {': '.join(dict.fromkeys(said[:2]))}", full=full)


def environment() -> dict[str, str]:
    """What jobs inherit: this package and the path as absolute folders, nothing of a job around us."""
    bound = ("SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SBATCH_WAIT", "SBATCH_WAIT_ALL_NODES", *VARIABLES)
    ours = ("SLURM_", "SRUN_", "SUBMITIT_")
    kept = {
        key: value
        for key, value in children.environment().items()
        if key == "SLURM_CONF" or not (key.startswith(ours) or key in bound)
    }
    own = str(artifacts.as_given(Path(bench.__file__).parent.parent))
    paths = [own, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    if any(Path(path or ".").resolve() == Path(own).resolve() for path in sys.path if "site-packages" in own):
        paths = paths[1:]  # installed: the interpreter finds it
    kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(str(artifacts.as_given(Path(p))) for p in paths))
    if "BENCH_CACHE" in kept:
        kept["BENCH_CACHE"] = str(artifacts.as_given(Path(kept["BENCH_CACHE"])))
    return kept


def asked(resources: Resources) -> str:
    """What a job asks for, for people."""
    memory = {0: "all memory", None: "memory by default"}.get(
        resources.mem, f"{(resources.mem or 0) / 1024:g} GB"
    )
    if resources.mem_per_cpu or resources.mem_per_gpu:
        memory = f"{resources.memory / 1024:g} GB ({' '.join(f'--{k}={v}' for k, v in _memory(resources).items())})"
    time = f"{resources.time} min" if resources.time else "no time limit"
    parts = [f"{resources.cpus} cpus, {memory}, {time}"]
    said = {"nodes": 1, "gpus": 0, "partition": "", "constraint": "", "qos": "", "account": "", "python": ""}
    parts += [f"{k} {getattr(resources, k)}" for k, v in said.items() if getattr(resources, k) != v]
    if away := (*resources.exclude, *resources.avoid):
        parts.append(f"not on {','.join(away)}")
    return ", ".join(parts)
