"""Rows in TensorBoard and MLflow: read back with their own readers, they say what the rows say."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import _stand_in_mlflow
import numpy as np
import pandas as pd
import pytest
from _rows import row

from bench.records import BenchError
from bench.reporting import tables
from bench.reporting.tracking.runs import Scalar, tracked

RESULTS = Path(__file__).resolve().parents[3] / "results"


def runs_of(rows, folder="nowhere"):
    return {run.name: run for run in tracked(tables.frame(rows), Path(folder))}


# ---- rows to runs ----------------------------------------------------------------------------------


def test_a_run_a_method_setting_and_seed():
    rows = [
        row(
            "rotation",
            seed=s,
            value=10 * lr + s,
            method_settings=json.dumps({"lr": lr}),
            training=f"rotation-{lr}-s{s}",
        )
        for lr in (1, 2)
        for s in (0, 1)
    ]
    found = runs_of(rows)
    assert list(found) == ["rotation-1-s0", "rotation-1-s1", "rotation-2-s0", "rotation-2-s1"]
    assert [r.settings["method.lr"] for r in found.values()] == [1, 1, 2, 2]
    assert [r.settings["seed"] for r in found.values()] == [0, 1, 0, 1]
    assert [r.scalars for r in found.values()] == [
        (Scalar("linear/top1/test", 0, v),) for v in (10, 11, 20, 21)
    ]


def test_settings_are_told_by_name_as_what_they_are():
    made = row(
        "slow rotation",
        method="rotation",
        training="rotation-small-digits-s0-ab-cd",
        value=1,
        labels="all",
        method_settings=json.dumps({"lr": 0.1, "nesterov": True, "drops": [0.5, 0.8]}),
        data_settings=json.dumps({"validation": 200, "dataset": {"side": 16}}),
        backbone='small {"width": 2}',
    )
    (run,) = runs_of([made]).values()
    assert run.name == "slow_rotation-small-digits-s0-ab-cd"
    expected = {
        "label": "slow rotation", "method": "rotation", "labels": "all", "method.lr": 0.1, "method.nesterov": True,
        "method.drops": "[0.5, 0.8]", "data.validation": 200, "data.dataset.side": 16, "backbone": "small",
        "backbone.width": 2, "budget": 1000,
    }  # fmt: skip
    assert expected.items() <= run.settings.items()
    assert all(type(run.settings[k]) is type(v) for k, v in expected.items())


def test_numbers_that_differ_in_a_setting_have_names_that_differ():
    rows = [
        row("a", cell=f"c{k}", protocol="knn", protocol_settings=json.dumps({"k": k}), value=k, layer="conv1")
        for k in (20, 200)
    ]
    rows += [
        row("a", cell=f"t{t}", protocol="few", target_split=t, target_labels=50, value=t) for t in (0, 1)
    ]
    (run,) = runs_of(rows).values()
    names = {s.name: s.value for s in run.scalars}
    assert len(names) == 4
    assert names["knn/k 20/target_split 0/top1/conv1/test"] == 20
    assert names["knn/k 200/target_split 0/top1/conv1/test"] == 200
    assert {v for n, v in names.items() if n.startswith("few/")} == {0, 1}


def test_of_a_cell_that_was_tried_twice_the_last_counts():
    rows = [row("a", attempt=1, status="failed", reason="x"), row("a", attempt=2, value=7)]
    (run,) = runs_of(rows).values()
    assert run.status == "ok"
    assert [s.value for s in run.scalars] == [7]


def test_what_failed_is_told_with_its_reason():
    rows = [
        row("a", cell="c1", value=1),
        row("a", cell="c2", status="failed", reason="ValueError: no", value="", metric="", split=""),
        row("a", cell="c3", status="skipped", reason="needs color", value="", metric="", split=""),
        row("b", status="pending", value="", metric="", split=""),
    ]
    a, b = runs_of(rows).values()
    assert (a.status, b.status) == ("failed", "pending")
    assert a.outcome == "1 of 3 cells ok\nc2: failed: ValueError: no\nc3: skipped: needs color"
    assert b.scalars == ()


def test_curves_come_from_the_runs_and_from_snapshots(tmp_path):
    rows = [row("a", training="a-s0", value=v, step=s) for s, v in ((100, 40.0), (200, 50.0))]
    (tmp_path / "a-s0").mkdir()
    curves = pd.DataFrame({"step": [0, 100], "loss": [2.5, 1.5], "late": [np.nan, 0.5]})
    curves.to_parquet(tmp_path / "a-s0" / "curves.parquet")
    (run,) = runs_of(rows, tmp_path).values()
    assert run.scalars == (
        Scalar("linear/top1/test", 100, 40.0),
        Scalar("linear/top1/test", 200, 50.0),
        Scalar("train/loss", 0, 2.5),
        Scalar("train/loss", 100, 1.5),
        Scalar("train/late", 100, 0.5),
    )
    (tmp_path / "a-s0" / "curves.parquet").write_bytes(b"half")
    with pytest.raises(BenchError, match=r"a-s0/curves\.parquet: cannot be read; delete it"):
        runs_of(rows, tmp_path)


# ---- TensorBoard -----------------------------------------------------------------------------------


def kept(home, name="mixed_batches"):
    """The committed rows of a suite: {training: {metric name: value}}, read with csv alone."""
    (home / "results").mkdir(exist_ok=True)
    shutil.copy(RESULTS / f"{name}.csv", home / "results")
    found = {}
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        for one in csv.DictReader(file):
            numbers = found.setdefault((one["label"], one["training"]), {})
            assert not one["layer"]
            numbers[f"{one['protocol']}/{one['metric']}/{one['split']}"] = float(one["value"])
    return found


def beside_staleness(err):
    """What was told, but for the line that committed rows are of older code."""
    return "".join(
        line for line in err.splitlines(keepends=True) if "are of other settings or code than" not in line
    )


@pytest.mark.parametrize(("form", "package"), [("tensorboard", "TensorBoard"), ("mlflow", "MLflow")])
def test_without_the_extra_one_line_says_what_to_install(form, package, bench, home, monkeypatch):
    kept(home)
    monkeypatch.setitem(sys.modules, form, None)
    ended = bench("export", "mixed_batches", "--format", form)
    assert (ended.code, ended.out) == (2, "")
    expected = f"bench: --format {form} needs {package}: pip install 'representation-bench[{form}]'\n"
    assert beside_staleness(ended.err) == expected


def test_help_teaches_the_exports(bench):
    said = bench("export", "--help").out
    for word in (
        "tensorboard --logdir",
        "mlflow ui",
        "--tracking-uri",
        "MLFLOW_TRACKING_URI",
        "representation-bench[mlflow]",
    ):
        assert word in said


def test_tensorboard_reads_what_the_rows_say(bench, home):
    reason = "tensorboard is missing: pip install 'representation-bench[tensorboard]'"
    pytest.importorskip("tensorboard", reason=reason)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    rows = kept(home)
    (label, training), numbers = next(iter(rows.items()))
    (home / "runs" / training).mkdir(parents=True)
    pd.DataFrame({"step": [1, 2], "loss": [2.5, 1.5]}).to_parquet(home / "runs" / training / "curves.parquet")
    for _ in range(2):  # again: in place of what stood there
        ended = bench("export", "mixed_batches", "--format", "tensorboard")
        assert (ended.code, ended.out) == (0, f"{home}/results/tensorboard/mixed_batches\n")
    folders = sorted((home / "results" / "tensorboard" / "mixed_batches").iterdir())
    assert len(folders) == len(rows) == 30
    (folder,) = (f for f in folders if f.name.startswith(label) and f.name.endswith(training[-20:]))
    read = EventAccumulator(str(folder))
    read.Reload()
    shown = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"] if not tag.startswith("cost/")}
    curve = shown.pop("train/loss")
    assert [(e.step, e.value) for e in curve] == [(1, 2.5), (2, 1.5)]
    assert {tag: [np.float32(e.value) for e in events] for tag, events in shown.items()} == {
        name: [np.float32(value)] for name, value in numbers.items()
    }
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["label"].string_value == label
    assert settings["method.lr"].number_value == 0.003
    assert settings["method.nesterov"].bool_value is False
    assert b"1 of 1 cells ok" in read.Tensors("outcome")[0].tensor_proto.string_val[0]


# ---- MLflow ----------------------------------------------------------------------------------------


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.slow)])
def client(request, monkeypatch, home):
    """MLflow's client on the local store; what holds for the stand-in holds for MLflow itself, where it is installed."""
    if request.param == "stand-in":
        for name, module in _stand_in_mlflow.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    elif importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is missing: pip install 'representation-bench[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (home / "results").mkdir()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{home}/results/mlflow.db")


