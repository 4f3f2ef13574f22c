from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from _rows import BASE, WAITS, made, row, texts

from bench.planning.suite import Suite
from bench.records import COLUMNS, BenchError
from bench.reporting import tables
from bench.reporting.columns import combine


def runs(label, values, **more):
    return [row(label, seed=i, value=v, **more) for i, v in enumerate(values)]


def test_mean_half_width_and_bold():
    table = made(
        [*runs("a", [70.0, 71.0, 72.0]), *runs("b", [50.0, 51.0, 52.5]), *runs("c", [71.0, 70.5, 72.0])]
    )
    assert texts(table) == {"a": ["71.0 ± 2.5"], "b": ["51.2 ± 3.1"], "c": ["71.2 ± 1.9"]}
    assert [line.entries[0].bold for line in table.lines] == [True, False, True]  # a ties with c
    assert table.columns == ("top1",)


def test_one_run_only_the_best_is_bold_and_no_interval():
    table = made([row("a", value=70.0), row("b", value=69.9)])
    assert texts(table) == {"a": ["70.0"], "b": ["69.9"]}
    assert [line.entries[0].bold for line in table.lines] == [True, False]
    assert "One run each: no interval." in table.about


def test_lower_is_better_by_name_by_key_and_mirrored():
    rows = [*runs("a", [70.0, 71.0, 72.0]), *runs("b", [50.0, 51.0, 52.0])]
    table = made(rows, metric="error")
    assert texts(table)["a"] == ["29.0 ± 2.5"]
    assert [line.entries[0].bold for line in table.lines] == [True, False]
    assert any("error (100 - top1), lower is better" in a for a in table.about)
    assert [x.entries[0].bold for x in made(rows, lower_is_better=True).lines] == [False, True]


def test_less_of_a_segmentations_cross_entropy_is_better():
    rows = [*runs("a", [0.4, 0.41, 0.42]), *runs("b", [0.2, 0.21, 0.22])]
    table = made([{**r, "metric": "cross_entropy"} for r in rows], metric="cross_entropy")
    assert [line.entries[0].bold for line in table.lines] == [False, True]


def test_missing_runs_are_counted_and_told():
    rows = runs("a", [70.0, 71.0, 72.0])
    rows += [
        row("a", seed=3, status="failed", reason="loss is NaN", **WAITS),
        row("a", seed=4, status="pending", **WAITS),
    ]
    table = made(rows + runs("b", [60.0] * 5))
    entry = table.lines[0].entries[0]
    assert entry.text == "71.0 ± 2.5 (3/5)"
    assert (entry.n, entry.expected, entry.status) == (3, 5, "partial")
    assert table.footnotes[entry.marks[0] - 1] == "1 of 5 failed: loss is NaN; 1 of 5 pending"


def test_no_planned_square_is_silent():
    rows = [row("a", value=70.0, target_labels=40), row("a", value=80.0, target_labels="all")]
    rows += [row("b", status="skipped", reason="b needs color; digits is gray", target_labels=40, **WAITS)]
    rows += [row("c", status="pending", target_labels="all", **WAITS), row("c", value=1.0, target_labels=250)]
    table = made(rows, columns="target_labels")
    assert table.columns == ("40 labels", "250 labels", "all labels")
    told = {x.name: [table.footnotes[m - 1] for e in x.entries for m in e.marks] for x in table.lines}
    assert told["b"] == [
        "skipped: b needs color; digits is gray",
        "not planned in this suite",
        "not planned in this suite",
    ]
    assert told["c"] == ["not planned in this suite", "pending"]
    assert all(e.text == "—" for e in table.lines[1].entries)


def test_all_pending_is_a_table_too():
    table = made([row("a", status="pending", **WAITS)], columns="layer")
    assert texts(table) == {"a": ["—"]}
    assert table.footnotes == ("pending",)


def test_a_nan_is_no_number():
    table = made([*runs("a", [70.0, float("nan")]), *runs("b", [1.0, 2.0])])
    assert texts(table)["a"] == ["70.0 (1/2)"]
    assert table.footnotes == ("1 of 2 no number",)


