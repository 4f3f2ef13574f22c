"""Killed at random moments and started again, a suite ends with the numbers of an undisturbed run."""

import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.records import EQUAL_COLUMNS

ROOT = Path(__file__).resolve().parent.parent
KILLS, AFTER = 10, 4.0  # seconds of work, at most, before each

SUITE = """
budget = 20000
backbone = {name = "alexnet_small", widths = [8, 8, 8, 8, 8], stem_stride = 1}
data = {dataset = {name = "digits", side = 16}, labels = 100}
[methods]
rotation = {batch_size = 20, augment = "none"}
supervised = {batch_size = 20, lr = 0.05}
mean_teacher = {batch_size = 50, labeled_batch = 10}
[protocols]
knn = {k = 10}
linear_probe = {augment = "none", epochs = 2, pooling = "adaptive_avg", size = 2}
"""


def _start(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BENCH_DEVICE": "cpu"}
    environment["BENCH_CACHE"] = str(folder.parent / "cache")
    command = [sys.executable, "-m", "bench", "run", str(folder.parent / "grid.toml"), "--jobs", "2"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _numbers(folder):
    with (folder / "results" / "grid.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [tuple(row[c] for c in ("label", "seed", "protocol", *EQUAL_COLUMNS)) for row in rows]


def _finish(folder):
    process = _start(folder)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors.decode()
    return _numbers(folder)


def _until_it_works(process, runs):
    """Its workers are up and write: most of a short run is the loading of libraries."""
    begun = time.time()
    while process.poll() is None:
        with contextlib.suppress(OSError):  # a file that is gone again
            if any(path.stat().st_mtime > begun for path in runs.rglob("*")):
                return
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_ten_times_ends_with_the_same_numbers(tmp_path):
    (tmp_path / "grid.toml").write_text(SUITE)
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    calm.mkdir()
    wild.mkdir()
    expected = _finish(calm)
    assert len({row[:3] for row in expected}) == 6
    assert {row[4] for row in expected} == {"ok"}
    moments, landed, process = random.Random(0), 0, _start(wild)
    while landed < KILLS:
        _until_it_works(process, wild / "runs")
        try:
            process.wait(moments.uniform(0.0, AFTER))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            landed += 1
        _, errors = process.communicate()
        assert process.returncode in {0, -signal.SIGKILL}, errors.decode()
        if process.returncode == 0:  # it was faster than the kill: once more from nothing
            assert _numbers(wild) == expected
            shutil.rmtree(wild)
            wild.mkdir()
        process = _start(wild)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors.decode()
    assert _numbers(wild) == expected


@pytest.mark.slow
def test_workers_stop_when_their_parent_is_killed(tmp_path):
    (tmp_path / "grid.toml").write_text(SUITE)
    folder = tmp_path / "orphans"
    folder.mkdir()
    process = _start(folder)
    time.sleep(8)
    group = os.getpgid(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.5)
    pytest.fail("a worker outlived its parent")