def stored(client, name="mixed_batches"):
    found = client.get_experiment_by_name(name)
    return {r.info.run_name: r for r in client.search_runs([found.experiment_id])}


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_holds_what_the_rows_say(client, bench, home):
    rows = kept(home)
    (label, training), numbers = next(iter(rows.items()))
    (home / "runs" / training).mkdir(parents=True)
    loss = np.linspace(3, 1, 2500)
    pd.DataFrame({"step": range(2500), "loss": loss}).to_parquet(home / "runs" / training / "curves.parquet")
    ended = bench("export", "mixed_batches", "--format", "mlflow")
    assert (ended.code, ended.out) == (0, f"sqlite:///{home}/results/mlflow.db\n")
    assert ended.err.endswith("30 runs written, 0 there already\n")
    there = stored(client)
    assert len(there) == 30
    (run,) = (
        r
        for r in there.values()
        if r.data.tags["bench.training"] == training and r.info.run_name.startswith(label)
    )
    assert run.info.status == "FINISHED"
    assert run.data.params["label"] == label
    assert run.data.params["method.lr"] == "0.003"
    own = {k: v for k, v in run.data.metrics.items() if not k.startswith(("cost/", "train/"))}
    assert own == numbers
    history = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss"))
    assert history == list(enumerate(loss.tolist()))


