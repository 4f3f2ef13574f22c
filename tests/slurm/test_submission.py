"""Submitting again is the one operation: beside others, after any death, with nothing left to do."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import artifacts, store
from bench.planning import plan
from bench.planning.suite import load
from bench.slurm import draft, ledger, resources, sbatch
from bench.slurm.resources import Resources

SLURM = '\n[slurm]\nmem = "2G"\ncpus = 1\npack = 0\n'


def test_parameters_name_what_sbatch_is_to_be_told():
    asked = Resources(partition="gpu", time=90, gpus=2, cpus=8, mem=500, exclude=("a", "b"), setup=("x",))
    found = sbatch.options(asked, "bench-1-0", "afterany:3")
    assert {"--partition=gpu", "--time=90", "--gpus-per-node=2", "--mem=500M", "--exclude=a,b"} <= set(found)
    assert {"--dependency=afterany:3", "--kill-on-invalid-dep=yes", "--requeue"} <= set(found)
    assert not any(word.startswith("--account") for word in found)
    text = sbatch.script(asked, Path("/a b"), 7)
    assert "\nx\n" in text
    assert "srun --unbuffered --nodes=1 --ntasks=1 --cpus-per-task=8 " in text
    assert text.count("bench.slurm.supervisor '/a b' 7") == 1


@pytest.mark.parametrize(
    ("outcome", "retries", "lost"),
    [
        ({"status": "failed", "reason": "x", "attempt": 1}, 2, "failed: x"),
        ({"status": "killed", "reason": "x", "attempt": 2}, 2, ""),
        ({"status": "oom", "reason": "x", "attempt": 3}, 2, "oom 3 times: x"),
        ({"status": "timeout", "reason": "x", "attempt": 1}, 0, "timeout 1 times: x"),
    ],
)
def test_what_may_be_tried_again(outcome, retries, lost):
    assert draft._hopeless(outcome, retries) == lost


def test_a_percent_sign_in_the_folder_is_told(home, suite, bench):
    done = bench("submit", suite(), "--runs", home / "50%A")
    assert done.code == 2
    assert "sbatch reads % in a path as a pattern" in done.err


def test_without_slurm_one_line_says_so(home, suite, bench, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    for words in (["submit", suite()], ["submit", suite(), "--dry-run"]):
        done = bench(*words)
        assert done.code == 2
        assert "there is no SLURM here" in done.err
        assert "Traceback" not in done.err


# ---- on a real SLURM -----------------------------------------------------------------------------


def start(*words, **env):
    command = [sys.executable, "-m", "bench", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **env})


def manifests(home):
    return [json.loads(p.read_text()) for p in (home / "runs" / ".slurm").glob("*/manifest.json")]


def attempts(home):
    """Attempt by cell, of all that is done."""
    found = [json.loads(p.read_text()) for p in (home / "runs").glob("*/cells/*.json")]
    statuses = [json.loads(p.read_text()) for p in (home / "runs").glob("*/status.json")]
    return [f["attempt"] for f in (*found, *statuses)]


def statuses(home, path):
    return [r["status"] for r in store.collect("x", plan.cells(load(str(path))), home / "runs")]


@pytest.mark.slow
@pytest.mark.slurm
def test_two_submitters_at_once_share_the_work(slurm, home, suite):
    cluster = slurm()
    path = suite("[methods]\nwalker = {}" + SLURM.replace("pack = 0", "pack = 5\n"), top="seeds = 8")
    both = [start("submit", path, "--wait", "--results", f"results{i}") for i in range(2)]
    for one in both:
        _, err = one.communicate(timeout=400)
        assert one.returncode == 0, err
    cluster.wait_idle()
    assert set(statuses(home, path)) == {"ok"}
    assert attempts(home) == [1] * 16
    owned = [name for m in manifests(home) for pack in m["packs"] for name in pack]
    assert len(owned) == len(set(owned)) == 8


@pytest.mark.slow
@pytest.mark.slurm
def test_a_training_that_two_suites_ask_for_is_made_once(slurm, home, suite):
    cluster = slurm()
    methods = "[methods.napper]\nnap = 0.3" + SLURM.replace("pack = 0", "pack = 5")
    first = suite(methods, top="seeds = 2", name="first")
    second = suite(methods, top="seeds = 2", protocols="norms = {}\nvotes = {}", name="second")
    second.write_text(second.read_text().replace("votes = {}", "norms2 = {use = 'norms', factor = 3.0}"))
    both = [start("submit", path, "--wait", "--results", f"r{i}") for i, path in enumerate((first, second))]
    for one in both:
        _, err = one.communicate(timeout=400)
        assert one.returncode == 0, err
    cluster.wait_idle()
    assert set(statuses(home, first) + statuses(home, second)) == {"ok"}
    assert attempts(home) == [1] * 6  # 2 trainings, 2 + 2 cells


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("moment", ["before the manifest", "before sbatch", "after sbatch"])
def test_a_submitter_killed_at_any_moment_loses_nothing(slurm, home, suite, moment):
    cluster = slurm()
    path = suite("[methods]\nwalker = {}" + SLURM, top="seeds = 3")
    code = f"""