def test_one_model():
    table = made([*runs("a", [70.0, 71.0]), row("pixels", value=30.0)])
    assert table.lines[1].marks
    assert table.footnotes[table.lines[1].marks[0] - 1].startswith("one model")


def layered(label, by_layer, seed=0, validation=None):
    found = [row(label, seed=seed, layer=k, value=v) for k, v in by_layer.items()]
    return found + [
        row(label, seed=seed, layer=k, value=v, split="validation") for k, v in (validation or {}).items()
    ]


def test_best_layer_is_chosen_on_validation_never_on_test():
    rows = layered("a", {"conv1": 90.0, "conv2": 50.0}, 0, {"conv1": 10.0, "conv2": 20.0})
    rows += layered("a", {"conv1": 60.0, "conv2": 99.0}, 1, {"conv1": 30.0, "conv2": 20.0})
    table = made(rows, columns="layer", extra=["best"])
    assert table.columns[-1] == "best layer (chosen on validation)"
    assert table.lines[0].entries[-1].mean == 55.0  # conv2 of seed 0, conv1 of seed 1
    assert made(rows, select="best_layer").lines[0].entries[0].mean == 55.0
    oracle = made(rows, select="oracle_layer")
    assert oracle.lines[0].entries[0].mean == 94.5
    assert any("ORACLE" in a for a in oracle.about)


def test_best_layer_without_validation_rows_says_so():
    table = made(layered("a", {"conv1": 90.0, "conv2": 50.0}), columns="layer", extra=["best"])
    entry = table.lines[0].entries[-1]
    assert entry.text == "—"
    assert "no validation rows" in table.footnotes[entry.marks[0] - 1]


def test_best_layer_where_less_is_better():
    rows = layered("a", {"conv1": 9.0, "conv2": 5.0}, 0, {"conv1": 10.0, "conv2": 20.0})
    assert made(rows, select="best_layer", lower_is_better=True).lines[0].entries[0].mean == 9.0


def test_steps_last_median_and_best():
    rows = [row("a", step=s, value=v) for s, v in ((1, 10.0), (2, 30.0), (3, 20.0))]
    rows += [row("a", step=s, value=v, split="validation") for s, v in ((1, 1.0), (2, 0.5), (3, 0.2))]
    for select, mean in (
        ("last", 20.0),
        ("median:2", 25.0),
        ("median:20", 20.0),
        ("best_step", 10.0),
        ("oracle_step", 30.0),
    ):
        assert made(rows, select=select).lines[0].entries[0].mean == mean


def trial(number, split, values, **more):
    settings = json.dumps({"trial": number})
    return [
        row("a", method_settings=settings, split=split, training=f"t{number}", value=v, **{**more, **where})
        for v, where in values
    ]


def test_a_trial_is_chosen_at_the_step_that_is_shown():
    found = []
    for number, validation in ((0, (80.0, 10.0)), (1, (50.0, 60.0))):  # the best step is the first one's
        for split, shift in (("validation", 0.0), ("test", 1.0)):
            steps = [(v + shift, {"step": s}) for s, v in enumerate(validation)]
            found += trial(number, split, steps)
    assert made(found, select="best_step").lines[0].entries[0].mean == 81.0
    assert made(found).lines[0].entries[0].mean == 61.0
    assert made(found, select="median:2").lines[0].entries[0].mean == 56.0


def test_of_several_metrics_the_first_chooses_the_trial_of_all():
    found = []
    for number, top1, nll in ((0, 70.0, 3.0), (1, 60.0, 1.0)):
        both = [(top1, {"metric": "top1"}), (nll, {"metric": "nll"})]
        for split in ("validation", "test"):
            found += trial(number, split, both)
    for first, second, shown in (("top1", "nll", [70.0, 3.0]), ("nll", "top1", [1.0, 60.0])):
        table = made(found, metric=[first, second], columns="metric")
        assert [e.mean for e in table.lines[0].entries] == shown
        assert any("best in the mean over runs on validation images." in line for line in table.about)


