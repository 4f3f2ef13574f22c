"""Suites on a real SLURM: the same numbers as here, and what goes wrong costs itself only."""

from __future__ import annotations

import csv
import json
import shutil
import time

import pytest

from bench.records import EQUAL_COLUMNS

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

NAPPER = """
[methods.napper]
nap = {nap}
{more}
[slurm]
mem = "{mem}"
cpus = {cpus}
{asks}
"""


def napper(nap=0.01, more="", mem="3G", cpus=2, asks=""):
    return NAPPER.format(nap=nap, more=more, mem=mem, cpus=cpus, asks=asks)


def rows(folder, name="toy"):
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(folder, name="toy"):
    """What two runs must agree in, cell by cell, in the order of the suite."""
    return [(r["training"], r["cell"], *(r[c] for c in EQUAL_COLUMNS)) for r in rows(folder, name)]


def test_smoke_gives_the_values_of_bench_run(slurm, home, bench_process, capsys):
    slurm()
    begun = time.monotonic()
    here = bench_process("run", "smoke", "--runs", "calm", "--results", "calm_results")
    assert here.code == 0, here.err
    between = time.monotonic()
    there = bench_process("submit", "smoke", "--wait")
    assert there.code == 0, there.err
    expected = numbers(home / "calm_results", "smoke")
    assert numbers(home / "results", "smoke") == expected
    assert {row[3] for row in expected} == {"ok"}
    with capsys.disabled():
        spent = f"run {between - begun:.0f} s, submit {time.monotonic() - between:.0f} s"
        print(f"\nsmoke: {len(expected)} rows equal in {EQUAL_COLUMNS}; {spent}")
    again = bench_process("submit", "smoke")
    assert "nothing to submit" in again.err


def test_names_are_data(slurm, home, suite, bench_process):
    slurm()
    label = f"a'; touch {home}/struck; echo $(touch {home}/struck) `touch {home}/struck` ../../x"
    path = suite(f'[methods."{label}"]\nuse = "walker"\n[slurm]\nmem = "2G"\ncpus = 1')
    odd = home / "it's $(touch struck) odd"
    odd.mkdir()
    path = shutil.move(path, odd / "toy.toml")
    done = bench_process("submit", path, "--wait", "--runs", odd / "my 'runs'; echo")
    assert done.code == 0, done.err
    assert [r["label"] for r in rows(home / "results")] == [label] * 2
    assert not [p for p in home.rglob("struck*") if p.parent != home or p.name == "struck"]
    assert {p.name for p in home.iterdir()} <= {"cache", "results", odd.name}


@pytest.mark.parametrize("name", ["a'; echo foo", "../x"])
def test_a_suites_name_leaves_no_folder_outside(slurm, home, suite, bench_process, name):
    slurm()
    text = suite().read_text()
    inner = home / "inner" / "deep"
    inner.mkdir(parents=True)
    (inner / f"{name}.toml").write_text(text)
    before = {p for p in home.rglob("*") if "cache" not in p.parts}
    done = bench_process("submit", f"{inner}/{name}.toml", "--wait", "--runs", inner / "runs")
    told = done.code == 2 and "may hold letters" in done.err
    assert told or done.code == 0, done.err
    new = {p.relative_to(home).parts[0] for p in home.rglob("*") if p not in before} - {"cache"}
    assert new <= {"results", "inner"}
    assert not (inner.parent / "runs").exists()


