"""Several processes train the model that one would: they share every batch, and fail, pause and resume as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench import artifacts, distributed, ranks, registry, store, tensors
from bench.distributed import LostError, Seat, World
from bench.launch import LocalProcesses, Places, executor, tasks
from bench.planning import plan
from bench.planning.suite import load
from bench.records import BenchError, Data, Training, Unit, plain, training_from
from bench.session import Session
from bench.worker.training import _check_processes

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Training(Unit.of("rotation", {"lr": 0.1}), Unit.of("alexnet_small"), Data(Unit.of("digits")))

# What two processes change is the order of sums: relative to the largest weight of a tensor, and to a loss.
# Measured after 60 steps, more than here: at most 1e-5 of weights (mean_teacher, by Adam) and 2e-6 of losses.
WEIGHTS, LOSSES = 1e-4, 1e-4

SUITE = """
seeds = [3]
budget = "4 epochs"
processes = {processes}
backbone = {{name = "alexnet_small", widths = [4, 6, 6, 6, 8], stem_stride = 1, batch_norm = false}}
data = {{dataset = {{name = "digits", side = 16}}, labels = 60, unlabeled = 140}}
[methods]
{methods}
[protocols]
knn = {{k = 10}}
"""
METHODS = """
rotation = {batch_size = 20, lr = 0.05, augment = "resized_crop"}
turned_once = {use = "rotation", copies = "one", batch_size = 20, lr = 0.05, augment = "none"}
supervised = {batch_size = 6, lr = 0.05, dropout = 0.0, augment = "pad_crop_flip"}
exact = {use = "instance_discrimination", softmax = "nonparametric", proximal = 0.5, dim = 8, batch_size = 20}
nce = {use = "instance_discrimination", negatives = 16, dim = 8, batch_size = 20}
mean_teacher = {batch_size = 20, labeled_batch = 6}
pi_model = {batch_size = 20}
"""


def write(home, methods=METHODS, processes="[1, 2]", name="pairs", **changes):
    text = SUITE.format(processes=processes, methods=methods)
    for key, value in changes.items():
        text = text.replace('budget = "4 epochs"', f"{key} = {value}") if key == "budget" else text
    path = home / f"{name}.toml"
    path.write_text(text)
    return path


def made(path, home):
    """{(label, processes): folder of the training}."""
    found = plan.cells(load(str(path)))
    return {
        (p.label, p.cell.training.processes): artifacts.folder(home / "runs", p.cell.training) for p in found
    }


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is rank 1 of 2; what the other one sends is what a test says."""
    monkeypatch.setattr(distributed, "_joined", [World(1, 2)])


# ---- identity ------------------------------------------------------------------------------------


def test_fields_that_came_later_are_told_only_where_they_are_not_as_before():
    assert not {"processes", "sync_batch_norm"} & set(plain(PLAIN))
    two = replace(PLAIN, processes=2, sync_batch_norm=True)
    assert plain(two) == {**plain(PLAIN), "processes": 2, "sync_batch_norm": True}
    assert plain(replace(PLAIN, processes=2)) == {**plain(PLAIN), "processes": 2}
    for training in (PLAIN, two, replace(PLAIN, init=two)):
        assert training_from(json.loads(json.dumps(plain(training)))) == training


def test_a_training_keeps_the_id_from_before_there_were_processes():
    stem = "rotation-alexnet_small-digits-s0-"
    assert artifacts.training_stem(PLAIN) == f"{stem}bb42b8d1bc"
    ids = {
        artifacts.training_settings(replace(PLAIN, **change))
        for change in ({}, {"processes": 2}, {"processes": 3}, {"processes": 2, "sync_batch_norm": True})
    }
    assert len(ids) == 4


# ---- plan ----------------------------------------------------------------------------------------