def test_keys_of_many_columns_are_not_mixed_up():
    rng = np.random.default_rng(0)
    wide = pd.DataFrame({f"c{n}": rng.integers(50, size=500).astype(str) for n in range(14)})  # 50^14 > 2^63
    merged, keys = combine(wide, list(wide))
    assert [keys[m] for m in merged] == list(wide.itertuples(index=False, name=None))
    assert keys == list(dict.fromkeys(keys))
    assert combine(wide, [])[1] == [()]


def test_a_value_that_is_no_number_is_left_out():
    rows = [*runs("a", [70.0, 72.0]), row("b", value="9O.1"), row("b", seed=1, value=50.0)]
    (a, b) = made(rows, metric="error").lines
    assert (a.entries[0].mean, b.entries[0].mean) == (29.0, 50.0)


def test_the_last_attempt_counts():
    rows = [row("a", status="failed", reason="x", attempt=1, **WAITS), row("a", value=70.0, attempt=2)]
    assert texts(made(rows)) == {"a": ["70.0"]}


def test_baseline_difference_star_after_holm_with_five_pairs():
    base = [50.0, 51.0, 49.0, 50.5, 49.5]
    gain = [1.0, 1.2, 0.8, 1.1, 0.9]
    rows = runs("random", base) + runs("a", [b + g for b, g in zip(base, gain, strict=True)])
    rows += runs("few", [b + 9 + g for b, g in zip(base[:4], gain[:4], strict=True)])
    rows += runs("same", [b + s for b, s in zip(base, (1, -1, 2, -2, 0.5), strict=True)])
    table = made(rows, baseline="random")
    assert table.columns == ("top1", "Δ random")
    found = {k: v[1] for k, v in texts(table).items()}
    assert found["random"] == "baseline"
    assert found["a"] == "+1.0 ± 0.2*"
    assert found["few"].startswith("+10.0 ±")
    assert not found["few"].endswith("*")
    assert not found["same"].endswith("*")
    assert any("Holm over the 3 differences" in a for a in table.about)


def test_twenty_runs_have_a_bca_interval():
    values = np.random.default_rng(0).normal(70, 1, 20)
    table = made(runs("a", values.tolist()))
    assert re.fullmatch(r"70\.\d \[\d+\.\d, \d+\.\d\]|69\.\d \[\d+\.\d, \d+\.\d\]", texts(table)["a"][0])
    assert any("BCa" in a for a in table.about)


def test_settings_as_columns_and_conditions():
    rows = [row("r", value=60.0 + k, method_settings=json.dumps({"rotations": k})) for k in (8, 2, 4)]
    assert made(rows, columns="setting:rotations").columns == ("rotations=2", "rotations=4", "rotations=8")
    assert texts(made(rows, where={"setting:rotations": 4})) == {"r": ["64.0"]}
    assert made(rows, columns="setting:rotations", where={"setting:rotations": [8, 2]}).columns == (
        "rotations=8",
        "rotations=2",
    )


def test_conditions_on_layers_hide_no_method():
    rows = [*layered("a", {"conv1": 1.0, "conv2": 2.0}), row("b", value=3.0)]
    table = made(rows, where={"layer": "conv2"})
    assert [line.name for line in table.lines] == ["a", "b"]


def test_labels_choose_and_order_rows():
    rows = [row(x, value=1.0) for x in "abc"]
    assert [x.name for x in made(rows, labels=["c", "a"]).lines] == ["c", "a"]


def test_data_are_named_and_embedded_sets_said():
    table = made([row("a", value=1.0, train_dataset="digits", dataset="scenes")])
    assert table.about[0].startswith("Trained on digits; judged on scenes. Embedded in the package: digits")


PUBLISHED = {
    "table": "L5_imagenet_linear",
    "rows": {"a": "RotNet"},
    "columns": {"conv1": "Conv1", "conv2": "Conv2"},
}