import os, signal
from bench import artifacts
from bench.slurm import submission
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} == "before sbatch": submission.sbatch = die
real = artifacts.write_json
def write(path, value):
    if path.name == {{"before the manifest": "manifest.json", "after sbatch": "jobs.json"}}.get({moment!r}): die()
    real(path, value)
artifacts.write_json = write
import sys
sys.argv = ["bench", "submit", {str(path)!r}]
from bench.cli import main
main()
"""
    dead = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert len(cluster.squeue()) == (3 if moment == "after sbatch" else 0)
    one = start("submit", path, "--wait")
    _, err = one.communicate(timeout=400)
    assert one.returncode == 0, err
    cluster.wait_idle()
    assert set(statuses(home, path)) == {"ok"}
    assert sorted(set(attempts(home))) == [1]
    assert ledger.views(home / "runs", ask=False) == []


@pytest.mark.slow
@pytest.mark.slurm
def test_a_submitter_killed_at_random_moments_loses_nothing(slurm, home, suite):
    cluster = slurm()
    path = suite("[methods]\nwalker = {}" + SLURM.replace("pack = 0", "pack = 5"), top="seeds = 8")
    moments = random.Random(1)
    for _ in range(4):
        one = start("submit", path)
        time.sleep(moments.uniform(0.2, 0.6))
        one.kill()
        one.communicate()
    one = start("submit", path, "--wait")
    _, err = one.communicate(timeout=400)
    assert one.returncode == 0, err
    cluster.wait_idle()
    assert set(statuses(home, path)) == {"ok"}


@pytest.mark.slow
@pytest.mark.slurm
def test_what_sbatch_refuses_is_told_in_one_line_and_leaves_nothing_open(slurm, home, suite, bench_process):
    slurm()
    path = suite("[methods]\nwalker = {}" + SLURM + 'partition = "no; such"')
    done = bench_process("submit", path)
    assert done.code == 2
    assert done.err.strip().startswith(f"bench: {path}: slurm: sbatch refused")
    assert "invalid partition specified: no; such" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert ledger.views(home / "runs", ask=False) == []


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_that_no_node_could_launch_is_submitted_anew(slurm, home, suite):
    cluster = slurm()
    path = suite("[methods]\nwalker = {}" + SLURM)
    with cluster.failing_launches():
        subprocess.run([sys.executable, "-m", "bench", "submit", str(path)], check=True)
        _until(lambda: all(v.dead for v in ledger.views(home / "runs")))
        (view,) = ledger.views(home / "runs")
        assert (view.state.word, view.word) == ("PENDING", "dead")  # held: SLURM would keep it for ever
    one = start("submit", path, "--wait")
    _, err = one.communicate(timeout=400)
    assert one.returncode == 0, err
    assert f"died: job {view.job} could not be launched, SLURM held it" in err
    cluster.wait_idle()
    assert set(statuses(home, path)) == {"ok"}
    assert set(attempts(home)) == {1}


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_killed_without_a_word_is_found_dead_and_tried_again(slurm, home, suite):
    for accounting in (True, False):
        cluster = slurm(accounting=accounting)
        path = suite(f"[methods.napper]\nnap = 0.3{accounting:d}" + SLURM, top="seeds = 1\nbudget = 480")
        done = subprocess.run([sys.executable, "-m", "bench", "submit", str(path)], check=False)
        assert done.returncode == 0
        _until(lambda: any(v.beat.get("running") for v in ledger.views(home / "runs", ask=False)))
        for pid in cluster.tasks():
            os.kill(pid, signal.SIGKILL)
        _until(lambda: any(v.dead for v in ledger.views(home / "runs")))
        one = start("submit", path, "--wait")
        _, err = one.communicate(timeout=400)
        assert one.returncode == 0, err
        assert "died: job" in err
        assert set(statuses(home, path)) == {"ok"}
        (task,) = plan.cells(load(str(path)))
        status = artifacts.read_json(artifacts.folder(home / "runs", task.cell.training).status)
        assert status["attempt"] == 2


def _until(what, seconds=180.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_rules_are_read_before_slurm_is_asked(home, suite, bench):
    done = bench("submit", suite("[methods]\nwalker = {}\n[slurm]\ncpu = 3"))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "unknown key 'cpu'; did you mean 'cpus'?" in done.err
    assert resources.Resources().cpus == 2