def test_methods_that_cannot_are_planned_on_one_process(home):
    methods = "rotation = {}\ndeepcluster = {}\nrandom = {}\nsupervised = {}"
    path = write(home, methods, "[1, 2, 4]")
    path.write_text(path.read_text().replace("seeds = [3]", "seeds = [3]\nsync_batch_norm = [false, true]"))
    found = {}
    for one in plan.cells(load(str(path))):
        key = (one.cell.training.processes, one.cell.training.sync_batch_norm)
        found.setdefault(one.label, []).append(key)
    several = [(1, False), (2, False), (4, False), (2, True), (4, True)]
    assert {k: sorted(v) for k, v in found.items()} == {
        "rotation": sorted(several),
        "supervised": sorted(several),
        "deepcluster": [(1, False)],
        "random": [(1, False)],
    }


def test_only_methods_that_say_so_are_distributed():
    able = {name for name, info in registry.units("method").items() if info.traits["distributed"]}
    assert able >= {"rotation", "supervised", "instance_discrimination", "mean_teacher", "pi_model"}
    assert not able & {"deepcluster", "random", "random_rescaled", "raw_pixels", "mean_color"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("processes = 0", "processes must be a positive whole number, not 0"),
        ('processes = "two"', "processes must be a positive whole number, not 'two'"),
        ("sync_batch_norm = 1", "sync_batch_norm must be true or false, not 1"),
    ],
)
def test_wrong_values_are_one_line(home, line, told):
    path = write(home, "rotation = {}", 1)
    path.write_text(f"{line}\n" + path.read_text().replace("processes = 1\n", ""))
    with pytest.raises(BenchError, match=told):
        load(str(path))