def test_published_numbers_stand_apart():
    table = made(layered("a", {"conv1": 90.0, "conv2": 50.0}), columns="layer", published=PUBLISHED)
    assert [x.name for x in table.published] == ["RotNet (here: a)"]
    assert [e.text for e in table.published[0].entries] == ["18.8", "31.7"]
    assert not any(e.bold for e in table.published[0].entries)
    note = table.footnotes[table.published[0].marks[0] - 1]
    assert note.startswith("published: ImageNet")
    assert "not comparable: other data and network" in note
    assert "source:" in note
    for form in (tables.terminal, tables.markdown, tables.latex):
        assert "published (not measured here)" in form(table)


def test_published_numbers_without_any_measured():
    table = made([row("a", status="pending", **WAITS)], columns="layer", published=PUBLISHED)
    assert [e.text for e in table.published[0].entries] == ["18.8", "31.7"]


def test_published_of_all_methods_and_blanks():
    columns = {"top1": {"protocol": "classification", "setting": "trained layers fc6-8"}}
    table = made([row("a", value=1.0)], columns="metric", published={"table": "L4_voc", "columns": columns})
    assert len(table.published) == 15
    assert {x.name: x.entries[0].text for x in table.published}["Random"] == "—"


PRINTED = {**PUBLISHED, "columns": {"conv1": "Conv1"}}


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"colums": "layer"}, "unknown key 'colums'; did you mean 'columns'?"),
        ({"columns": "layers"}, "rows have no column 'layers'; did you mean 'layer'?"),
        ({"where": {"datset": "digits"}}, "rows have no column 'datset'; did you mean 'dataset'?"),
        ({"where": {"dataset": "digit"}}, "no row has dataset = 'digit'; did you mean 'digits'?"),
        ({"protocol": "liner"}, "no row has protocol = 'liner'; did you mean 'linear'?"),
        ({"metric": "top2"}, "no row has metric 'top2'; did you mean 'top1'?"),
        ({"baseline": "aa"}, "baseline 'aa' is not a row"),
        ({"select": "best_layr"}, "select cannot be 'best_layr'; did you mean 'best_layer'?"),
        ({"extra": ["best"]}, 'extra = ["best"] needs columns = "layer"'),
        ({"extra": ["bets"], "columns": "layer"}, "extra cannot be 'bets'; did you mean 'best'?"),
        ({"digits": "one"}, "digits must be int, not 'one'"),
        ({"published": {"table": "L5"}}, "published: columns is missing"),
        (
            {"published": {"table": "L5", "columns": {}, "row": {}}},
            "published: unknown key 'row'; did you mean 'rows'?",
        ),
        ({"columns": "layer", "published": {**PRINTED, "rows": {"a": "RotNt"}}}, "did you mean 'RotNet'?"),
        (
            {"columns": "layer", "published": {**PRINTED, "columns": {"conv7": "Conv1"}}},
            "no column 'conv7'",
        ),
    ],
)
def test_slips_are_told_in_one_line(block, says):
    rows = layered("a", {"conv1": 1.0}) + layered("b", {"conv1": 1.0})
    with pytest.raises(BenchError, match=r"^s\.toml: table t: ") as caught:
        made(rows, **block)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_different_experiments_are_never_averaged():
    with pytest.raises(BenchError, match="a mixes backbone = small, wide: choose with where"):
        made([row("a", value=1.0), row("a", value=2.0, seed=1, backbone="wide")])
    with pytest.raises(BenchError, match=r"a mixes setting:lr = 0\.1, 0\.2"):
        made([row("a", value=1.0, method_settings=f'{{"lr": {lr}, "k": 1}}') for lr in (0.1, 0.2)])
    with pytest.raises(BenchError, match="several layers a run"):
        made(layered("a", {"conv1": 1.0, "conv2": 2.0}))


