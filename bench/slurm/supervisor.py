"""Inside a job: works a pack off with local processes, tells that it lives, and stops in time.

``python -m bench.slurm.supervisor FOLDER FIRST`` is what each job of an array runs: what its pack is, and how far
it is, lies in files of the submission.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from bench import artifacts
from bench.launch import Event, LocalProcesses, Places, Task
from bench.outlook import Clock
from bench.records import BenchError
from bench.slurm import ledger

BEAT_SECONDS = 10.0  # between two heartbeats
SOON_SECONDS = 2.0  # the same when other tasks run than it says
TICK = 0.5  # seconds: how soon a signal, a stalled or a greedy worker is noticed
LONGEST_TICK = 5.0  # seconds between two looks; what is above that, this job did not run
SAVING_SECONDS = {signal.SIGUSR2: 45.0, signal.SIGTERM: 15.0}  # then the workers are stopped unsaved
FULL = 0.95  # of the job's memory: the largest worker is ended before SLURM ends the job
IDLE_STARTS = 3  # time slices in a row in which nothing was saved: more of them would not help


def main(folder: str, first: str) -> int:
    """Work a pack off, in the main thread of this process; its exit code.

    :param folder: of the submission; ``first``: number of the array's first pack.
    """
    index = int(first) + int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)
    job = Supervision(Path(folder), index)
    for number in SAVING_SECONDS:
        signal.signal(number, job.told)
    threading.Thread(target=job.run, daemon=True).start()
    job.wait()
    if job.error:
        raise job.error
    return ledger.AGAIN if job.paused else 0


class Supervision:
    """One run of a pack: the thread that drives the workers, and what the signals tell it."""

    def __init__(self, folder: Path, index: int) -> None:
        self.submission = ledger.Submission(folder, {})
        self.index = index
        self.deadline: float | None = None  # when told to stop: until then workers may save
        self.over, self.paused = threading.Event(), False
        self.error: BaseException | None = None

    # ---- the main thread: signals; it takes no lock that a handler could wait for ----

    def wait(self) -> None:
        while not self.over.is_set():
            time.sleep(0.05)

    def told(self, number: int, frame: FrameType | None) -> None:
        """SLURM says that the job has to stop."""
        soon = time.monotonic() + SAVING_SECONDS[signal.Signals(number)]
        self.deadline = min(soon, self.deadline or soon)

    # ---- the thread that works ----

    def run(self) -> None:
        # Workers inherit the mask: SLURM signals all processes of a job, and only this one may answer.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT})
        try:
            if not ledger.is_over(self.submission, self.index):
                self._work()
        except BaseException as error:  # noqa: BLE001 - the main thread tells it
            self.error = error
        finally:
            self.over.set()

    def _work(self) -> None:
        pack = ledger.pack(self.submission, self.index)
        places = Places(**{k: Path(v) for k, v in pack["places"].items()})
        count = workers_here(pack)
        beat = Beat(self.submission, self.index, count, places)
        todo = [task for record in pack["tasks"] if (task := beat.left(record))]
        todo = beat.without_hopeless(todo)
        beat.write(force=True)
        told(f"start {beat.starts}: {len(todo)} trainings are left, {count} workers")
        step = srun(pack["nodes"], pack["processes"], pack["threads"], pack["srun"])
        crew = Crew(count, len(visible()) or pack["devices"], pack["stall"] * 60, pack["processes"], step)
        crew.python = shlex.split(pack["python"]) or crew.python
        for event in crew.run(todo, places):
            beat.note(event)
            if event.kind == "fatal":
                ledger.close(self.submission, self.index, "fatal", event.what, began=True)
                raise BenchError(event.what)
            self.paused |= event.kind == "paused"
            crew.watch(event, self.deadline)
            beat.write()
        self.paused |= self.deadline is not None and beat.unbegun > 0
        beat.saved = self.paused and beat.moved(todo)
        told(
            ("told to stop, " + ("saved" if beat.saved else "with nothing to save"))
            if self.paused
            else "all is done"
        )
        beat.write(force=True)
        if not self.paused:
            ledger.close(self.submission, self.index, "done", "", problems=beat.ended)


def told(text: str) -> None:
    """A line into the job's log."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} job {os.environ.get('SLURM_JOB_ID', '')}: {text}\n")
    sys.stderr.flush()


# ---- workers -------------------------------------------------------------------------------------


def visible() -> list[str]:
    """The GPUs that SLURM gave this job."""
    return [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]