def test_rows_and_cores_count_processes(home):
    path = write(home, "rotation = {}\nrandom = {}", 2)
    planned = plan.cells(load(str(path)))
    settings = {r["method"]: json.loads(r["method_settings"]) for r in store.collect("x", planned, home)}
    assert settings["rotation"]["processes"] == 2
    assert not {"processes", "sync_batch_norm"} & {*settings["random"]}
    cores = len(os.sched_getaffinity(0))
    assert executor(None, tasks(planned)).count == max(1, cores // 2)


# ---- sharing -------------------------------------------------------------------------------------


def test_a_process_alone_shares_with_nobody():
    rows, flag = torch.arange(6), torch.ones(())
    assert distributed.current() == World(0, 1)
    assert distributed.share(rows) is rows
    assert distributed.gathered(rows) is rows
    assert distributed.averaged(flag) is flag
    assert distributed.everyones(7) == [7]
    assert [distributed.agreed(flag) for flag in (True, False)] == [True, False]


def test_each_rank_has_its_slice_and_gathers_the_whole_in_order(second_of_two, monkeypatch):
    whole = torch.arange(12).view(6, 2)
    labeled, others = whole[:2], whole[2:]
    parts = [torch.cat([labeled[:1], others[:2]]), torch.cat([labeled[1:], others[2:]])]
    mine = torch.cat([distributed.share(labeled), distributed.share(others)])
    assert torch.equal(mine, parts[1])

    def all_gather(found, sent):
        assert sent.is_contiguous()
        for target, part in zip(found, parts, strict=True):
            target.copy_(part)

    monkeypatch.setattr(distributed.dist, "all_gather", all_gather)
    assert torch.equal(distributed.gathered(mine, [1, 2]), whole)
    assert torch.equal(distributed.gathered(mine), torch.cat(parts))
    parts[:] = [part % 2 == 0 for part in parts]
    found = distributed.gathered(mine % 2 == 0, [1, 2])
    assert found.dtype == torch.bool
    assert torch.equal(found, whole % 2 == 0)


@pytest.mark.parametrize(("batch", "labeled", "wrong"), [(21, 0, 21), (20, 5, 15), (22, 6, None)])
def test_a_batch_divides_among_the_processes_or_says_so(second_of_two, batch, labeled, wrong, tmp_path):
    from bench.contracts import TrainingSet
    from bench.data.sources import Resident
    from methods._loop import _Feed
    from methods.mean_teacher import MeanTeacher

    images = Resident(torch.zeros(60, 3, 8, 8, dtype=torch.uint8))
    data = TrainingSet(images, torch.cat([torch.arange(20) % 2, torch.full((40,), -1)]), 2)
    run = Session(tmp_path, seed=1, device=torch.device("cpu"), cache=None)
    loop = MeanTeacher(batch_size=batch, labeled_batch=labeled)
    if wrong:
        with pytest.raises(BenchError, match=f"{wrong} images of a batch do not divide among 2 processes"):
            _Feed(loop, data, run)
        return
    feed = _Feed(loop, data, run)
    mine = next(iter(feed.batches({}, 0, 0)))
    distributed._joined[-1] = World()
    whole = next(iter(_Feed(loop, data, run).batches({}, 0, 0)))
    assert feed.parts == [3, 8]
    assert mine.index.tolist() == [*whole.index[3:6].tolist(), *whole.index[14:].tolist()]
    assert all(torch.equal(a[:3], b[3:6]) for a, b in zip(mine.views, whole.views, strict=True))


def test_only_rank_0_writes(second_of_two, tmp_path):
    from torch import nn

    run = Session(tmp_path, seed=1, device=torch.device("cpu"), cache=None, snapshots=2)
    run.snapshot(1, 2, nn.Linear(1, 1))
    run.picture("x", torch.zeros(3, 2, 2))
    run.assignments(1, torch.zeros(3))
    run._save(1, {"x": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


# ---- seats ---------------------------------------------------------------------------------------


def test_a_seat_is_read_from_the_environment_that_it_writes():
    seat = Seat(World(2, 4), 1, "node7", (23_456,))
    assert distributed.from_environment(seat.environment()) == seat
    with pytest.raises(BenchError, match="WORLD_SIZE must be a number for a process that trains with others"):
        distributed.from_environment({**seat.environment(), "WORLD_SIZE": ""})


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """SLURM's tool, as far as it is asked: names hosts from a list in brackets."""
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && printf "127.0.0.1\\n$3\\n"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")


def slurm(rank, size=2, job=4242):
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(size),
        "SLURM_LOCALID": str(rank),
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "node[1-2]",
    }


def test_tasks_of_srun_find_the_same_place(scontrol):
    first, second = (distributed.from_slurm(slurm(rank)) for rank in (0, 1))
    assert (first.world, second.world) == (World(0, 2), World(1, 2))
    assert (first.address, first.ports) == (second.address, second.ports) == ("127.0.0.1", first.ports)
    assert len(set(first.ports)) == len(first.ports) > 1
    assert {*first.ports}.isdisjoint(distributed.from_slurm(slurm(0, job=4243)).ports)
    with pytest.raises(BenchError, match="SLURM_NTASKS must be a number"):
        distributed.from_slurm({**slurm(0), "SLURM_NTASKS": ""})


def test_the_store_takes_the_next_port_where_one_is_taken():
    _, seat = distributed.opened(Seat(World(0, 2)))
    held, (port,) = _, seat.ports
    other, later = distributed.opened(Seat(World(0, 2), ports=(port, 0)))
    assert later.ports != seat.ports
    other.set("training", "mine")
    held.set("training", "another's")
    found = distributed.found(Seat(World(1, 2), ports=(port, *later.ports)), "mine", lambda: None)
    assert found.port == later.ports[0]
    with pytest.raises(BenchError, match="no port of"):
        distributed.opened(Seat(World(0, 2), ports=seat.ports))


# ---- what cannot be ------------------------------------------------------------------------------


def test_what_one_process_needs_more_for_is_one_line(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(BenchError, match="random trains in one process only"):
        _check_processes(replace(PLAIN, method=Unit("random"), processes=2), cpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BenchError, match="2 processes need 2 GPUs, and 1 are here"):
        _check_processes(replace(PLAIN, processes=2), gpu)
    _check_processes(replace(PLAIN, processes=2), torch.device("cuda:0"))


def test_the_rank_that_ended_first_is_named():
    class Ended:
        def __init__(self, code):
            self.code = code

        def poll(self):
            return self.code

    board, _ = distributed.opened(Seat(World(0, 4)))
    ranks._judge([Ended(None), Ended(0), Ended(None)], board, 4)
    distributed.tell(board, 1, {"status": "failed", "reason": "RuntimeError: Connection closed by peer"})
    distributed.tell(board, 3, {"status": "oom", "reason": "out of memory: 3 GB"})
    with pytest.raises(LostError) as told:
        ranks._judge([Ended(1), Ended(None), Ended(1)], board, 4)
    assert told.value.outcome == {"status": "oom", "reason": "rank 3 of 4: out of memory: 3 GB"}
    with pytest.raises(LostError, match=r"rank 2 of 4 died \(signal 9\)"):
        ranks._judge([Ended(1), Ended(-9), Ended(1)], board, 4)


# ---- two processes -------------------------------------------------------------------------------


def difference(first, second):
    """The largest difference of two models' weights, relative to the largest weight of each tensor."""
    assert first.keys() == second.keys()
    return max(float((first[k] - second[k]).abs().max() / first[k].abs().max()) for k in first)


@pytest.mark.slow
def test_two_processes_train_what_one_does(home, bench_process):
    path = write(home)
    done = bench_process("run", path, "--jobs", 1)
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    found = made(path, home)
    labels = sorted({label for label, _ in found})
    assert len(found) == 2 * len(labels) == 14
    for label in labels:
        one, two = found[label, 1], found[label, 2]
        weights = difference(tensors.read(one.model), tensors.read(two.model))
        curves = [pd.read_parquet(files.path / "curves.parquet") for files in (one, two)]
        assert curves[0].columns.tolist() == curves[1].columns.tolist()
        assert curves[0]["step"].tolist() == curves[1]["step"].tolist()
        losses = np.abs(curves[0] / curves[1] - 1).max().max()
        assert 0 < weights < WEIGHTS, label
        assert losses < LOSSES, label
        status = [artifacts.read_json(files.status) for files in (one, two)]
        assert status[0]["images_seen"] == status[1]["images_seen"]


ENDLESS = "rotation = {batch_size = 30, lr = 0.05, augment = 'none'}"


@pytest.mark.slow
def test_two_processes_normalize_as_one_does(home, bench_process):
    text = """
seeds = [3]
budget = "4 epochs"
backbone = {name = "alexnet_small", widths = [4, 6, 6, 6, 8], stem_stride = 1}
data = {dataset = {name = "digits", side = 16}, labels = 60, unlabeled = 140}
methods = {rotation = {batch_size = 20, lr = 0.05, augment = "none"}}
protocols = {knn = {k = 10}}
"""
    (home / "one.toml").write_text(text)
    (home / "two.toml").write_text(f"processes = 2\nsync_batch_norm = true\n{text}")
    found = []
    for name in ("one", "two"):
        done = bench_process("run", f"{name}.toml")
        assert done.code == 0, done.err
        ((_, folder),) = made(home / f"{name}.toml", home).items()
        found.append(tensors.read(folder.model))
    for key, value in found[0].items():
        other = found[1][key]
        assert (value - other).abs().max() <= WEIGHTS * value.abs().max().clamp(min=1e-3), key


def places(home):
    return Places(home / "runs", home / "results", home / "data", home / "cache")


def peers(pid):
    """Further ranks that a worker started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            words = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"bench.join" in words:
            found.append(int(path.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def watched(crew, path, home, act):
    """Run a suite; ``act`` once, as soon as it trains. Problems, and the further ranks' numbers."""
    problems, seen, paused = [], [], False
    for event in crew.run(tasks(plan.cells(load(str(path)))), places(home)):
        if event.kind == "progress" and event.what == "train" and event.done > 20 and not seen:
            seen += peers(next(iter(crew.pids())))
            act(seen)
        problems += event.problems
        paused |= event.kind == "paused"
    return problems, seen, paused


@pytest.mark.slow
@pytest.mark.parametrize("who", ["peer", "worker"])
def test_a_killed_rank_fails_the_training_in_one_line_and_leaves_nobody(home, who):
    path = write(home, ENDLESS, 3, budget=20_000_000)
    crew = LocalProcesses(1)

    def kill(pids):
        assert len(pids) == 2
        os.kill(pids[1] if who == "peer" else next(iter(crew.pids())), signal.SIGKILL)

    started = time.monotonic()
    problems, seen, _ = watched(crew, path, home, kill)
    (problem,) = problems
    (files,) = set(made(path, home).values())
    status = artifacts.read_json(files.status)
    assert status["status"] == "killed"
    assert "\n" not in problem
    assert "died (signal 9)" in problem
    if who == "peer":
        assert status["reason"].startswith("rank ")
    until = time.monotonic() + 20
    while any(map(alive, seen)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, seen))
    assert time.monotonic() - started < 120


@pytest.mark.slow
def test_paused_at_one_step_and_resumed_it_ends_with_the_same_bits(home):
    calm = write(home, ENDLESS, 3, name="calm", budget=20_000)
    problems, _, _ = watched(LocalProcesses(1), calm, home, lambda _: None)
    assert problems == []
    ((_, files),) = made(calm, home).items()
    expected, curves = tensors.read(files.model), pd.read_parquet(files.path / "curves.parquet")
    files.path.rename(home / "set aside")
    for cut in range(2):
        crew = LocalProcesses(1)
        problems, seen, paused = watched(crew, calm, home, lambda _, crew=crew: crew.pause())
        assert (problems, paused) == ([], True), cut
        assert len(seen) == 2
        assert files.checkpoint.exists()
        assert not files.model.exists()
    problems, _, paused = watched(LocalProcesses(1), calm, home, lambda _: None)
    assert (problems, paused) == ([], False)
    found = tensors.read(files.model)
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []
    assert pd.read_parquet(files.path / "curves.parquet").equals(curves)


@pytest.mark.slow
def test_what_another_rank_raises_is_told(home, toys, forgetting):
    path = write(home, ENDLESS, 2)
    (files,) = set(made(path, home).values())
    code = (
        "import sys, os; from bench.contracts import Images; from bench.data import sources\n"
        "if os.environ.get('RANK') == '1':\n"
        "    def views(*_, **__): raise ValueError('a bad disk')\n"
        "    sources.Resident.views = views\n"
    )
    (toys / "sitecustomize.py").write_text(code)
    problems, _, _ = watched(LocalProcesses(1), path, home, lambda _: None)
    assert problems == [f"{files.path.name}: rank 1 of 2: ValueError: a bad disk (sitecustomize.py:3)"]
    assert artifacts.read_json(files.status)["status"] == "failed"


@pytest.mark.slow
def test_tasks_of_srun_train_together(home, scontrol):
    """Without SLURM: its variables, and the same lines to both tasks."""
    path = write(home, ENDLESS, "[1, 2]")
    cells = [p.cell for p in plan.cells(load(str(path)))]
    place = {k: str(getattr(places(home), k)) for k in ("runs", "data", "cache")}
    one, two = cells
    lines = [
        {"training": plain(c.training), "cells": [plain(c)], "place": place}
        for c in (two, one, two)  # at last one that is made already: the follower is not kept waiting
    ]
    tasks_of_step = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.serve", "--slurm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **slurm(rank, job=os.getpid()), "PYTHONPATH": str(ROOT)},
        )
        for rank in (1, 0)
    ]
    follower, lead = tasks_of_step
    for line in lines:
        for task in tasks_of_step:
            task.stdin.write(json.dumps(line) + "\n")
            task.stdin.flush()
        while (event := json.loads(lead.stdout.readline()))["event"] == "progress":
            pass
        assert event == {"event": "end", "problems": []}
    for task in tasks_of_step:
        task.stdin.write('{"stop": true}\n')
        task.stdin.flush()
    assert [task.wait(30) for task in tasks_of_step] == [0, 0]
    assert follower.stdout.read() == ""
    for task in tasks_of_step:
        task.stdin.close()
        task.stdout.close()
    models = [artifacts.folder(home / "runs", c.training).model for c in cells]
    assert 0 < difference(*map(tensors.read, models)) < WEIGHTS
