"""One model over two nodes: srun starts its processes, and the numbers are those of two processes here."""

from __future__ import annotations

import csv

import pytest

from bench.records import EQUAL_COLUMNS
from bench.slurm.resources import Resources
from bench.slurm.supervisor import Crew, srun

SUITE = """
seeds = 1
budget = "2 epochs"
processes = 2
backbone = {name = "alexnet_small", widths = [8, 8, 8, 8, 8], stem_stride = 1, batch_norm = false}
data = {dataset = {name = "digits", side = 16}, labels = 200}
[methods]
supervised = {batch_size = 20, augment = "none"}
rotation = {batch_size = 50, augment = "none"}
[protocols]
knn = {k = 10}
[slurm]
nodes = 2
cpus = 1
mem = "3G"
"""


def test_workers_share_gpus_and_cpus_by_processes(monkeypatch):
    assert Resources(gpus=4).workers(1, 2) == 2
    assert Resources(cpus=8).workers(2, 2) == 2
    assert Resources(cpus=8, nodes=2).workers(1, 2) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    crew = Crew(2, 4, 60, processes=2)
    crew.workers = {0: None}
    assert crew.environment(0) == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert crew.environment(1) == {"CUDA_VISIBLE_DEVICES": "6,7"}


def test_only_several_nodes_need_srun():
    assert srun(1, 4, 1) == srun(2, 1, 1) == []
    assert srun(2, 4, 3)[-3:] == ["--nodes=2", "--ntasks=4", "--cpus-per-task=3"]


@pytest.mark.slow
@pytest.mark.slurm
def test_two_nodes_come_to_the_numbers_of_two_processes(slurm, home, bench_process):
    cluster = slurm()
    (home / "pair.toml").write_text(SUITE)
    here = bench_process("run", "pair.toml", "--runs", "calm", "--results", "calm_results")
    assert here.code == 0, here.err
    there = bench_process("submit", "pair.toml", "--wait")
    assert there.code == 0, there.err

    def numbers(folder):
        with (home / folder / "pair.csv").open(encoding="utf-8") as file:
            return [tuple(row[c] for c in ("label", *EQUAL_COLUMNS)) for row in csv.DictReader(file)]

    assert numbers("results") == numbers("calm_results")
    # Step 0 of a job is the supervisor's; the worker's processes are step 1: two tasks on two nodes.
    steps = cluster.run("sacct", "--noheader", "--parsable2", "--format=JobID,NTasks,NNodes").stdout
    assert [line for line in steps.splitlines() if line.endswith(".1|2|2")], steps
    ended = cluster.run("sacct", "--noheader", "--parsable2", "--format=JobID,State").stdout
    assert "FAILED" not in ended, ended
