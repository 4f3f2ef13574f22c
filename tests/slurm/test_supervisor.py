"""Inside a job, here without one: a pack is worked off, paused, watched and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bench import artifacts, store
from bench.launch import Places
from bench.planning import plan
from bench.planning.suite import load
from bench.slurm import cluster, draft, ledger, resources, submission, sweeping
from bench.slurm.supervisor import Beat


@pytest.fixture
def places(home):
    return Places(home / "runs", home / "results", home / "data", home / "cache")


@pytest.fixture
def written(places, monkeypatch, home):
    """A submission of a suite as it lies on the disk, without sbatch."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))

    def write(path):
        loaded = load(str(path))
        rules = resources.rules(loaded)
        found = draft.draft(plan.cells(loaded), rules, places, [], cluster.Limits(1000, accounting=True))
        return submission._written(found.arrays, rules, places)

    return write


@pytest.fixture
def often(monkeypatch):
    """Trainings of seconds are saved after every step, so that a test sees when they are under way."""
    monkeypatch.setenv("BENCH_CHECKPOINT", "0")


def start(made, index=0):
    command = [sys.executable, "-m", "bench.slurm.supervisor", str(made.folder), str(index)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(made, index=0):
    process = start(made, index)
    _, err = process.communicate(timeout=400)
    return process.returncode, err


def statuses(path, places):
    return [(r["status"], r["reason"]) for r in store.collect("x", plan.cells(load(str(path))), places.runs)]


def exit_of(made, index=0):
    return json.loads(made.file("exits", index).read_text())


@pytest.mark.slow
def test_a_pack_is_worked_off_and_says_so(suite, places, written):
    path = suite("[methods]\nwalker = {trouble = 'raise', trouble_seed = 1}", top="seeds = 3")
    made = written(path)
    code, err = finish(made)
    assert code == 0, err
    assert [status for status, _ in statuses(path, places)] == ["ok", "ok", "failed", "ok", "ok"]
    assert exit_of(made)["outcome"] == "done"
    (problem,) = exit_of(made)["problems"].values()
    assert "told to go wrong" in problem[0]
    beat = json.loads(made.file("beats", 0).read_text())
    assert (beat["starts"], beat["running"], list(beat["ended"].values())) == (1, [], [problem])
    assert ledger.views(places.runs, ask=False) == []


def test_a_pack_that_is_over_is_not_begun_again(suite, places, written):
    path = suite()
    made = written(path)
    ledger.close(made, 0, "abandoned", "its submitter died")
    assert finish(made)[0] == 0
    assert [status for status, _ in statuses(path, places)] == ["pending"]


@pytest.mark.slow
def test_told_to_stop_it_saves_and_goes_on_later_without_counting_an_attempt(suite, places, written, often):
    path = suite("[methods.napper]\nnap = 0.2", top='seeds = 3\nbudget = "20 epochs"')
    made = written(path)
    process = start(made)
    deadline = time.monotonic() + 60
    while not list(places.runs.glob("napper*/checkpoint.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == ledger.AGAIN
    assert json.loads(made.file("beats", 0).read_text())["saved"]
    assert time.monotonic() - begun < 5
    assert not made.file("exits", 0).exists()
    assert not list(places.runs.glob("napper*/status.json"))
    assert list(places.runs.glob("napper*/checkpoint.safetensors"))
    assert finish(made)[0] == 0
    assert {status for status, _ in statuses(path, places)} == {"ok"}
    assert {json.loads(p.read_text())["attempt"] for p in places.runs.glob("*/status.json")} == {1}


@pytest.mark.slow
def test_a_worker_without_a_sign_of_life_is_ended_with_the_reason(suite, places, written):
    path = suite("[methods.napper]\nhang = 1\n[slurm]\nstall = 0.3", top="seeds = 2")
    made = written(path)
    assert finish(made)[0] == 0
    found = statuses(path, places)
    assert found[-1] == ("timeout", "no sign of life for 0.3 minutes")
    assert {status for status, _ in found[:-1]} == {"ok"}


@pytest.mark.slow
def test_the_largest_worker_goes_before_the_job_runs_out_of_memory(suite, places, written, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1800")
    path = suite("[methods.napper]\nhog = 1", top='seeds = 2\nbudget = "4 epochs"')
    made = written(path)
    assert finish(made)[0] == 0
    found = statuses(path, places)
    assert found[-1][0] == "oom"
    assert found[-1][1].endswith("MB of the job's 1800 MB")
    assert {status for status, _ in found[:-1]} == {"ok"}


def test_a_follower_never_trains(suite, places, written):
    path = suite()
    made = written(path)
    pack = ledger.pack(made, 0)
    pack["tasks"][0]["train"] = False
    ledger.write_packs(made.folder, [pack])
    assert finish(made)[0] == 0
    assert [status for status, _ in statuses(path, places)] == ["pending"]


def test_what_cannot_save_in_a_time_slice_is_given_up_after_three(suite, places, written):
    path = suite(top="seeds = 3")
    made = written(path)
    records = ledger.pack(made, 0)["tasks"]
    left = []
    for _ in range(4):
        beat = Beat(made, 0, 1, places)
        left.append(len(beat.without_hopeless([t for r in records if (t := beat.left(r))])))
        beat.write(force=True)
    assert left == [3, 3, 3, 2]
    assert statuses(path, places)[0] == (
        "timeout",
        "nothing could be saved in 3 time slices: ask for more time",
    )


def test_a_cell_a_time_slice_is_progress(suite, places, written):
    path = suite(protocols="norms = {factor = [1, 2, 3, 4, 5]}")
    made = written(path)
    record = ledger.pack(made, 0)["tasks"][0]
    cells = [p.cell for p in plan.cells(load(str(path)))]
    files = artifacts.folder(places.runs, cells[0].training)
    (files.path / "cells").mkdir(parents=True)
    files.status.write_text(json.dumps({"status": "ok"}))
    for done, cell in enumerate(cells[:4]):
        beat = Beat(made, 0, 1, places)
        assert len(beat.without_hopeless([beat.left(record)])) == 1
        beat.write(force=True)
        file = files.cell(artifacts.cell_name(cell))
        file.write_text(json.dumps({"status": "ok"}))
        os.utime(file, (1000 + done,) * 2)


def test_a_job_reads_its_own_pack_alone(home):
    packs = [{"tasks": [], "n": n, "é": "ü" * n} for n in range(5)]
    ledger.write_packs(home, packs)
    one = ledger.Submission(home, {})
    assert [ledger.pack(one, n) for n in range(5)] == packs
    assert len((home / "packs.jsonl").read_text().splitlines()) == 6


def test_a_job_of_several_gpus_gives_each_worker_its_own(monkeypatch):
    from bench.slurm.supervisor import Crew

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    crew = Crew(2, 2, 60)
    given = []
    for key in (0, 1):
        given.append(crew.environment(key)["CUDA_VISIBLE_DEVICES"])
        crew.workers[key] = None
    assert given == ["4", "5"]
    del crew.workers[0]
    assert crew.environment(2) == {"CUDA_VISIBLE_DEVICES": "4"}
    assert Crew(2, 1, 60).environment(0) == {}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"


def test_suspects_are_what_the_heartbeat_names_else_the_first_in_order(suite, places, written):
    made = written(suite(top="seeds = 4"))
    names = [ledger.artifacts.training_id(t.training) for t in ledger.tasks(made, 0)]

    def accused(beat):
        view = ledger.View(made, 0, "1", None, beat)
        return [ledger.artifacts.training_id(t.training) for t in sweeping.suspects(view, places)]

    assert accused({"workers": 2, "running": [{"training": names[2]}]}) == [names[2]]
    assert accused({"workers": 2, "running": []}) == names[:2]
    assert accused({"workers": 2, "running": [], "ended": {names[0]: ["x"]}}) == names[1:3]


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("blow", ["SIGTERM alone", "preemption"])
def test_a_job_that_is_told_to_stop_runs_again_by_itself(slurm, often, suite, places, blow):
    cluster = slurm()
    path = suite(
        "[methods.napper]\nnap = 0.3\n[slurm]\nmem = '3G'\ncpus = 2", top='seeds = 2\nbudget = "20 epochs"'
    )
    subprocess.run([sys.executable, "-m", "bench", "submit", path], check=True)
    _until(lambda: len(list(places.runs.glob("napper*/checkpoint.safetensors"))) == 2)
    ((job, _, node),) = cluster.squeue()
    if blow == "preemption":
        cluster.preempt(node, 2)
    else:
        cluster.run("scancel", "--signal=TERM", job)
    (made,) = ledger.submissions(places.runs)
    _until(made.file("exits", 0).exists, 120)
    assert json.loads(made.file("beats", 0).read_text())["starts"] == 2
    assert {status for status, _ in statuses(path, places)} == {"ok"}
    assert {json.loads(p.read_text())["attempt"] for p in places.runs.glob("*/status.json")} == {1}


def _until(what, seconds=180.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
