"""An array of jobs through submitit: it writes the sbatch file, quotes what stands in it, and calls sbatch."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bench
from bench.records import BenchError
from bench.slurm import cluster, ledger
from bench.slurm.resources import Resources

_TIMEOUTS = 10**6  # submitit's own count of time-outs never ends a job: ours does (supervisor.IDLE_STARTS)
_AWAY = ("contact", "timed out", "temporarily", "connect", "zero bytes")


def parameters(resources: Resources, name: str, dependency: str) -> dict[str, Any]:
    """What submitit writes into the sbatch file."""
    more: dict[str, Any] = dict(resources.extra)
    if dependency:
        more["kill-on-invalid-dep"] = "yes"  # else it would wait for ever
    asked = {
        "job_name": name,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "time": resources.time,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": resources.gpus,
        "mem": f"{resources.mem}M",
        "constraint": resources.constraint,
        "exclude": ",".join(resources.exclude),
        "setup": list(resources.setup),
        "dependency": dependency,
        "additional_parameters": more,
    }
    return {
        **{key: value for key, value in asked.items() if value},
        "array_parallelism": resources.parallelism,
        "signal_delay_s": min(90, 20 * resources.time),
        "srun_args": [f"--cpus-per-task={resources.cpus}"],  # since 22.05 srun does not take the job's
        "wckey": None,
    }


def sbatch(
    submission: ledger.Submission, entry: Mapping[str, Any], resources: Resources, dependency: str
) -> list[str]:
    """Submit an array of packs; the ids of its jobs.

    :raises BenchError: sbatch refused; a :class:`cluster.SlurmError` where the controller was not there.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from bench.slurm.supervisor import Pack

    numbers = range(entry["first"], entry["first"] + entry["count"])
    works = [Pack(str(submission.folder), index) for index in numbers]
    with _environment(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises too
        try:
            executor = submitit.SlurmExecutor(submission.folder / "submitit", max_num_timeout=_TIMEOUTS)
            executor.update_parameters(**parameters(resources, entry["name"], dependency))
            return [str(job.job_id) for job in executor.submit_array(works)]
        except (FailedJobError, FailedSubmissionError) as error:
            raise _refusal(str(error)) from error
        except (RuntimeError, OSError) as error:
            raise BenchError(f"sbatch cannot be used: {error}; try bench doctor") from error


def _refusal(said: str) -> BenchError:
    """What sbatch said, in a line; a controller that is away for a while is another matter than a mistake."""
    lines = [line.partition("error: ")[2] or line for line in said.splitlines() if line.strip()]
    kind = cluster.SlurmError if any(word in said.lower() for word in _AWAY) else BenchError
    return kind(f"sbatch refused: {lines[0] if lines else 'it said nothing'}")


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What jobs inherit: this package and the path as absolute folders, nothing of a job around us."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF":
            del os.environ[name]
    own = str(Path(bench.__file__).resolve().parent.parent)
    paths = [own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if any(Path(path or ".").resolve() == Path(own) for path in sys.path if "site-packages" in own):
        paths = paths[1:]  # installed: the interpreter finds it
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(str(Path(p).resolve()) for p in paths))
    if "BENCH_CACHE" in os.environ:
        os.environ["BENCH_CACHE"] = str(Path(os.environ["BENCH_CACHE"]).resolve())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def asked(resources: Resources) -> str:
    """What a job asks for, for people."""
    said = {"nodes": 1, "gpus": 0, "partition": "", "constraint": "", "qos": "", "account": ""}
    parts = [f"{resources.cpus} cpus, {resources.mem / 1024:g} GB, {resources.time} min"]
    parts += [f"{k} {v}" for k, v in dataclasses.asdict(resources).items() if k in said and v != said[k]]
    if resources.exclude:
        parts.append(f"not on {','.join(resources.exclude)}")
    return ", ".join(parts)
