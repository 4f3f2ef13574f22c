"""Inside a job: works a pack off with local processes, tells that it lives, and stops in time.

submitit pickles a :class:`Pack` and nothing else; what a pack is, and how far it is, lies in files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bench import artifacts
from bench.launch import Event, LocalProcesses, Places, Task
from bench.records import BenchError
from bench.slurm import cluster, ledger

BEAT_SECONDS = 10.0  # between two heartbeats
SOON_SECONDS = 2.0  # the same when other tasks run than it says
TICK = 0.5  # seconds: how soon a signal, a stalled or a greedy worker is noticed
SAVING_SECONDS = {signal.SIGUSR2: 45.0, signal.SIGTERM: 15.0}  # then the workers are stopped unsaved
FULL = 0.95  # of the job's memory: the largest worker is ended before SLURM ends the job
IDLE_STARTS = 3  # time slices in a row in which nothing was saved: more of them would not help


@dataclass(frozen=True)
class Pack:
    """What submitit carries: where a pack lies. Called on the node; asked to checkpoint on the signal."""

    folder: str
    index: int

    def __call__(self) -> None:
        """Work the pack off.

        :raises SystemExit: it was told to stop before the end.
        """
        if os.environ.get("SLURM_PROCID", "0") != "0":
            return  # one supervisor a job
        _forget_leftovers()
        job = _jobs[self] = Supervision(Path(self.folder), self.index)
        signal.signal(signal.SIGTERM, job.terminated)  # submitit would ignore it
        threading.Thread(target=job.run, daemon=True).start()
        job.wait()
        if job.error:
            raise job.error
        if job.paused:
            job.ask_again()
            sys.exit(128 + signal.SIGTERM)

    def checkpoint(self) -> Any:
        """Save and stop the workers; submitit then asks SLURM to run the same pack again."""
        from submitit.helpers import DelayedSubmission

        if self in _jobs:
            _jobs[self].stop(signal.SIGUSR2)
            _jobs[self].wait()
        return DelayedSubmission(self)


_jobs: dict[Pack, Supervision] = {}


def _forget_leftovers() -> None:
    """A kill while submitit saved leaves a file that its next save would stumble over."""
    folder, job = os.environ.get("SUBMITIT_FOLDER"), os.environ.get("SLURM_JOB_ID", "")
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    for path in Path(folder).glob(f"{job}_*.save_tmp") if folder else ():
        path.unlink(missing_ok=True)


class Supervision:
    """One run of a pack: the thread that drives the workers, and what the signals tell it."""

    def __init__(self, folder: Path, index: int) -> None:
        self.submission = ledger.Submission(folder, artifacts.read_json(folder / "manifest.json"))
        self.index = index
        self.deadline: float | None = None  # when told to stop: until then workers may save
        self.over, self.paused = threading.Event(), False
        self.error: BaseException | None = None

    # ---- the main thread: signals; it takes no lock that a handler could wait for ----

    def wait(self) -> None:
        while not self.over.is_set():
            time.sleep(0.05)

    def terminated(self, number: int, frame: FrameType | None) -> None:
        self.stop(signal.Signals(number))

    def stop(self, why: signal.Signals) -> None:
        soon = time.monotonic() + SAVING_SECONDS[why]
        self.deadline = min(soon, self.deadline or soon)

    def ask_again(self) -> None:
        """Told to stop, and SLURM holds no plan to run the job again (preempted without a signal): ask for it."""
        job = os.environ.get("SLURM_JOB_ID", "")
        if not job or self.submission.file("exits", self.index).exists():
            return
        with contextlib.suppress(BenchError):
            if cluster.run("squeue", "--noheader", "--format=%T", f"--jobs={job}").strip() == "RUNNING":
                cluster.run("scontrol", "requeue", job)

    # ---- the thread that works ----

    def run(self) -> None:
        # Workers inherit the mask: SLURM signals all processes of a job, and only this one may answer.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT})
        try:
            if not self.submission.file("exits", self.index).exists():
                self._work()
        except BaseException as error:  # noqa: BLE001 - the main thread tells it
            self.error = error
        finally:
            self.over.set()

    def _work(self) -> None:
        pack = artifacts.read_json(self.submission.file("packs", self.index))
        places = Places(**{k: Path(v) for k, v in pack["places"].items()})
        beat = Beat(self.submission, self.index, pack["workers"], places)
        todo = [task for record in pack["tasks"] if (task := beat.left(record))]
        todo = beat.without_hopeless(todo)
        beat.write(force=True)
        step = srun(pack["nodes"], pack["processes"], pack["threads"])
        crew = Crew(pack["workers"], pack["devices"], pack["stall"] * 60, pack["processes"], step)
        for event in crew.run(todo, places):
            beat.note(event)
            if event.kind == "fatal":
                ledger.close(self.submission, self.index, "fatal", event.what, began=True)
                raise BenchError(event.what)
            self.paused |= event.kind == "paused"
            crew.watch(event, self.deadline)
            beat.write()
        self.paused |= self.deadline is not None and beat.unbegun > 0
        beat.write(force=True)
        if not self.paused:
            ledger.close(self.submission, self.index, "done", "", problems=beat.ended)


# ---- workers -------------------------------------------------------------------------------------


def srun(nodes: int, processes: int, threads: int) -> list[str]:
    """What starts the processes of a training on several nodes; nothing where a worker starts its own."""
    if nodes == 1 or processes == 1:
        return []
    shape = [f"--nodes={min(nodes, processes)}", f"--ntasks={processes}", f"--cpus-per-task={threads}"]
    # The supervisor is a step of this job itself: without --overlap the new one would wait for its end.
    return ["srun", "--overlap", "--kill-on-bad-exit=1", "--quiet", *shape]


class Crew(LocalProcesses):
    """Workers under watch: silent and greedy ones are ended, all are stopped when the job has to.

    :param devices: GPUs of the job; ``stall``: seconds; ``step``: the command before a worker's own.
    """

    def __init__(
        self, count: int, devices: int, stall: float, processes: int = 1, step: Sequence[str] = ()
    ) -> None:
        super().__init__(count, TICK)
        self.devices, self.stall, self.processes, self.step = devices, stall, processes, step
        self.heard: dict[int, float] = {}
        self.slots: dict[int, int] = {}
        self.looked = 0.0
        self.memory = int(os.environ.get("SLURM_MEM_PER_NODE") or 0)
        self.told = False

    def command(self) -> list[str]:
        """Over several nodes, srun starts a worker's processes."""
        own = super().command()
        return [*self.step, *own, "--slurm"] if self.step else own

    def environment(self, key: int) -> dict[str, str]:
        """Each worker has GPUs of its own, one a process, where the job has several."""
        if self.devices < 2 or self.step:
            return {}
        taken = {self.slots[k] for k in self.workers if k in self.slots}
        self.slots[key] = next(slot for slot in range(self.count + 1) if slot not in taken)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        first = self.slots[key] * self.processes
        own = visible[first : first + self.processes] or visible[: self.processes]
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)}

    def watch(self, event: Event, deadline: float | None) -> None:
        """Look after the workers; called at every event, ticks included."""
        now = time.monotonic()
        if event.kind != "tick":
            self.heard[id(event.task)] = now
        if deadline is not None and not self.told:
            self.told = True
            self.pause()
        for task in list(self.busy.values()):
            if deadline is not None and now > deadline:
                self.kill(task)
            elif now - self.heard.setdefault(id(task), now) > self.stall:
                minutes = f"{self.stall / 60:g} minutes"
                self.kill(task, {"status": "timeout", "reason": f"no sign of life for {minutes}"})
        if self.memory and now - self.looked > TICK:
            self.looked = now
            self._spare()

    def _spare(self) -> None:
        """Before SLURM ends the whole job for its memory, the largest worker goes."""
        sizes = {pid: megabytes(pid) for pid in self.pids()}
        if not sizes or sum(sizes.values()) + megabytes(os.getpid()) < FULL * self.memory:
            return
        largest = max(sizes, key=lambda pid: sizes[pid])
        reason = f"out of memory: {sizes[largest]} MB of the job's {self.memory} MB"
        self.kill(self.pids()[largest], {"status": "oom", "reason": reason})


