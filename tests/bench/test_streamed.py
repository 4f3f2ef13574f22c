"""Images read from files, as users run them: every executor, default options, and what may happen to data workers."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SUITE = """
seeds = 1
budget = "3 epochs"
backbone = "alexnet_small"
data = {dataset = "places205"}
[methods]
rotation = {crop = 24, batch_size = 32}
[protocols]
knn = {k = 3, side = 24}
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Places205 in its own form, small: 205 folders of JPEGs of several sizes."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label in range(205):
        color = rng.integers(0, 256, 3)
        for split, count in (("train", 3), ("val", 1)):
            folder = root / "places205" / split / f"c{label:03d}"
            folder.mkdir(parents=True)
            for i in range(count):
                side = rng.integers(30, 50, 2)
                pixels = (rng.normal(0, 30, (*side, 3)) + color).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root


@pytest.fixture
def started(home, places, monkeypatch):
    """Starts the command on a suite of these images; all of it is gone at the end."""
    monkeypatch.setenv("BENCH_DATA", str(places))
    begun = []

    def start(*options, text=SUITE, name="streamed", **env):
        Path(f"{name}.toml").write_text(text)
        command = [sys.executable, "-m", "bench", "run", f"{name}.toml", *options]
        begun.append(
            subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        for pid in (process.pid, *_below(process.pid)):
            _signal(pid, signal.SIGKILL)
        process.communicate()


def _signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _parents():
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            if stat[0] != "Z":
                found[int(folder.name)] = int(stat[1])
        except OSError:
            continue
    return found


def _below(pid):
    parents = _parents()
    found, level = [], [pid]
    while level := [p for p, parent in parents.items() if parent in level]:
        found += level
    return found


def _data_workers(pid):
    """The children of fork servers."""
    servers = [p for p in _below(pid) if "forkserver" in _command(p)]
    return [p for p in servers if _parents().get(p) in servers]


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""


def _until(found, seconds=120):
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return value


def _training(pid):
    """Data workers, once the training has drawn on them."""
    workers = _until(lambda: len(_data_workers(pid)) >= 2 and _data_workers(pid))
    time.sleep(0.5)
    return workers


def values(name="streamed"):
    with Path("results", f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [(r["metric"], r["layer"], r["split"], r["status"], r["value"]) for r in csv.DictReader(file)]


def attempts():
    return [json.loads(p.read_text())["attempt"] for p in Path("runs").glob("*/status.json")]


LONG = SUITE.replace("3 epochs", "60 epochs")  # a minute in which something may happen


def test_every_executor_reads_the_same(started):
    ways = {"one": ["--jobs", "0"], "default": [], "two": ["--jobs", "2"]}
    found = {}
    for name, options in ways.items():
        process = started(*options, name=name, BENCH_RUNS=f"runs_{name}")
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "Warning" not in err
        found[name] = values(name)
    assert found["one"][0][3] == "ok"
    assert found["default"] == found["one"] == found["two"]


def test_two_processes_a_model_read_their_halves(started):
    text = SUITE.replace("seeds = 1", "seeds = 1\nprocesses = 2")
    process = started(text=text)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert {row[3] for row in values()} == {"ok"}


@pytest.mark.parametrize("length", [77, 90, 180])
def test_a_long_temporary_folder(started, tmp_path, length):
    folder = tmp_path / "t"
    folder = folder / ("x" * (length - len(str(folder)) - 1)) if length > len(str(folder)) + 1 else folder
    folder.mkdir(parents=True)
    process = started(TMPDIR=str(folder))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def test_nothing_outlives_a_killed_parent(started):
    process = started(text=LONG)
    _training(process.pid)
    family = _below(process.pid)
    process.kill()
    process.wait()
    _until(lambda: not set(family) & set(_parents()), 20)


def _seconds(pid):
    """CPU time that a process took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_interrupted_command_saves_and_nothing_outlives_it(started):
    process = started(text=SUITE.replace("3 epochs", "6000 epochs"))
    worker = _training(process.pid)[0]
    _until(lambda: _seconds(worker) > 3)  # it reads a few batches ahead: steps were taken
    family = _below(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.wait(60)
    _until(lambda: not set(family) & set(_parents()), 20)
    assert list(Path("runs").glob("*/checkpoint.safetensors"))  # saved long before the time for it had come


def test_a_killed_data_worker_costs_an_attempt(started):
    process = started(text=LONG)
    worker = _training(process.pid)[0]
    begun = time.monotonic()
    _signal(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert time.monotonic() - begun < 60
    assert process.returncode == 2
    assert f"data worker {worker} died (signal 9)" in err
    assert "Traceback" not in err
    assert {row[3] for row in values()} == {"killed"}
    process = started(text=LONG)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert attempts() == [2]
    again = started(text=LONG, BENCH_RUNS="other", name="undisturbed")
    assert again.communicate(timeout=500)
    assert values() == values("undisturbed")


def test_a_silent_data_worker_is_told(started):
    process = started(text=LONG)
    workers = _training(process.pid)
    for worker in workers:
        _signal(worker, signal.SIGSTOP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "data workers were silent for 30 s at image" in err
    assert ".jpg" in err
    assert not any(_signal(worker, 0) for worker in workers)


def test_a_program_without_a_guard_is_not_run_again_by_its_data_workers(home, places, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(places))
    Path("bare.toml").write_text(SUITE)
    Path("bare.py").write_text(
        "import sys; open('begun', 'a').write('x'); from bench.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "bare.py", "run", "bare.toml", "--jobs", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("begun").read_text() == "x"
    assert {row[3] for row in values("bare")} == {"ok"}


def test_data_workers_that_cannot_start_are_told(home, places, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(places))
    Path("none.toml").write_text(SUITE)
    code = "import multiprocessing; multiprocessing.set_executable('/bin/false'); from bench.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "none.toml", "--jobs", "0"]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    assert "data workers cannot start" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 60
    assert {row[3] for row in values("none")} == {"killed"}
