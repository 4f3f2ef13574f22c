"""Jobs run here: what dies costs its own task, what is done stays done, nobody outlives the parent."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import launch, store
from bench.artifacts import cell_name, folder, read_json
from bench.launch import InProcess, LocalProcesses, Places, Task
from bench.planning import plan
from bench.planning.suite import load
from bench.records import BenchError


@pytest.fixture
def places(home):
    return Places(home / "runs", home / "results", home / "data", home / "cache")


@pytest.fixture
def todo():
    def make(path):
        return launch.tasks(plan.cells(load(str(path))))

    return make


def rows(path, places):
    return store.collect("toy", plan.cells(load(str(path))), places.runs)


def trouble(kind, extra=""):
    return f'[methods]\nwalker = {{trouble = "{kind}", trouble_seed = 1{extra}}}'


def told(events):
    return [(e.kind, e.task.training.seed, list(e.problems)) for e in events if e.kind != "progress"]


def test_tasks_pack_a_training_with_its_cells_and_come_after_what_they_start_from(suite, todo):
    from dataclasses import replace

    first, second = todo(suite(top="seeds = 2", protocols="norms = {factor = [1, 2]}"))
    assert [len(t.cells) for t in (first, second)] == [2, 2]
    assert first.label == "walker"
    (a, b) = plan.cells(load(str(suite(top="seeds = 2"))))
    late = replace(a, cell=replace(a.cell, training=replace(a.cell.training, init=b.cell.training)))
    assert [t.training for t in launch.tasks([late, b])] == [b.cell.training, late.cell.training]


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("raise", "failed", "RuntimeError: told to go wrong (walker.py:"),
        ("oom", "oom", "out of memory: no memory is left"),
        ("allocate", "oom", "out of memory: [enforce fail at alloc_cpu.cpp"),
        (
            "nan",
            "failed",
            "DivergedError: distance is nan at step 4: the training diverged (try a smaller lr)",
        ),
    ],
)
def test_what_a_unit_raises_costs_its_own_task(suite, todo, places, kind, status, reason):
    path = suite(trouble(kind).replace('"nan", trouble_seed = 1', '"nan"'), top="seeds = 3")
    events = told(InProcess().run(todo(path), places))
    failed = [1] if kind != "nan" else [0, 1, 2]
    assert [seed for kind_, seed, problems in events if kind_ == "end" and problems] == failed
    found = {r["seed"]: (r["status"], r["reason"]) for r in rows(path, places)}
    assert found[1][0] == status
    assert found[1][1].startswith(reason)
    if failed == [1]:
        assert found[0] == found[2] == ("ok", "")
    log = folder(places.runs, todo(path)[1].training).log
    assert log.exists() == (status != "oom")
    if kind == "raise":
        assert "in two lines" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("kill", "the worker died (signal 9)"), ("exit", "the worker stopped (exit code 7)")],
)
def test_a_worker_that_dies_costs_its_own_task_only_and_is_replaced(suite, todo, places, kind, reason):
    path = suite(trouble(kind), top="seeds = 3")
    events = told(LocalProcesses(1).run(todo(path), places))
    assert [(k, s) for k, s, _ in events] == [
        ("start", 0),
        ("end", 0),
        ("start", 1),
        ("end", 1),
        ("start", 2),
        ("end", 2),
    ]
    assert [bool(p) for _, _, p in events] == [False, False, False, True, False, False]
    assert events[3][2][0].endswith(reason)
    found = {r["seed"]: (r["status"], r["reason"]) for r in rows(path, places)}
    assert found == {0: ("ok", ""), 1: ("killed", reason), 2: ("ok", "")}
    assert all(r["value"] != "" for r in rows(path, places) if r["seed"] != 1)


@pytest.mark.slow
def test_a_killed_training_goes_on_where_it_was_and_ends_equal(suite, todo, places, home, monkeypatch):
    once = trouble("kill", f', trouble_file = "{home}/struck"')
    path = suite(once, top='seeds = 2\nbudget = "4 epochs"')
    list(LocalProcesses(1).run(todo(path), places))
    files = folder(places.runs, todo(path)[1].training)
    assert read_json(files.status)["status"] == "killed"
    again = launch.tasks(plan.remaining(plan.cells(load(str(path))), lambda cell: cell.training.seed == 0))
    assert [p for e in LocalProcesses(1).run(again, places) for p in e.problems] == []
    status = read_json(files.status)
    assert (status["status"], status["attempt"], status["reason"]) == ("ok", 2, "")
    (home / "calm").mkdir()
    calm = Places(home / "calm", places.results, places.data, places.cache)
    list(InProcess().run(todo(path), calm))
    assert [r["value"] for r in rows(path, calm)] == [r["value"] for r in rows(path, places)]


@pytest.mark.slow
def test_processes_and_this_process_come_to_the_same_numbers(suite, todo, places, home):
    path = suite(
        "[methods]\nwalker = {noise = 0.1}\nnamer = {}", top="seeds = 2", protocols="norms = {}\nvotes = {}"
    )
    alone = Places(home / "alone", places.results, places.data, places.cache)
    tasks = launch.tasks(plan.remaining(plan.cells(load(str(path))), lambda _: False))
    list(InProcess().run(tasks, alone))
    list(LocalProcesses(2).run(tasks, places))
    numbers = [
        [(r["cell"], r["metric"], r["value"], r["status"]) for r in rows(path, p)] for p in (alone, places)
    ]
    assert numbers[0] == numbers[1]
    assert {r[3] for r in numbers[0]} == {"ok", "skipped"}


def test_a_job_that_is_done_is_not_done_again(suite, todo, places):
    path = suite()
    list(InProcess().run(todo(path), places))
    files = folder(places.runs, todo(path)[0].training)

    def times():
        return {p: p.stat().st_mtime_ns for p in files.path.rglob("*.*") if p.name != ".lock"}

    before = times()
    list(InProcess().run(todo(path), places))
    assert times() == before


def _unwritable(home, how, request):
    if how == "below a file":
        (home / "file").write_text("in the way")
        return home / "file" / "runs"
    if how == "kernel's":
        return Path("/proc/runs")
    disk = home / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(disk)], check=True))
    (disk / "filler").write_bytes(b"x" * 40_000)
    return disk


@pytest.mark.parametrize("how", ["below a file", "kernel's", "full disk"])
@pytest.mark.parametrize("jobs", [0, 1])
def test_a_place_that_cannot_be_written_stops_everything_with_one_line(
    home, suite, bench, request, how, jobs
):
    runs = _unwritable(home, how, request)
    path = suite(top="seeds = 20")  # 20 folders do not fit on the full disk
    done = bench("run", path, "--jobs", jobs, "--runs", runs)
    assert done.code == 2
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("bench: ")
    assert "cannot be written" in last
    assert str(runs) in last
    assert "choose another folder" in last
    assert "Traceback" not in done.err


def _alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            found.append(int(path.parent.name))
    return found


def _wait(what, seconds=30.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_workers_stop_with_their_parent(home, suite, blow):
    path = suite(trouble("slow", f', trouble_file = "{home}/begun"').replace("trouble_seed = 1, ", ""))
    command = [sys.executable, "-m", "bench", "run", str(path), "--jobs", "1"]
    # Tests that a shell runs in the background ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    signal.signal(signal.SIGINT, before)
    try:
        _wait((home / "begun").exists)
        children = _children(parent.pid)
        assert children
        begun = time.monotonic()
        parent.send_signal(blow)
        _, err = parent.communicate(timeout=30)
        _wait(lambda: not any(map(_alive, children)))
        assert time.monotonic() - begun < 15
        if blow == signal.SIGINT:
            assert parent.returncode == 130
            assert err.strip().splitlines()[-1].startswith("bench: interrupted; what is done is kept")
            assert "Traceback" not in err
    finally:
        parent.kill()
        parent.wait()


@pytest.mark.slow
def test_what_a_unit_prints_does_not_spoil_the_conversation(toys, forgetting, suite, todo, places):
    path = toys / "toy_units" / "walker.py"
    path.write_text(
        path.read_text().replace(
            "        optimizer = sgd",
            '        print(\'{"event": "end"}\', flush=True)\n        optimizer = sgd',
        )
    )
    forgetting(files=True)
    file = suite(top="seeds = 2")
    assert [p for e in LocalProcesses(1).run(todo(file), places) for p in e.problems] == []
    assert {r["status"] for r in rows(file, places)} == {"ok"}


@pytest.mark.parametrize(("jobs", "kind"), [(0, InProcess), (3, LocalProcesses)])
def test_jobs_choose_the_executor(jobs, kind):
    chosen = launch.executor(jobs, [])
    assert isinstance(chosen, kind)
    assert getattr(chosen, "count", 3) == 3


def test_by_default_as_many_processes_as_the_cores_carry(suite, todo, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert launch.executor(None, todo(suite(top="threads = 3"))).count == 2
    assert launch.executor(None, todo(suite(top="threads = 16"))).count == 1


def test_a_negative_number_of_jobs_is_told():
    with pytest.raises(BenchError, match="--jobs must be 0"):
        launch.executor(-1, [])


def test_a_death_in_an_evaluation_marks_that_cell_and_keeps_the_training(suite, todo, places):
    path = suite(protocols="norms = {factor = [1, 2]}")
    (task,) = todo(path)
    files = folder(places.runs, task.training)
    files.path.mkdir(parents=True)
    files.status.write_text(json.dumps({"status": "ok"}))
    assert launch.record(Task(task.training, task.cells, "walker"), launch._death(-9), places).endswith(
        "(signal 9)"
    )
    assert read_json(files.status) == {"status": "ok"}
    assert [r["status"] for r in rows(path, places)] == ["killed", "pending"]


@pytest.mark.parametrize(
    ("since", "statuses"), [(0.0, ["failed", "killed"]), (math.inf, ["killed", "pending"])]
)
def test_a_death_is_not_that_of_a_cell_that_has_failed_just_before(suite, todo, places, since, statuses):
    path = suite(protocols="norms = {factor = [1, 2]}")
    (task,) = todo(path)
    files = folder(places.runs, task.training)
    failed = files.failed(cell_name(task.cells[0]))
    failed.parent.mkdir(parents=True)
    files.status.write_text(json.dumps({"status": "ok"}))
    failed.write_text(json.dumps({"status": "failed", "reason": "no", "attempt": 1}))
    launch.record(task, launch._death(-9), places, since)
    assert [r["status"] for r in rows(path, places)] == statuses
