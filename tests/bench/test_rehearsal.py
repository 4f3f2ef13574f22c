"""``bench rehearse``: finds what would fail, tells no false alarm, and changes only what it lists."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import rehearsal
from bench.planning import plan, suite
from bench.training import descend

SUITE = """
about = "a rehearsal"
budget = 2_000
threads = 1
seeds = 3
backbone = {name = "alexnet_small", widths = [8, 8, 8, 8, 8], stem_stride = 1}
data = {dataset = {name = "digits", side = 16}, labels = 100, label_split = "seed", validation = 100}
target = {validation = 100}

[methods]
supervised = {batch_size = 20}
rotation = {batch_size = 20}

[protocols]
knn = {k = 20}
linear_probe = {epochs = 2, layers = ["conv1", "conv3"]}
"""


def rehearse(path: Path, home: Path, *more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "BENCH_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "bench", "rehearse", str(path), "--jobs", "0", "--shrunk"]
    words += ["--runs", str(home / "runs"), "--data", str(home / "data"), *more]
    return subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, check=False)


class _Run:
    device, seed, steps = torch.device("cpu"), 0, 6

    def __init__(self):
        self.kept, self.logged = [], []

    def resume(self, state):
        return 0

    def log(self, step, values):
        self.logged.append(step)

    def progress(self, done, total):
        self.kept.append((done, total))

    def checkpoint(self, done, state, *, force=False):
        self.last = done, force


def test_a_descent_takes_its_first_steps_and_its_last():
    run, begun, seen = _Run(), [], []

    def update(done, batch):
        seen.append((done, batch))
        return {"loss": torch.zeros(())}

    descend(
        run,
        total=1000,
        per_epoch=4,
        state={},
        batches=lambda epoch, first: ((epoch, i) for i in range(first, 4)),
        update=update,
        begin_epoch=begun.append,
    )
    assert [done for done, _ in seen] == [0, 1, 2, 3, 4, 999]
    assert seen[-1][1] == (249, 3) and begun == [0, 1]
    assert run.last == (1000, True) and run.logged == [1, 2, 3, 4, 5, 1000]


def test_only_what_is_listed_changes(tmp_path):
    (tmp_path / "mine.toml").write_text(SUITE)
    planned = plan.cells(suite.load(str(tmp_path / "mine.toml")))
    found = rehearsal.combinations(planned, 8, 32)
    assert len(planned) == 12 and len(found) == 4 and all(one.count == 3 for one in found)
    one = next(o for o in found if o.first.label == "supervised" and o.cell.protocol.name == "knn")
    before, after = one.first.cell, one.cell
    assert dict(before.training.method.settings) | {"batch_size": 8} == dict(after.training.method.settings)
    assert before.training.backbone == after.training.backbone and before.protocol == after.protocol
    assert (after.training.data.labels, after.training.data.validation, after.aim.validation) == (8, 8, 8)
    assert set(one.shrunk) == {
        "supervised.batch_size 20 -> 8",
        "data.labels 100 -> 8",
        "data.validation 100 -> 8",
        "target.validation 100 -> 8",
    }


MUTATIONS = [
    ('"conv3"', '"conv9"'),
    ("rotation = {batch_size = 20}", 'rotation = {batch_size = 20, crop = 64, augment = "crop_flip"}'),
    ("supervised = {batch_size = 20}", "supervised = {batch_size = 20, lr = 1e30}"),
    ("widths = [8, 8, 8, 8, 8]", "widths = [8, 8, 8]"),
    ("side = 16", 'side = 16, color = "x"'),
    ("rotation = {batch_size = 20}", 'rotation = {batch_size = 20, schedule = "setp"}'),
    ("rotation = {batch_size = 20}", 'rotation = {batch_size = 20, optimizer = "adm"}'),
    ("rotation = {batch_size = 20}", 'rotation = {batch_size = 20, augment = "flp"}'),
    ("labels = 100", 'labels = "some"'),
    ("knn = {k = 20}", "knn = {k = 0}"),
]


@pytest.mark.slow
def test_every_mutation_is_found_and_the_whole_suite_is_not(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SUITE)
    whole = rehearse(path, tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "all 4 combinations ok" in whole.stdout and not (tmp_path / "results").exists()
    missed = []
    for old, new in random.Random(15).sample(MUTATIONS, len(MUTATIONS)):
        assert old in SUITE
        path.write_text(SUITE.replace(old, new))
        done = rehearse(path, tmp_path)
        if done.returncode != 2 or "Traceback" in done.stderr:
            missed.append((new, done.returncode, done.stdout[-400:], done.stderr[-400:]))
    assert not missed
