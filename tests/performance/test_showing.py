"""A million rows are shown in seconds, on a page that a phone can hold."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from _ratio import cpu_seconds, tell

from bench.records import COLUMNS
from bench.reporting import tables

SLACK = 5  # absolute times are judged with room for a slow machine; what is printed is the time itself
ROWS = 1_000_000
LABELS, SEEDS, LAYERS, SPLITS, STEPS = 20, 5, 5, 2, 1000
SUITE = {
    "backbone": "small",
    "train_dataset": "scenes",
    "labels": "0",
    "budget": "60000",
    "precision": "fp32",
}
SUITE |= {
    "protocol": "linear_probe",
    "dataset": "scenes",
    "target_labels": "all",
    "metric": "top1",
    "status": "ok",
}
SUITE |= {"protocol_settings": "{}", "data_settings": "{}", "device": "cpu", "commit": "abc", "suite": "s"}


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    """As a suite with a snapshot at every step would have it: every column filled."""
    axes = (LABELS, SEEDS, LAYERS, SPLITS, STEPS)
    label, seed, layer, split, step = (a.ravel() for a in np.meshgrid(*map(np.arange, axes), indexing="ij"))
    assert len(label) == ROWS
    frame = pd.DataFrame({c: np.full(ROWS, SUITE.get(c, ""), dtype=object) for c in COLUMNS})

    def named(names, at):
        return np.array(names, dtype=object)[at]

    frame["label"] = frame["method"] = named([f"method_{i}" for i in range(LABELS)], label)
    settings = [json.dumps({"lr": 0.1, "width": i, "drops": [0.6, 0.8]}) for i in range(LABELS)]
    frame["method_settings"] = named(settings, label)
    trainings = [
        f"method_{i}-small-scenes-s{s}-0123456789-01234567" for i in range(LABELS) for s in range(SEEDS)
    ]
    frame["training"] = named(trainings, label * SEEDS + seed)
    frame["cell"], frame["code_digest"] = "linear_probe-scenes-0123456789-01234567", "01234567:01234567"
    frame["layer"] = named([f"conv{i + 1}" for i in range(LAYERS)], layer)
    frame["split"] = named(["test", "validation"], split)
    frame["seed"], frame["step"] = seed, step * 100
    frame["value"] = np.random.default_rng(0).normal(50, 5, ROWS)
    frame["train_seconds"], frame["images_seen"], frame["eval_seconds"] = 100.0, 1000, 1.0
    path = tmp_path_factory.mktemp("million") / "million.parquet"
    tables.write_parquet(path, frame)
    return path


@pytest.mark.slow
def test_a_table_of_a_million_rows(million, bench):
    bench("table", million)  # imports
    seconds = min(cpu_seconds(lambda: bench("table", million)) for _ in range(2))
    said = bench("table", million, "--format", "csv").out
    tell("bench table, a million rows", seconds, f"3 s of CPU, {SLACK} times that here")
    assert seconds <= SLACK * 3
    assert len(said.splitlines()) == 1 + LABELS * LAYERS


@pytest.mark.slow
def test_a_report_of_a_million_rows(million, bench, home):
    suite = home / "million.toml"
    axes = 'budget = 48\nbackbone = "dot_net"\n[data]\ndataset = "dots"\n[methods]\nwalker = {}\n[protocols]\nnorms = {}\n'
    table = '[[table]]\nname = "probe"\nprotocol = "linear_probe"\nmetric = "top1"\ncolumns = "layer"\nextra = ["best"]\n'
    curves = '[[figure]]\nname = "curve"\nkind = "learning"\nprotocol = "linear_probe"\nmetric = "top1"\nwhere = {layer = "conv3"}\n'
    layers = '[[figure]]\nname = "layers"\nkind = "layers"\nprotocol = "linear_probe"\nmetric = "top1"\n'
    suite.write_text(axes + table + curves + layers)
    (home / "results").mkdir()
    (home / "results" / "million.parquet").hardlink_to(million)
    assert bench("report", suite).code == 0  # imports
    seconds = cpu_seconds(lambda: bench("report", suite))
    size = (home / "results" / "report.html").stat().st_size
    tell("bench report, a million rows", seconds, f"20 s of CPU, {SLACK} times that here")
    tell("its page, MB", size / 1e6, "at most 5")
    assert seconds <= SLACK * 20
    assert size <= 5e6
