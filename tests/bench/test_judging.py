"""Models made and judged by the worker, as a command does it: what reaches the rows."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from bench import plan, registry, tensors, worker
from bench.artifacts import folder
from bench.store import collect
from bench.suite import parse

SMALL = 'backbone = {name = "alexnet_small", widths = [8, 8, 8, 8, 8], stem_stride = 1}\n'
DIGITS = '[data]\ndataset = {name = "digits", side = 16}\n[target]\nlabels = 100\n'


@pytest.fixture
def judge(home):
    """Runs a suite's text; returns its rows and its cells."""
    threads = torch.get_num_threads()

    def run(text):
        cells = plan.cells(parse(tomllib.loads(text), Path("mine.toml")))
        place = worker.Place(home / "runs", home / "data", home / "cache")
        for training, waiting in plan.trainings(cells).items():
            job = worker.Job(training, tuple(p.cell for p in waiting))
            assert worker.work(job, place, lambda *_: None) == []
        return collect("mine", cells, place.runs), cells

    yield run
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    worker._target.cache_clear()


def test_stored_assignments_become_rows_by_epoch(judge, home):
    rows, cells = judge(
        f'budget = "3 epochs"\n{SMALL}{DIGITS}[methods]\ndeepcluster = {{clusters = 10, pca = 8, iterations = 2, '
        'augment = "none"}\nrandom = {}\n[protocols]\nclustering = {restarts = 1}\n'
    )
    kept = folder(home / "runs", cells[0].cell.training).path / "assignments"
    assert len(list(kept.iterdir())) == 3
    mine = {
        (r["metric"], r["step"]): r["value"]
        for r in rows
        if r["label"] == "deepcluster" and r["split"] == "train"
    }
    assert {k for k in mine if k[1] is not None} == {
        ("nmi_labels", 0),
        ("nmi_labels", 1),
        ("nmi_labels", 2),
        ("nmi_previous", 1),
        ("nmi_previous", 2),
    }
    assert all(0 < mine["nmi_labels", e] < 1 for e in range(3))
    truth = registry.load("dataset", cells[0].cell.training.data.dataset).load("train", home).labels
    ids = tensors.read(kept / "000002.safetensors")["ids"]
    expected = normalized_mutual_info_score(truth, ids, average_method="geometric")
    assert mine["nmi_labels", 2] == pytest.approx(expected)
    assert not [r for r in rows if r["label"] == "random" and r["step"] is not None]