def test_different_code_and_data_are_never_averaged_unless_asked_for():
    two = [row("a", value=v, seed=v, code_digest=f"{c}:p") for v, c in ((1, "old"), (3, "new"))]
    with pytest.raises(BenchError, match="a mixes code_digest = old:p, new:p: choose with where"):
        made(two)
    same = [{**r, "seed": 0} for r in two]
    table = made(same, mixed=True)
    assert texts(table) == {"a": ["2.0 ± 12.7"]}  # both runs of seed 0 count: 12.706 * 1.414 / 1.414
    assert any(a.startswith("MIXED, as asked for: a mixes code_digest") for a in table.about)
    # A training that starts from another one has that one's name, seed included, in its digest.
    made([{**r, "init": f"random-s{r['seed']}"} for r in two])
    with pytest.raises(BenchError, match="a mixes code_digest = :p, :q"):
        made([row("a", value=v, seed=v, init="x", code_digest=f"{v}:{c}") for v, c in ((1, "p"), (3, "q"))])
    with pytest.raises(BenchError, match="mixes split_digest = x, y"):
        made([row("a", value=1.0, split_digest="x"), row("a", value=1.5, split_digest="y")])
    made([row("a", value=1.0, label_split=s, split_digest=d) for s, d in ((0, "x"), (1, "y"))])
    with pytest.raises(BenchError, match="mixed = true averages over it"):
        made([row("a", value=1.0), row("a", value=2.0, seed=1, backbone="wide")])


def test_a_name_is_needed_and_a_metric():
    with pytest.raises(BenchError, match="name is missing"):
        tables.build(tables.frame([row("a", value=1.0)]), {"metric": "top1"})
    with pytest.raises(BenchError, match="metric is missing"):
        tables.build(tables.frame([row("a", value=1.0)]), {"name": "t", "columns": "layer"})


# ---- forms -----------------------------------------------------------------------------------------


def example():
    rows = [*runs("a_b", [70.0, 71.0, 72.0]), *runs("50% & more|", [50.0, 51.0, 52.0])]
    return made(
        [*rows, row("x", status="skipped", reason="x needs color", **WAITS)], title="A_title", baseline="a_b"
    )


def test_terminal():
    plain = re.sub(r"\x1b\[[0-9;]*m", "", tables.terminal(example()))
    assert plain.splitlines()[0] == "A_title"
    assert "71.0 ± 2.5" in plain
    assert "—[" in plain
    assert "skipped: x needs color" in plain
    assert "\x1b[1m" in tables.terminal(example())


def test_markdown():
    text = tables.markdown(example())
    assert "| a\\_b | **71.0 ± 2.5** |" in text
    assert "50% & more\\|" in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert widths == {4}


def test_latex():
    text = tables.latex(example())
    assert r"a\_b & \textbf{71.0 $\pm$ 2.5}" in text
    assert r"50\% \& more|" in text
    assert r"\toprule" in text
    assert r"\bottomrule" in text
    assert "$\\Delta$ a\\_b" in text
    assert text.count(r"\begin{") == text.count(r"\end{")


def test_csv():
    found = list(csv.DictReader(io.StringIO(tables.csv(example()))))
    assert (found[0]["row"], found[0]["column"], float(found[0]["mean"]), found[0]["n"]) == (
        "a_b",
        "top1",
        71.0,
        "3",
    )
    assert next(f["note"] for f in found if f["row"] == "x") == "skipped: x needs color"


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = runs("a", np.random.default_rng(0).normal(70, 1, 25).tolist()) + runs("b", [50.0, 51.0])
    path = tmp_path / "r.csv"
    tables.frame(rows).to_csv(path, index=False)
    forms = (tables.terminal, tables.markdown, tables.latex, tables.csv)
    from_rows, again, from_file = (
        made(rows),
        made(rows),
        tables.build(tables.read(path), {"name": "t", "metric": "top1"}),
    )
    for form in forms:
        assert form(from_rows) == form(again) == form(from_file)