def megabytes(pid: int) -> int:
    """What a process holds in memory; 0 when it is gone."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) // 1024
    return 0


# ---- heartbeat -----------------------------------------------------------------------------------


class Beat:
    """The heartbeat: what runs, how far it is, what ended badly; read again when the job is run again."""

    def __init__(self, submission: ledger.Submission, index: int, workers: int, places: Places) -> None:
        self.path, self.workers, self.places = submission.file("beats", index), workers, places
        before = artifacts.read_json(self.path) or {}
        self.ended: dict[str, list[str]] = dict(before.get("ended", {}))
        self.starts, self.idle = int(before.get("starts", 0)) + 1, int(before.get("idle", 0))
        self.mark = before.get("mark")
        self.running: dict[str, dict[str, Any]] = {}
        self.unbegun = 0
        self.last, self.changed = 0.0, True

    def left(self, record: Mapping[str, Any]) -> Task | None:
        """The task of a record with the cells that are still open; ``None`` when there is nothing to do."""
        task = ledger.task_from(record)
        name = artifacts.training_id(task.training)
        files = artifacts.folder(self.places.runs, task.training)
        status = (artifacts.read_json(files.status) or {}).get("status")
        if name in self.ended or (status != "ok" and not record["train"]):
            return None
        done = artifacts.outcomes(self.places.runs, task.training) if status else set()
        cells = tuple(cell for cell in task.cells if artifacts.cell_name(cell) not in done)
        return Task(task.training, cells, task.label) if cells or status != "ok" else None

    def without_hopeless(self, todo: Sequence[Task]) -> list[Task]:
        """After some time slices in which nothing was saved, what they began with is given up."""
        mark = [len(todo), *sorted(str(self._saved(task)) for task in todo[: self.workers])]
        self.idle = self.idle + 1 if mark == self.mark else 0
        self.mark = mark
        self.unbegun = len(todo)
        if self.idle < IDLE_STARTS:
            return list(todo)
        from bench.launch import record

        reason = f"nothing could be saved in {IDLE_STARTS} time slices: ask for more time"
        for task in todo[: self.workers]:
            self.ended[artifacts.training_id(task.training)] = [
                record(task, {"status": "timeout", "reason": reason}, self.places)
            ]
        self.unbegun -= len(todo[: self.workers])
        return list(todo[self.workers :])

    def _saved(self, task: Task) -> float:
        path = artifacts.folder(self.places.runs, task.training).path
        found = [path / "checkpoint.safetensors", path / "model.safetensors"]
        found += [*path.glob("work/*/*/check*"), *path.glob("cells/*.json")]
        return max((f.stat().st_mtime for f in found if f.exists()), default=0.0)

    def note(self, event: Event) -> None:
        """Take an event of a worker into account."""
        name = artifacts.training_id(event.task.training)
        if event.kind == "start":
            self.unbegun -= 1
            self.running[name] = {"training": name, "label": event.task.label, "since": time.time()}
            self.changed = True
        elif event.kind == "progress":
            self.running[name] |= {"what": event.what, "done": event.done, "total": event.total}
        elif event.kind in {"end", "paused"}:
            self.running.pop(name, None)
            if event.problems:
                self.ended[name] = list(event.problems)
                self.write(force=True)

    def write(self, *, force: bool = False) -> None:
        """Leave a sign of life; often enough to be seen, seldom enough for a shared disk."""
        now = time.monotonic()
        if not force and now - self.last < (SOON_SECONDS if self.changed else BEAT_SECONDS):
            return
        self.last, self.changed = now, False
        beat = {
            "time": time.time(),
            "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "workers": self.workers,
            "starts": self.starts,
            "idle": self.idle,
            "mark": self.mark,
            "running": list(self.running.values()),
            "ended": self.ended,
        }
        artifacts.write_json(self.path, beat)
