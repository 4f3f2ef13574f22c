"""On a cluster that is set up as ordinary sites are, a suite ends with the rows of ``bench run``, or says why not."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest

from bench.records import EQUAL_COLUMNS

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.sites]

ASKS = 'mem = "2500M"\ncpus = 1\npack = 0\n'
WHOLE = 'mem = "3G"\ncpus = 2\npack = 20\n'  # all in one job of two workers


@dataclass(frozen=True)
class Form:
    """A site: what its SLURM has set, what the suite asks for, what befalls its jobs; why nothing can run there."""

    shape: dict
    asks: str = ASKS
    blow: str = ""
    why_not: str = ""
    nap: float = 0.0
    told: tuple[str, ...] = field(default=())


FORMS = {
    "accounting off": Form({"accounting": False}),
    "no requeue": Form({"requeue": False, "nodes": 2}, WHOLE + "time = 1\n", nap=0.15),
    "preemption cancels": Form({"preempt": "CANCEL", "grace": 0, "nodes": 2}, WHOLE, blow="preempt", nap=0.1),
    "gang scheduling": Form(
        {"preempt": "SUSPEND", "nodes": 1}, WHOLE + "stall = 0.3\n", blow="suspend", nap=0.1
    ),
    "no arrays": Form({"max_array": 0, "accounting": False}),
    "arrays of 10": Form({"max_array": 10, "accounting": False}),
    "three jobs at a time": Form({"max_submit": 3}, told=("wait: SLURM takes no more jobs",)),
    "an account for one partition": Form({"lab": True}, ASKS + 'account = "lab"\npartition = "lab"\n'),
    "nodes of 3 GB": Form(
        {"mem": 3000, "accounting": False}, "cpus = 1\n", why_not="Memory specification can not be satisfied"
    ),
    "GPUs of a type": Form({"gpu_type": "a100", "accounting": False}, ASKS + 'gpus = "a100:1"\n'),
}


def rows(folder):
    with (folder / "toy.csv").open(encoding="utf-8") as file:
        return [
            (r["training"], r["cell"], *(r[c] for c in EQUAL_COLUMNS), r["reason"])
            for r in csv.DictReader(file)
        ]


@pytest.fixture
def cells(suite):
    """A suite of 8 trainings, 24 cells."""

    def write(form):
        nap = f"[methods.napper]\nnap = {form.nap}\n[slurm]\n{form.asks}"
        return suite(nap, top='seeds = 8\nbudget = "16 epochs"', protocols="norms = {factor = [1, 2, 3]}")

    return write


def preempt(cluster, home):
    """Once there is something saved, others take the node without a word before."""
    _until(lambda: list(home.glob("runs/napper*/cells/*.json")))
    ((job, _, node), *_) = [one for one in cluster.squeue() if one[1] == "RUNNING"]
    cluster.preempt(node, 1)
    cluster.wait_state(job, "", "COMPLETING")


def suspend(cluster, home):
    """The node is others' for longer than the suite lets a training be silent."""
    _until(lambda: list(home.glob("runs/napper*/cells/*.json")))
    ((_, _, node), *_) = [one for one in cluster.squeue() if one[1] == "RUNNING"]
    cluster.preempt(node, 40)
    _until(lambda: "SUSPENDED" in {word for _, word, _ in cluster.squeue()})
    told = subprocess.run(
        [sys.executable, "-m", "bench", "status", "toy.toml"], capture_output=True, text=True, check=False
    )
    assert "suspended" in told.stdout, told


BLOWS = {"preempt": preempt, "suspend": suspend}


@pytest.mark.parametrize("name", FORMS)
def test_a_suite_ends_with_the_rows_of_bench_run_or_says_why_not(slurm, home, cells, name):
    form = FORMS[name]
    path = cells(form)
    here = [sys.executable, "-m", "bench", "run", path, "--jobs", "2", "--runs", "calm", "--results", "calm"]
    subprocess.run(here, check=True, capture_output=True)
    calm = rows(home / "calm")
    assert len({row[:2] for row in calm}) == 24
    cluster = slurm(**form.shape)
    with subprocess.Popen(
        [sys.executable, "-m", "bench", "submit", path, "--wait"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as waits:
        if form.blow:
            BLOWS[form.blow](cluster, home)
        _, err = waits.communicate(timeout=500)
    cluster.wait_idle()
    found = rows(home / "results")
    for word in form.told:
        assert word in err
    if form.why_not:
        assert waits.returncode == 2
        assert {row[:2] for row in found} == {row[:2] for row in calm}
        assert all(row[3] == "failed" and form.why_not in row[-1] for row in found), (found, err)
        return
    assert waits.returncode == 0, err
    assert found == calm
    attempts = [json.loads(p.read_text())["attempt"] for p in home.glob("runs/*/status.json")]
    assert attempts == [1] * 8, err  # nothing that befell them was their fault


def test_where_a_requeue_is_refused_what_saved_is_submitted_anew(slurm, home, cells, monkeypatch):
    cluster = slurm(accounting=False, nodes=2)
    (home / "bin").mkdir()
    refuses = home / "bin" / "scontrol"
    real = shutil.which("scontrol")
    refuses.write_text(
        f'#!/bin/sh\n[ "$1" = requeue ] && {{ echo "scontrol: Requested operation is presently disabled" >&2; exit 1; }}\n'
        f'exec {real} "$@"\n'
    )
    refuses.chmod(0o755)
    path = cells(Form({}, WHOLE + "time = 1\n", nap=0.25))
    here = [sys.executable, "-m", "bench", "run", path, "--jobs", "2", "--runs", "calm", "--results", "calm"]
    subprocess.run(here, check=True, capture_output=True)
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "submit", path, "--wait"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "saved, and SLURM does not run it again: no attempt is lost" in done.stderr
    cluster.wait_idle()
    assert rows(home / "results") == rows(home / "calm")
    assert [json.loads(p.read_text())["attempt"] for p in home.glob("runs/*/status.json")] == [1] * 8, (
        done.stderr
    )


def test_what_no_node_has_the_memory_for_is_given_up_and_the_rest_goes_on(slurm, home, suite):
    slurm(accounting=False, mem=3000)
    hogs = "[methods.napper]\nhog = 1\nnap = 0.0\n[slurm]\nmem = '2G'\ncpus = 1\npack = 0\n"
    path = suite(hogs, top="seeds = 3")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "submit", path, "--wait"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    found = {row[2:4] + row[-1:] for row in rows(home / "results") if row[3] != "ok"}
    assert found == {("", "oom", "out of memory with 2.9 GB: no node here has more")}, (found, done.stderr)
    assert len({row[:2] for row in rows(home / "results") if row[3] == "ok"}) == 2
    again = subprocess.run(
        [sys.executable, "-m", "bench", "submit", path], check=False, capture_output=True, text=True
    )
    assert (again.returncode, "nothing to submit" in again.stderr) == (0, True)


def _until(what, seconds=180.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)
