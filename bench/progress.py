"""What a person sees while a suite runs: a bar with the time left, or nothing when nobody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Self

from bench.launch import Event, Task
from bench.outlook import Clock, minutes
from bench.planning.suite import Suite


def forecast(suite: Suite, todo: Sequence[Task], total: int, seconds: Sequence[float], workers: int) -> str:
    """One line before anything runs: how much there is, and how long it will take by what is known."""
    cells = sum(len(task.cells) for task in todo)
    text = f"{suite.name}: {cells} of {total} cells to do in {len(todo)} trainings"
    if seconds:
        left = sum(seconds) / len(seconds) * len(todo) / workers
        return f"{text}; about {minutes(left)}, from {len(seconds)} trainings measured here"
    if suite.minutes is not None:
        left = 60 * suite.minutes * cells / max(total, 1)
        return f"{text}; about {minutes(left)} as measured on 2 CPU cores"
    return f"{text}; no forecast: nothing like it was measured yet"


def watched(events: Iterable[Event], todo: Sequence[Task], workers: int) -> list[str]:
    """Follow a run to its end, on a terminal with bars. Returns what failed, a line each.

    :raises BenchError: whatever stops the whole run, after the workers were told.
    """
    problems: list[str] = []
    view = _Bars(todo, workers) if sys.stderr.isatty() else _Quiet(todo)
    with view:
        for event in events:
            view.show(event)
            if event.kind == "fatal":
                from bench.records import BenchError

                raise BenchError(event.what)
            problems += event.problems
    return problems


class _Quiet:
    """No terminal: one plain line when a training ends."""

    def __init__(self, todo: Sequence[Task]) -> None:
        self.total, self.ended, self.started = len(todo), 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, event: Event) -> None:
        if event.kind != "end":
            return
        self.ended += 1
        spent = time.monotonic() - self.started
        left = minutes(spent / self.ended * (self.total - self.ended))
        name = f"{event.task.label} seed {event.task.training.seed}"
        state = "failed" if event.problems else "done"
        sys.stderr.write(f"[{self.ended}/{self.total}] {name} {state}; {left} left\n")
        sys.stderr.flush()


class _Bars:
    """A bar for the suite and one for each worker."""

    def __init__(self, todo: Sequence[Task], workers: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.total, self.ended, self.part = len(todo), 0, dict.fromkeys(range(len(todo)), 0.0)
        self.started = time.monotonic()
        columns = (TextColumn("{task.description:32}"), BarColumn(), TextColumn("{task.fields[note]}"))
        self.bars = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
        self.all = self.bars.add_task("all trainings", total=self.total, note="")
        self.rows: dict[int, object] = {}
        self.clocks: dict[int, Clock] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, event: Event) -> None:
        key = id(event.task)
        if event.kind == "start":
            name = f"{event.task.label} seed {event.task.training.seed}"
            self.rows[key], self.clocks[key] = self.bars.add_task(name, total=1.0, note="starting"), Clock()
        elif event.kind == "progress" and key in self.rows:
            note = event.what + self.clocks[key].left(event.done, event.total)
            self.bars.update(self.rows[key], completed=event.done, total=event.total, note=note)  # type: ignore[arg-type]
        elif event.kind == "end" and key in self.rows:
            self.bars.remove_task(self.rows.pop(key))  # type: ignore[arg-type]
            self.ended += 1
            spent = time.monotonic() - self.started
            left = spent / self.ended * (self.total - self.ended)
            note = f"{self.ended}/{self.total}, {minutes(left)} left"
            self.bars.update(self.all, completed=self.ended, note=note)
