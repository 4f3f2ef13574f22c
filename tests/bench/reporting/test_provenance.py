"""What is behind a number, and what changed between two tables of rows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.planning import suite
from bench.records import COLUMNS, BenchError
from bench.reporting import compare, provenance, tables

ROOT = Path(__file__).resolve().parents[3]
BASE = {
    "suite": "s", "backbone": "small", "train_dataset": "digits", "labels": 0, "label_split": 0, "label_noise": 0.0,
    "budget": 1000, "precision": "fp32", "protocol": "linear", "dataset": "digits", "target_labels": "all",
    "target_split": 0, "split": "test", "metric": "top1", "status": "ok", "method_settings": '{"lr": 0.1}',
    "protocol_settings": "{}", "data_settings": "{}", "commit": "abc", "code_digest": "1:2",
}  # fmt: skip


def row(label, **values):
    own = {**dict.fromkeys(COLUMNS, ""), **BASE, "label": label, "method": label, "seed": 0, **values}
    return {**own, "training": f"{label}-s{own['seed']}", "cell": f"c-{label}-{own['seed']}"}


def runs(label, values, **more):
    return [row(label, seed=i, value=v, **more) for i, v in enumerate(values)]


def exhibit(rows, **block):
    return tables.exhibit(tables.frame(rows), {"name": "t", "metric": "top1", **block}, "s.toml: table")


def test_the_runs_behind_a_mean():
    made = exhibit([*runs("a", [1.0, 2.0, 6.0]), *runs("b", [5.0])])
    found = provenance.behind(made, "a", "top1")
    assert found.rows["value"].tolist() == [1.0, 2.0, 6.0]
    assert found.rows["training"].tolist() == ["a-s0", "a-s1", "a-s2"]
    shared, own = provenance.facts(found.rows)
    assert shared["method_settings"] == "lr = 0.1"
    assert shared["commit"] == "abc"
    assert own[0][:2] == ["seed", "label_split"]
    assert "value" in own[0]


def test_what_was_chosen_is_what_is_explained():
    rows = [row("a", layer=k, value=v) for k, v in {"conv1": 1.0, "conv2": 2.0}.items()]
    rows += [row("a", layer=k, value=v, split="validation") for k, v in {"conv1": 9.0, "conv2": 8.0}.items()]
    made = exhibit(rows, columns="layer", extra=["best"])
    assert provenance.behind(made, "a", "best").rows["layer"].tolist() == ["conv1"]
    assert provenance.behind(made, "a", "conv2").rows["value"].tolist() == [2.0]
    steps = [row("a", step=s, value=v) for s, v in ((1, 10.0), (2, 30.0), (3, 20.0))]
    assert provenance.behind(exhibit(steps), "a", "top1").rows["step"].tolist() == [3]
    found = provenance.behind(exhibit(steps, select="median:2"), "a", "top1")
    assert sorted(found.rows["value"]) == [20.0, 30.0]
    assert found.entry.mean == 25.0


def test_an_error_out_of_top1_is_explained_by_what_is_shown():
    found = provenance.behind(exhibit(runs("a", [70.0, 72.0]), metric="error"), "a", "error")
    assert found.rows["value"].tolist() == [30.0, 28.0]


def test_of_a_committed_table():
    loaded = suite.load("lecture_embedded")
    (made,) = tables.exhibits(loaded, tables.read(ROOT / "results" / "lecture_embedded.csv"), "probe")
    for name, column in (("rotation", "conv3"), ("supervised", "best layer"), ("random", "conv5")):
        found = provenance.behind(made, name, column)
        assert len(found.rows) == found.entry.n == 5
        assert found.rows["value"].astype(float).mean() == pytest.approx(found.entry.mean)
        assert set(found.rows["label"]) == {name}


def test_explain_in_words(tmp_path):
    (tmp_path / "a-s0").mkdir()
    (tmp_path / "a-s0" / "log").write_text("trained\n")
    made = exhibit([*runs("a", [1.0, 2.0, 6.0]), *runs("b", [5.0, 5.5])], baseline="b")
    text = provenance.explain(provenance.behind(made, "a", "top1"), tmp_path)
    assert text.splitlines()[0] == "t: a, top1: 3.0 ± 6.6"
    # Half of 4.303 * 2.6458 / sqrt(3), by hand: 6.572.
    assert re.search(r"mean 3\.0 of 3 runs, Student-t 95% interval \[-3\.57\d*, 9\.57\d*\]", text)
    assert str(tmp_path / "a-s0" / "log") in text
    assert "(not on this machine)" in text
    assert "paired difference" in provenance.explain(provenance.behind(made, "a", "Δ b"), tmp_path)


def test_the_kind_of_interval_is_that_of_the_runs_not_of_the_rows(tmp_path):
    steps = [row("a", seed=i, step=s, value=float(i + s)) for i in range(5) for s in range(20)]
    made = exhibit(steps, select="median:20")
    text = provenance.explain(provenance.behind(made, "a", "top1"), tmp_path)
    assert "of 5 runs, Student-t 95% interval" in text
    many = exhibit(runs("a", [float(i) for i in range(20)]))
    assert "of 20 runs, BCa bootstrap" in provenance.explain(provenance.behind(many, "a", "top1"), tmp_path)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (("c", "top1"), "table t: row: there is no 'c'"),
        (("a", "top5"), "table t: column: there is no 'top5'; did you mean 'top1'?"),
        (("alphab", "top1"), "'alphab' may be any of: alphabet, alphabeta"),
    ],
)
def test_a_place_that_is_not_there_is_told(place, says):
    made = exhibit([row(x, value=1.0) for x in ("a", "alphabet", "alphabeta")])
    with pytest.raises(BenchError) as caught:
        provenance.behind(made, *place)
    assert says in str(caught.value)


# ---- diff ----------------------------------------------------------------------------------------


def changes(a, b):
    return compare.changes(tables.frame(a), tables.frame(b))


def test_equal_rows_do_not_differ_whatever_clocks_and_machines_say():
    a = [*runs("a", [1.0, 2.0]), row("x", status="failed", reason="boom", metric="", split="")]
    b = [{**r, "train_seconds": 9.0, "device": "gpu", "commit": "def"} for r in a]
    assert changes(a, b) == []


def test_a_changed_number_is_paired_by_seed():
    (one,) = changes(runs("a", [10.0, 20.0, 30.0]), runs("a", [11.0, 22.0, 33.0]))
    # Differences 1, 2, 3: mean 2, half 4.303 * 1 / sqrt(3) = 2.48.
    assert one.change == "+2 ± 2.5 (3 pairs); 3 numbers changed"
    assert one.before.startswith("20 ± 25 (n = 3)")


def test_runs_that_came_and_went_and_new_methods():
    found = {
        c.name.partition(" · ")[0]: c
        for c in changes(runs("a", [1.0, 2.0]), [*runs("a", [1.0]), row("b", value=5.0)])
    }
    assert found["a"].before == "1.5 ± 6.4 (n = 2)"
    assert found["a"].after == "1 (n = 1)"
    assert found["b"].before == "not there"


def test_a_changed_setting_is_named():
    found = changes(runs("a", [1.0]), runs("a", [1.0], method_settings='{"lr": 0.2}'))
    assert [(c.before, c.after, c.change) for c in found] == [("0.1", "0.2", "setting lr")]


def test_a_failure_is_a_change():
    (one, *_) = changes(
        [row("a", status="failed", reason="boom", metric="", split="")],
        [row("a", status="pending", metric="", split="")],
    )
    assert (one.before, one.after) == ("failed", "pending")


# ---- commands ------------------------------------------------------------------------------------


def test_the_commands(bench, home):
    csv = ROOT / "results" / "mixed_batches.csv"
    done = bench("explain", "mixed_batches", "mixed_10", "true", "--results", ROOT / "results")
    assert done.code == 0
    assert "batch_norm: mixed_10, batch_norm=true: 36.7 ± 11.4" in done.out
    assert "2bf825b05a6fd34ac0ffd88cb6562ce63bb3a9c96ea1e16b6fcd84fe3a7dc6ae" in done.out
    assert bench("explain", "lecture_embedded", "a", "b", "--results", ROOT / "results").code == 2
    same = bench("diff", csv, csv)
    assert (same.code, same.out) == (0, "no difference\n")
    other = home / "other.csv"
    lines = csv.read_text().splitlines(keepends=True)
    other.write_text("".join(lines[:-1]))
    assert bench("diff", csv, other).code == 1
    assert bench("diff", csv, home / "none.csv").code == 2
    assert bench("diff", csv, "mixed_batchs").code == 2
