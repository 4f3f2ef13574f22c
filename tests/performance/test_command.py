"""Planning, looking at a finished suite and asking for help take little CPU, and load no torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
from _ratio import cpu_seconds, tell

from bench import artifacts
from bench.planning import plan
from bench.planning.suite import load

SLACK = 5  # absolute times are judged with room for a slow machine; what is printed is the time itself
CELLS = 10_000
GRID = """
seeds = 50
budget = 48
backbone = "dot_net"
[data]
dataset = "dots"
unlabeled = [4, 8, 12, 16, 20]
[methods]
walker = {lr = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]}
[protocols]
norms = {factor = [1.0, 2.0, 3.0, 4.0]}
"""

# Ends the process as the command does, and says on the last line which of the heavy modules came in.
WRAPPED = """
import sys
from bench.cli import main
try:
    main()
finally:
    print([m for m in ("torch", "torchvision", "faiss", "sklearn") if m in sys.modules], file=sys.stderr)
"""


def command(*arguments):
    """CPU seconds of the command in a process of its own, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", WRAPPED, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def judged(name, action, bar, times=3):
    """The fastest of some attempts."""
    seconds = min(action() for _ in range(times))
    tell(name, seconds, f"{bar} s of CPU, {SLACK} times that here")
    assert seconds <= SLACK * bar


@pytest.fixture
def grid(home):
    path = home / "grid.toml"
    path.write_text(GRID)
    return path


@pytest.mark.slow
def test_planning_ten_thousand_cells_takes_a_second(grid, forgetting):
    suite = load(str(grid))
    assert len(plan.cells(suite)) == CELLS

    def planned():
        forgetting()
        return cpu_seconds(lambda: plan.cells(load(str(grid))))

    judged("planning 10,000 cells", planned, 1.0)


@pytest.mark.slow
def test_a_finished_suite_is_seen_to_be_finished(grid, home):
    planned = plan.cells(load(str(grid)))
    for training, cells in plan.trainings(planned).items():
        files = artifacts.folder(home / "runs", training)
        (files.path / "cells").mkdir(parents=True)
        files.status.write_text(json.dumps({"status": "ok", "train_seconds": 1.0}))
        for one in cells:
            row = {"metric": "norm", "value": 1.0, "layer": "", "split": "test", "step": None}
            files.cell(artifacts.cell_name(one.cell)).write_text(
                json.dumps({"status": "ok", "reason": "", "attempt": 1, "rows": [row]})
            )
    command("run", grid)  # nothing is left to do but its table

    def again():
        seconds, said = command("run", grid)
        assert f"nothing to do, all {CELLS} cells are done" in said
        return seconds

    judged("a finished suite of 10,000 cells, run again", again, 3.0)
    judged("status of 10,000 cells", lambda: command("status", grid)[0], 10.0, times=1)


@pytest.mark.slow
def test_help_is_there_at_once(home):
    judged("bench --help", lambda: command("--help")[0], 0.3, times=5)


@pytest.mark.slow
def test_a_second_run_judges_nothing_again(home, suite, bench, monkeypatch):
    path = suite(protocols="norms = {}")
    assert bench("run", path, "--jobs", 0).code == 0
    from toy_units.norms import Norms

    from bench import worker

    calls = []
    judge = Norms.evaluate
    monkeypatch.setattr(Norms, "evaluate", lambda *a: calls.append(a) or judge(*a))
    monkeypatch.setattr(worker, "work", lambda *_: calls.append("work") or [])
    assert "nothing to do" in bench("run", path, "--jobs", 0).out
    assert not calls