def workers_here(pack: Mapping[str, Any]) -> int:
    """Workers as planned, but no more than the GPUs that are really here carry; one on several nodes."""
    carried = max(1, len(visible()) // pack["processes"]) if visible() else pack["workers"]
    return int(min(pack["workers"], carried))


def srun(nodes: int, processes: int, threads: int, more: Sequence[str] = ()) -> list[str]:
    """What starts the processes of a training on several nodes; nothing where a worker starts its own."""
    if nodes == 1 or processes == 1:
        return []
    shape = [f"--nodes={min(nodes, processes)}", f"--ntasks={processes}", f"--cpus-per-task={threads}"]
    # The supervisor is a step of this job itself: without --overlap the new one would wait for its end.
    return ["srun", "--overlap", "--kill-on-bad-exit=1", "--quiet", *shape, *more]


class Crew(LocalProcesses):
    """Workers under watch: silent and greedy ones are ended, all are stopped when the job has to.

    :param devices: GPUs of the job; ``stall``: seconds; ``step``: the command before a worker's own.
    """

    def __init__(
        self, count: int, devices: int, stall: float, processes: int = 1, step: Sequence[str] = ()
    ) -> None:
        super().__init__(count, TICK)
        self.devices, self.stall, self.processes, self.step = devices, stall, processes, step
        self.python = [sys.executable]
        self.heard: dict[int, float] = {}
        self.slots: dict[int, int] = {}
        self.looked, self.awake, self.weighed = time.monotonic(), 0.0, 0.0
        self.memory = int(os.environ.get("SLURM_MEM_PER_NODE") or 0)
        self.told = False

    def command(self) -> list[str]:
        """Over several nodes, srun starts a worker's processes."""
        own = super().command()
        return [*self.step, *self.python, *own[1:], "--slurm"] if self.step else own

    def environment(self, key: int) -> dict[str, str]:
        """Each worker has GPUs of its own, one a process, where the job has several."""
        if self.devices < 2 or self.step:
            return {}
        taken = {self.slots[k] for k in self.workers if k in self.slots}
        self.slots[key] = next(slot for slot in range(self.count + 1) if slot not in taken)
        found = visible()
        first = self.slots[key] * self.processes
        own = found[first : first + self.processes] or found[: self.processes]
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)}

    def watch(self, event: Event, deadline: float | None) -> None:
        """Look after the workers; called at every event, ticks included."""
        now = time.monotonic()
        # A job that was suspended did not run: that is no silence of its workers.
        gone = now - self.looked
        self.awake += min(gone, LONGEST_TICK)
        self.looked = now
        if event.kind != "tick":
            self.heard[id(event.task)] = self.awake
        if deadline is not None and not self.told:
            self.told = True
            self.pause()
        for task in list(self.busy.values()):
            if deadline is not None and now > deadline:
                self.kill(task)
            elif self.awake - self.heard.setdefault(id(task), self.awake) > self.stall:
                minutes = f"{self.stall / 60:g} minutes"
                self.kill(task, {"status": "timeout", "reason": f"no sign of life for {minutes}"})
        if self.memory and now - self.weighed > TICK:
            self.weighed = now
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
        self.spent, self.begun, self.saved = float(before.get("seconds", 0.0)), time.time(), False
        self.running: dict[str, dict[str, Any]] = {}
        self.clocks: dict[str, Clock] = {}
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
        mark = self._mark(todo)
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

    def moved(self, todo: Sequence[Task]) -> bool:
        """Whether something was saved or done since this time slice began."""
        return self.mark != self._mark(todo)

    def _mark(self, todo: Sequence[Task]) -> list[Any]:
        return [len(todo), *sorted(str(self._saved(task)) for task in todo[: self.workers])]

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
            left = self.clocks.setdefault(name, Clock()).left(event.done, event.total)
            self.running[name] |= {"what": event.what + left, "done": event.done, "total": event.total}
        elif event.kind in {"end", "paused"}:
            self.running.pop(name, None)
            if event.problems:
                self.ended[name] = list(event.problems)
                self.write(force=True)

    def write(self, *, force: bool = False) -> None:
        """Leave a sign of life; often enough to be seen, seldom enough for a shared disk, which may fail now and then."""
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
            "seconds": round(self.spent + time.time() - self.begun, 1),
            "saved": self.saved,
        }
        try:
            artifacts.write_json(self.path, beat)
        except BenchError as error:
            self.changed = True  # the next one tells
            sys.stderr.write(f"heartbeat: {error}\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