def test_what_goes_wrong_costs_itself_only(slurm, home, suite, bench_process):
    slurm()
    troubles = """
[methods.raises]
use = "walker"
trouble = "raise"
trouble_seed = 1
[methods.dies]
use = "walker"
trouble = "kill"
trouble_seed = 1
"""
    asks = "stall = 0.7\npack = 20\nretries = 1\n[slurm.methods.hogs]\nmem = '2G'\ncpus = 1"
    more = "hang = -1\n[methods.hangs]\nuse = 'napper'\nhang = 1\n[methods.hogs]\nuse = 'napper'\nhog = 1"
    path = suite(napper(more=more + troubles, asks=asks), top="seeds = 4\nbudget = 144")
    done = bench_process("submit", path, "--wait")
    assert done.code == 2
    found = {
        (r["label"], r["seed"]): (r["status"], r["reason"], r["attempt"]) for r in rows(home / "results")
    }
    wrong = {key: value for key, value in found.items() if value[0] != "ok"}
    assert {key: value[0] for key, value in wrong.items()} == {
        ("hangs", "1"): "timeout",
        ("hogs", "1"): "oom",
        ("raises", "1"): "failed",
        ("dies", "1"): "killed",
    }
    assert len(found) == 20
    assert wrong["hangs", "1"][1] == "no sign of life for 0.7 minutes"
    assert wrong["hogs", "1"][1].startswith("out of memory")
    assert {key[0]: value[2] for key, value in wrong.items()} == {
        "hangs": "2",
        "hogs": "2",
        "dies": "2",
        "raises": "1",  # it would raise again
    }
    assert done.out.count("(3/4)") == 4
    told = bench_process("status", path, "--json")
    assert json.loads(told.out)["counts"] == {"failed": 1, "killed": 1, "ok": 16, "oom": 1, "timeout": 1}
    again = bench_process("submit", path)
    assert "nothing to submit" in again.err
    assert again.err.count("given up: ") == 4


def test_a_training_that_ran_out_of_memory_gets_more(slurm, home, suite, bench_process):
    slurm()
    path = suite(napper(more="hog = 0\nmegabytes = 1700", mem="2G", cpus=1), top="seeds = 1\nbudget = 48")
    done = bench_process("submit", path, "--wait")
    assert done.code == 0, done.err
    assert {r["status"] for r in rows(home / "results")} == {"ok"}
    status = json.loads(next((home / "runs").glob("napper*/status.json")).read_text())
    assert status["attempt"] == 2
    assert status["peak_memory_mb"] > 2048


def test_a_time_limit_is_survived_and_changes_no_number(slurm, home, suite, bench_process):
    slurm()
    path = suite(napper(nap=0.3, asks="time = 1"), top='seeds = 1\nbudget = "48 epochs"')
    done = bench_process("submit", path, "--wait")
    assert done.code == 0, done.err
    starts = [json.loads(p.read_text())["starts"] for p in (home / "runs" / ".slurm").glob("*/beats/0.json")]
    assert max(starts) >= 2  # 43 s of naps do not fit into what a minute leaves
    assert {r["attempt"] for r in rows(home / "results")} == {"1"}
    bench_process("run", path, "--runs", "calm", "--results", "calm_results", "--jobs", "1")
    assert numbers(home / "results") == numbers(home / "calm_results")


def test_an_evaluation_with_resources_of_its_own_comes_after_its_training(slurm, home, suite, bench_process):
    slurm()
    asks = "pack = 0\n[slurm.protocols.norms]\nmem = '2G'\ncpus = 1"
    path = suite(napper(asks=asks, mem="2500M", cpus=1), top="seeds = 2")
    dry = bench_process("submit", path, "--dry-run")
    assert "each after its like in array 0" in dry.out, dry.err
    done = bench_process("submit", path, "--wait")
    assert done.code == 0, done.err
    assert {r["status"] for r in rows(home / "results")} == {"ok"}
    (jobs,) = (json.loads(p.read_text()) for p in (home / "runs" / ".slurm").glob("*/jobs.json"))
    assert len(jobs) == 4


def test_only_what_the_table_lacks_is_submitted(slurm, home, suite, bench_process):
    slurm()
    path = suite(napper(), top="seeds = 3")
    assert bench_process("run", path, "--jobs", "2").code == 0
    whole = rows(home / "results")
    shutil.rmtree(home / "runs")
    with (home / "results" / "toy.csv").open("w", newline="") as file:  # of the middle seed nothing is known
        writer = csv.DictWriter(file, whole[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in whole if row["seed"] != "1")
    dry = bench_process("submit", path, "--missing", "--dry-run")
    assert "toy: 1 cells in 1 jobs" in dry.out, dry.out
    done = bench_process("submit", path, "--missing", "--wait")
    assert done.code == 0, done.err
    assert len(list((home / "runs").glob("napper*/status.json"))) == 1
    assert [(r["seed"], r["value"]) for r in rows(home / "results")] == [
        (r["seed"], r["value"]) for r in whole
    ]