@pytest.mark.filterwarnings("ignore")
def test_mlflow_is_told_only_what_changed(client, bench, home):
    rows = [row("a", training="a-s0", value=1.5), row("b", training="b-s0", value=float("nan"), budget=7)]
    rows += [row("c", training="c-s0", status="oom", reason="out of memory", value="", metric="", split="")]
    tables.write_parquet(home / "results" / "s.parquet", tables.frame(rows))
    line = ("export", home / "results" / "s.parquet", "--format", "mlflow")
    assert bench(*line).err.endswith("3 runs written, 0 there already\n")
    assert bench(*line).err.endswith("0 runs written, 3 there already\n")
    before = {name: run.info.run_id for name, run in stored(client, "s").items()}
    rows[0]["value"] = 2.5
    tables.write_parquet(home / "results" / "s.parquet", tables.frame(rows))
    assert bench(*line).err.endswith("1 runs written, 2 there already\n")
    there = stored(client, "s")
    assert {name for name, run in there.items() if run.info.run_id != before[name]} == {"a-s0"}
    assert there["a-s0"].data.metrics["linear/top1/test"] == 2.5
    assert there["c-s0"].info.status == "FAILED"
    assert there["c-s0"].data.tags["bench.outcome"] == "0 of 1 cells ok\nc: oom: out of memory"
    assert there["b-s0"].data.params["budget"] == "7"
    client.delete_experiment(client.get_experiment_by_name("s").experiment_id)
    ended = bench(*line)
    assert ended.code == 2
    assert (
        ended.err == "bench: MLflow: experiment s was deleted there; restore it: mlflow experiments restore\n"
    )


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_not_there_is_one_line(client, bench, home, monkeypatch):
    kept(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ended = bench("export", "mixed_batches", "--format", "mlflow")
    assert ended.code == 2
    told = beside_staleness(ended.err)
    assert told.startswith("bench: MLflow at http://127.0.0.1:9: ")
    assert told.count("\n") == 1
