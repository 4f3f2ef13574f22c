"""Runs a suite's jobs here: in this process, or in local processes that each work one job at a time.

An executor takes jobs and yields events; state lies in the runs folder, so that an executor may die
at any time and the next one does what is left.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import math
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import artifacts, children
from bench.cores import usable_cores
from bench.planning.plan import Planned, trainings
from bench.records import BenchError, Cell, Rehearsal, Training, plain


@dataclass(frozen=True)
class Places:
    """Where things are: finished runs, result tables, datasets, what can be made again."""

    runs: Path
    results: Path
    data: Path
    cache: Path


@dataclass(frozen=True)
class Task:
    """A training and those of its cells that are not done."""

    training: Training
    cells: tuple[Cell, ...]
    label: str


@dataclass(frozen=True)
class Event:
    """What an executor tells: ``start``, ``progress``, ``end`` (with problems) or ``fatal`` (stop everything).

    Where asked for, ``tick`` when nothing happens, and ``paused`` for a task that was saved and stopped.
    """

    kind: str
    task: Task
    what: str = ""
    done: int = 0
    total: int = 0
    problems: Sequence[str] = field(default=())


def tasks(remaining: Sequence[Planned]) -> list[Task]:
    """What is left, a task a training; a training comes after the one it starts from."""
    grouped = trainings(remaining)
    found = [
        Task(t, tuple(dict.fromkeys(p.cell for p in cells)), cells[0].label) for t, cells in grouped.items()
    ]
    return sorted(found, key=lambda task: _depth(task.training))


def _depth(training: Training) -> int:
    return 0 if training.init is None else 1 + _depth(training.init)


class Executor(abc.ABC):
    """Works tasks off and tells what happens.

    ``rehearsal``: few images and few steps of everything, else all as in a run.
    """

    rehearsal: Rehearsal | None = None

    @abc.abstractmethod
    def run(self, todo: Sequence[Task], places: Places) -> Iterator[Event]: ...


class InProcess(Executor):
    """One after the other, in this process: for debuggers."""

    def run(self, todo: Sequence[Task], places: Places) -> Iterator[Event]:
        from bench.worker import Job, Place, work

        place = Place(places.runs, places.data, places.cache, self.rehearsal)
        for task in todo:
            yield Event("start", task)
            problems = work(Job(task.training, task.cells), place, lambda *_: None)
            yield Event("end", task, problems=problems)


class LocalProcesses(Executor):
    """``count`` worker processes; one that dies costs its task only, and is replaced.

    :param tick: seconds after which a ``tick`` is told when nothing else is; ``None``: never.
    """

    def __init__(self, count: int, tick: float | None = None) -> None:
        self.count, self.tick, self.pausing = count, tick, False
        self.busy: dict[int, Task] = {}
        self.begun: dict[int, float] = {}
        self.sentences: dict[int, dict[str, str]] = {}
        self.events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self.workers: dict[int, subprocess.Popen[str]] = {}
        self.listeners: list[threading.Thread] = []

    def run(self, todo: Sequence[Task], places: Places) -> Iterator[Event]:
        waiting, idle = list(todo), list[int]()
        try:
            while True:
                while (task := self._next(waiting)) is not None:
                    key = idle.pop() if idle else self._start()
                    self.busy[key], self.begun[key] = task, time.time()
                    self._send(key, task, places)
                    yield Event("start", task)
                if not self.busy:
                    return
                try:
                    key, message = self.events.get(timeout=self.tick)
                except queue.Empty:
                    yield Event("tick", next(iter(self.busy.values())))
                    continue
                if key not in self.busy:
                    continue
                if message is not None and message["event"] == "progress":
                    yield Event(
                        "progress", self.busy[key], message["what"], message["done"], message["total"]
                    )
                    continue
                if message is not None:
                    idle.append(key)
                yield self._ended(key, self.busy.pop(key), message, places)
        finally:
            self._stop()

    def pause(self) -> None:
        """Tell the workers to save and stop; each answers with ``paused``, and nothing new is begun."""
        self.pausing = True
        for key in self.workers:
            self._write(key, {"pause": True})

    def kill(self, task: Task, outcome: dict[str, str] | None = None) -> None:
        """End the worker of a task; ``outcome`` (status, reason) is recorded in place of its death."""
        for key, busy in self.busy.items():
            if busy is task:
                if outcome:
                    self.sentences[key] = outcome
                self.workers[key].kill()

    def pids(self) -> dict[int, Task]:
        """Which process works at which task."""
        return {self.workers[key].pid: task for key, task in self.busy.items()}

    def _next(self, waiting: list[Task]) -> Task | None:
        """The next task that may begin: not before the training that it starts from."""
        if self.pausing or len(self.busy) >= self.count:
            return None
        for i, task in enumerate(waiting):
            unmade = (*waiting, *self.busy.values()) if task.training.init else ()
            if all(other.training != task.training.init for other in unmade):
                return waiting.pop(i)
        return None

    def _ended(self, key: int, task: Task, message: dict[str, Any] | None, places: Places) -> Event:
        if message is None:
            process = self.workers.pop(key)
            _hang_up(process)
            code = process.wait()
            if self.pausing and key not in self.sentences:
                return Event("paused", task)
            outcome = self.sentences.pop(key, None) or _death(code)
            return Event("end", task, problems=[record(task, outcome, places, self.begun[key])])
        if message["event"] == "fatal":
            return Event("fatal", task, what=message["reason"])
        if message["event"] == "paused":
            return Event("paused", task)
        return Event("end", task, problems=message["problems"])

    def environment(self, key: int) -> dict[str, str]:
        """What a worker's environment has beyond its parent's."""
        return {}

    def command(self) -> list[str]:
        """What a worker is."""
        return children.python("bench.serve")

    def _start(self) -> int:
        key = len(self.listeners)
        with _uninterrupted():
            process = subprocess.Popen(  # noqa: S603 - our own words
                self.command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**children.environment(), **self.environment(key)},
            )
        self.workers[key] = process
        self.listeners.append(threading.Thread(target=self._listen, args=(key, process), daemon=True))
        self.listeners[-1].start()
        return key

    def _listen(self, key: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines, contextlib.suppress(ValueError):  # half a line is a worker's last
            for line in lines:
                self.events.put((key, json.loads(line)))
        self.events.put((key, None))

    def _send(self, key: int, task: Task, places: Places) -> None:
        place: dict[str, Any] = {
            k: str(artifacts.as_given(getattr(places, k))) for k in ("runs", "data", "cache")
        }
        place["rehearsal"] = dataclasses.asdict(self.rehearsal) if self.rehearsal else None
        message = {"training": plain(task.training), "cells": [plain(c) for c in task.cells], "place": place}
        self._write(key, message)

    def _write(self, key: int, message: dict[str, Any]) -> None:
        stdin = self.workers[key].stdin
        try:
            if stdin:
                stdin.write(json.dumps(message) + "\n")
                stdin.flush()
        except OSError:
            pass  # it died: its listener tells

    def _stop(self) -> None:
        for key, process in self.workers.items():
            self._write(key, {"stop": True})
            _hang_up(process)
        for process in self.workers.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for listener in self.listeners:
            listener.join(1)


class OtherCode(LocalProcesses):
    """Workers of another checkout of this project."""

    def __init__(self, count: int, checkout: Path) -> None:
        super().__init__(count)
        self.checkout = checkout.resolve()

    def environment(self, key: int) -> dict[str, str]:
        found = os.environ.get("PYTHONPATH")
        return {"PYTHONPATH": os.pathsep.join([str(self.checkout), *([found] if found else [])])}


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal; who is started here leaves the answer to its parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hang_up(process: subprocess.Popen[str]) -> None:
    """A worker whose input ends stops at once."""
    with contextlib.suppress(OSError):  # what was not yet read is lost with who should have read it
        if process.stdin:
            process.stdin.close()


def _death(code: int) -> dict[str, str]:
    reason = f"the worker died (signal {-code})" if code < 0 else f"the worker stopped (exit code {code})"
    return {"status": "killed", "reason": reason}


def record(task: Task, outcome: dict[str, str], places: Places, since: float = math.inf) -> str:
    """A task was ended without a word of its own: what it was doing is marked, so that a table can say so.

    :param since: when it was begun: cells that have failed by themselves since then are not what it was doing.
    """
    files = artifacts.folder(places.runs, task.training)
    if (artifacts.read_json(files.status) or {}).get("status") != "ok":
        _mark(files.status, outcome)
    else:
        done = artifacts.outcomes(places.runs, task.training)
        names = [n for n in map(artifacts.cell_name, task.cells) if n not in done]
        for name in [n for n in names if not _written(files.failed(n), since)][:1]:
            _mark(files.failed(name), outcome)
    return f"{files.path.name}: {outcome['reason']}"


def _written(path: Path, since: float) -> bool:
    return path.exists() and path.stat().st_mtime >= since


def _mark(path: Path, outcome: dict[str, str]) -> None:
    attempt = int((artifacts.read_json(path) or {}).get("attempt", 0)) + 1
    artifacts.merge_json(path, {**outcome, "attempt": attempt})


def executor(jobs: int | None, todo: Sequence[Task], checkout: Path | None = None) -> Executor:
    """``jobs`` local processes; 0 is this process; by default as many as the cores carry.

    :param checkout: of the code that they run, by default this one.
    """
    if jobs == 0:
        return InProcess()
    if jobs is not None and jobs < 0:
        raise BenchError(f"--jobs must be 0 (this process) or a number of processes, not {jobs}")
    threads = max((task.training.threads * task.training.processes for task in todo), default=1)
    count = jobs or max(1, usable_cores() // threads)
    return OtherCode(count, checkout) if checkout else LocalProcesses(count)
