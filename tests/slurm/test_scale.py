"""Many tiny cells: none lost, none twice, and not slower than here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench import store
from bench.planning import plan
from bench.planning.suite import load
from bench.slurm import ledger

on_slurm = pytest.mark.slurm
pytestmark = pytest.mark.slow

# A worker is 800 MB of libraries, for a moment twice that where it starts git; SLURM adds all up.
TINY = "[methods]\nwalker = {}\n[slurm]\nmem = '3G'\ncpus = 2\n"


def timed(*words):
    begun = time.monotonic()
    command = [sys.executable, "-m", "bench", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begun


def outcomes(home, path):
    """Status of every cell's rows, how often each model and each cell was made, by whom each was owned."""
    planned = plan.cells(load(str(path)))
    statuses = Counter(r["status"] for r in store.collect("x", planned, home / "runs"))
    files = [*(home / "runs").glob("*/cells/*.json"), *(home / "runs").glob("*/status.json")]
    attempts = Counter(json.loads(p.read_text())["attempt"] for p in files)
    owned = Counter(
        (training, name)
        for s in ledger.submissions(home / "runs", closed=True)
        for pack in s.manifest["packs"]
        for training, names in pack.items()
        for name in names
    )
    return statuses, attempts, owned


@on_slurm
def test_1500_tiny_cells_with_an_array_limit_of_1001(slurm, home, suite, capsys):
    cluster = slurm(max_array=1001)
    path = suite(TINY + "pack = '0.5 min'", top="seeds = 1500\nminutes = 3\nbudget = 12")
    spent = timed("submit", path, "--wait")
    cluster.wait_idle()
    statuses, attempts, owned = outcomes(home, path)
    jobs = sum(len(s.manifest["packs"]) for s in ledger.submissions(home / "runs", closed=True))
    with capsys.disabled():
        print(
            f"\n1500 cells, MaxArraySize 1001: {spent:.0f} s in {jobs} jobs; {dict(statuses)}, {dict(attempts)}"
        )
    assert statuses == {"ok": 3000}  # a validation and a test row a cell
    assert attempts == {1: 3000}  # each model and each cell made once
    assert len(owned) == 1500
    assert set(owned.values()) == {1}


@on_slurm
def test_arrays_are_split_by_the_limit_of_the_live_cluster(slurm, home, suite, capsys):
    cluster = slurm(accounting=False, max_array=3)
    path = suite(TINY.replace("3G", "2G").replace("cpus = 2", "cpus = 1") + "pack = 0", top="seeds = 7")
    spent = timed("submit", path, "--wait")
    cluster.wait_idle()
    (submission,) = ledger.submissions(home / "runs", closed=True)
    assert [array["count"] for array in submission.manifest["arrays"]] == [3, 3, 1]
    statuses, attempts, _ = outcomes(home, path)
    with capsys.disabled():
        print(
            f"\n7 cells, one a job, MaxArraySize 3: arrays of 3, 3, 1 in {spent:.0f} s; "
            f"1000 would take {spent / 7 * 1000:.0f} s"
        )
    assert (statuses, attempts) == ({"ok": 14}, {1: 14})


@on_slurm
@pytest.mark.alone
def test_1000_tiny_cells_take_at_most_twice_the_time_of_bench_run(slurm, home, suite, capsys):
    slurm()
    path = suite(TINY, top="seeds = 1000\nminutes = 2\nbudget = 12")
    here = timed("run", path, "--jobs", 2, "--runs", "calm", "--results", "calm")
    there = timed("submit", path, "--wait")
    statuses, _, _ = outcomes(home, path)
    with capsys.disabled():
        print(f"\n1000 cells: bench run {here:.0f} s, bench submit {there:.0f} s ({there / here:.2f} x)")
    assert statuses == {"ok": 2000}
    assert there <= 2 * here


# ---- a large suite, with commands that say what those of a cluster would -------------------------

SAYS = {
    "scontrol": """case "$*" in
*config*) echo "MaxArraySize = 1001" ;;
*partition*) echo "PartitionName=main Default=YES State=UP MaxTime=UNLIMITED" ;;
esac""",
    "sinfo": 'echo "n1|main|16000|idle"',
    "sbatch": "/bin/cat >/dev/null; echo $$",
    "squeue": "",
    "sacct": "echo 'accounting storage is disabled' >&2; exit 1",
}


# A process is told to have had its parent's size before it became another program: so a small one starts it.
_MEASURE = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=open("said", "w")).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def spent(*words):
    """CPU seconds and MB of a command, with what it printed."""
    command = [sys.executable, "-c", _MEASURE, sys.executable, "-m", "bench", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    code, seconds, megabytes = json.loads(done.stdout)
    said = Path("said").read_text()
    assert code == 0, said
    return seconds, megabytes, said


def test_100_000_cells_are_planned_submitted_and_told_of(home, suite, monkeypatch, capsys):
    (home / "bin").mkdir()
    for name, script in SAYS.items():
        (home / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (home / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    path = suite(top="seeds = 10000", protocols=f"norms = {{factor = {list(range(1, 11))}}}")
    small = suite(name="small")
    spent("submit", small, "--dry-run")  # what units refuse is asked once, by a process with torch
    found = {}
    for words in (
        ["submit", path, "--dry-run"],
        ["status", path],
        ["submit", path],
        ["status", path, "--json"],
    ):
        *found[" ".join(map(str, (words[0], *words[2:])))], said = spent(*words)
    with capsys.disabled():
        print(
            "\n100,000 cells, 10,000 trainings:", {k: f"{s:.1f} s, {m:.0f} MB" for k, (s, m) in found.items()}
        )
    assert json.loads(said)["counts"] == {"queued": 100_000}
    assert len([p for p in (home / "runs").rglob("*") if p.is_file()]) < 10
    assert all(seconds < 25 and megabytes < 500 for seconds, megabytes in found.values()), found
