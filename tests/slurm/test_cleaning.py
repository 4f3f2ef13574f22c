"""What is spent goes, what anybody needs stays, and what jobs cost stays known."""

from __future__ import annotations

import os
import time

import pytest

from bench import artifacts
from bench.slurm import hours

OLD = time.time() - 30 * 86400


@pytest.fixture
def spent(home, suite, bench):
    """A suite that was run, and beside its results what is spent."""
    path = suite(top="seeds = 2")
    assert bench("run", path, "--jobs", 0).code == 0
    done, other = sorted((home / "runs").glob("walker*"))
    cell = next((done / "cells").glob("*.json")).stem
    spent = [done / "checkpoint.safetensors", done / "work" / cell / "0" / "checkpoint.safetensors"]
    half = other / ".model.safetensors.0123456789ab"
    needed = [
        done / "work" / "another_cell" / "0" / "checkpoint.safetensors",
        other / ".model.safetensors.ffffffffffff",
    ]
    log = done / "log"
    for file in (*spent, half, *needed, log):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 2**20)
    for file in (half, log):
        os.utime(file, (OLD, OLD))
    for name, over in (("20200101-000000-aa", True), ("20200101-000000-bb", False)):
        made = home / "runs" / ".slurm" / name
        asked = {"gpus": "a100:2", "cpus": 4, "nodes": 1, "account": "lab"}
        array = {"name": "x", "first": 0, "count": 1, "resources": asked, "follows": None, "after": []}
        artifacts.write_json(
            made / "manifest.json", {"suite": "toy", "created": OLD, "packs": [{}], "arrays": [array]}
        )
        artifacts.write_json(made / "beats" / "0.json", {"seconds": 1800.0})
        if over:
            artifacts.write_json(made / "exits" / "0.json", {"outcome": "done"})
        for one in (made, *made.rglob("*")):
            os.utime(one, (OLD, OLD))
    return path, [*spent, half, log], needed


def everything(home):
    return {str(p.relative_to(home)) for p in (home / "runs").rglob("*") if p.is_file() and p.name != ".lock"}


def test_what_is_spent_goes_and_no_result_with_it(spent, bench, home):
    path, gone, needed = spent
    before, rows = everything(home), (home / "results" / "toy.csv").read_bytes()
    shown = bench("clean", "--dry-run")
    assert everything(home) == before
    assert "would be freed" in shown.out
    done = bench("clean")
    assert done.out == shown.out.replace("would be freed", "freed")
    assert " 4.0 MB freed" in done.out
    left = everything(home)
    assert not any(file.exists() for file in gone)
    assert all(file.exists() for file in needed)
    assert before - left == {str(f.relative_to(home)) for f in gone} | {
        f"runs/.slurm/20200101-000000-aa/{name}" for name in ("manifest.json", "beats/0.json", "exits/0.json")
    }
    (home / "results" / "toy.csv").unlink()
    assert bench("run", path, "--jobs", 0).code == 0
    assert (home / "results" / "toy.csv").read_bytes() == rows


def test_what_jobs_cost_stays_known(spent, bench, home):
    expected = {"lab": [2.0, 4.0]}  # two jobs of half an hour with 2 GPUs and 4 CPUs
    assert hours.spent(home / "runs", "toy") == expected
    bench("clean")
    assert hours.spent(home / "runs", "toy") == expected
    assert hours.spent(home / "runs", "other") == {}


def test_young_files_stay(spent, bench, home):
    _, gone, _ = spent
    bench("clean", "--older", "60 d")
    assert gone[-1].exists()
    assert len(list((home / "runs" / ".slurm").glob("2020*"))) == 2
    assert "--older must be minutes" in bench("clean", "--older", "soon").err


def test_a_folder_that_is_not_there_frees_nothing(bench, home):
    assert bench("clean").out.endswith("0.0 MB freed\n")
    assert not (home / "runs").exists()