def test_an_older_file_is_refused(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("suite,cell\ns,c\n")
    with pytest.raises(BenchError, match="column 'training' is missing"):
        tables.read(path)


# ---- suites ----------------------------------------------------------------------------------------


def suite(*blocks):
    return Suite("s", Path("s.toml"), "One line.", None, (), tables=blocks)


def test_summary_of_a_suite_without_tables():
    rows = runs("a", [70.0, 71.0]) + [row("a", seed=i, value=90.0, metric="top5") for i in range(2)]
    rows += layered("a", {"conv1": 1.0, "conv2": 2.0})  # another protocol, with layers
    rows[4:] = [{**r, "protocol": "probe"} for r in rows[4:]]
    rows += [row("v", value=k, method_settings=f'{{"k": {k}}}') for k in (1, 2)]
    rows += [row("a", dataset="scenes", status="pending", **WAITS)]
    found = {t.name: t for t in tables.of_suite(suite(), tables.frame(rows))}
    assert set(found) == {"linear-digits", "probe-digits-top1", "linear-scenes"}
    assert found["linear-digits"].columns == ("top1", "top5")
    assert [x.name for x in found["linear-digits"].lines] == ["a", "v · k=1", "v · k=2"]
    assert found["probe-digits-top1"].columns == ("conv1", "conv2")
    assert texts(found["linear-scenes"]) == {"a": ["—"]}


def test_one_table_by_name_and_the_markdown_file(tmp_path):
    blocks = ({"name": "one", "metric": "top1"}, {"name": "two", "metric": "top1"})
    frame = tables.frame([row("a", value=70.0)])
    assert [t.name for t in tables.of_suite(suite(*blocks), frame, "two")] == ["two"]
    with pytest.raises(BenchError, match="there is no table 'tow'; did you mean 'two'"):
        tables.of_suite(suite(*blocks), frame, "tow")
    tables.write_markdown(tmp_path / "s.md", suite(*blocks), tables.of_suite(suite(*blocks), frame))
    assert (tmp_path / "s.md").read_text().startswith("# s\n\nOne line.\n\n## one\n\n**one**\n")
    assert [p.name for p in tmp_path.iterdir()] == ["s.md"]


def test_tables_and_plots_load_no_torch_and_no_matplotlib():
    code = "import sys, bench.reporting.tables, bench.reporting.plots; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_million_rows_take_seconds():
    n = 1_000_000
    label, seed, layer, _ = (
        a.ravel() for a in np.meshgrid(*(np.arange(k) for k in (20, 5, 5, 2000)), indexing="ij")
    )
    frame = pd.DataFrame({c: np.full(n, BASE.get(c, ""), dtype=object) for c in COLUMNS})
    frame["label"] = frame["method"] = np.array([f"m{i}" for i in range(20)], dtype=object)[label]
    frame["seed"], frame["step"] = seed, np.tile(np.arange(2000), n // 2000)
    frame["layer"] = np.array([f"conv{i}" for i in range(5)], dtype=object)[layer]
    frame["value"] = np.random.default_rng(0).normal(50, 5, n)
    started = time.process_time()
    table = tables.build(frame, {"name": "t", "metric": "top1", "columns": "layer", "protocol": "linear"})
    assert time.process_time() - started < 6  # 1.5 s where it was measured
    assert len(table.lines) == 20


def test_what_a_trap_told_is_a_footnote_of_its_square():
    rows = runs("a", [9.0, 10.0, 11.0], reason="warning: top1 is at chance") + runs("b", [70.0, 71.0, 72.0])
    rows[1]["reason"] = ""
    table = made(rows)
    marks = {line.name: [table.footnotes[m - 1] for m in line.entries[0].marks] for line in table.lines}
    assert marks == {"a": ["warning: top1 is at chance"], "b": []}
    assert texts(table)["a"] == ["10.0 ± 2.5"]


def test_random_weights_that_nothing_beats_are_told():
    def footnotes(*values, **methods):
        rows = [r for n, v in zip("abc", values, strict=True) for r in runs(n, v, method=methods.get(n, n))]
        return [f for f in made(rows).footnotes if "random weights are best" in f]

    good, bad, same = [70.0, 71.0, 72.0], [50.0, 51.0, 52.0], [71.0, 70.5, 72.0]
    assert len(footnotes(good, bad, bad, a="random")) == 1
    assert footnotes(bad, good, bad, a="random") == []
    assert footnotes(good, same, bad, a="random") == []  # b may be as good
    assert footnotes(good, same, bad) == []
