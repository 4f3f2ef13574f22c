from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.planning.suite import Suite
from bench.records import COLUMNS, BenchError
from bench.reporting import plots, tables
from bench.reporting.draft import look, spread

BASE = {
    "suite": "s", "cell": "c", "training": "t", "train_dataset": "digits", "labels": 0, "seed": 0, "protocol": "p",
    "dataset": "digits", "target_labels": "all", "split": "test", "metric": "top1", "status": "ok", "method_settings": "{}",
}  # fmt: skip
LABELS = ("a", "b")


def row(label, **values):
    return {**dict.fromkeys(COLUMNS, ""), **BASE, "label": label, "method": label, **values}


def noisy(field, options, seeds=3, labels=LABELS):
    rng = np.random.default_rng(0)
    rows = []
    for i, label in enumerate(labels):
        for n, option in enumerate(options):
            value = json.dumps({"k": option}) if field == "method_settings" else option
            rows += [
                row(label, seed=s, value=50 + 5 * i + n + rng.normal(), **{field: value})
                for s in range(seeds)
            ]
    return tables.frame(rows)


KINDS = {
    "layers": ({"kind": "layers"}, noisy("layer", ("conv1", "conv2", "conv3"))),
    "learning": ({"kind": "learning"}, noisy("step", range(0, 1000, 50))),
    "labels": ({"kind": "labels", "metric": "error"}, noisy("labels", (0, 40, 250, 4000, "all"))),
    "numbers": ({"kind": "vary", "x": "setting:k"}, noisy("method_settings", (1, 2, 4, 8))),
    "wide": ({"kind": "vary", "x": "budget"}, noisy("budget", (10, 1000, 100000))),
    "names": ({"kind": "vary", "x": "setting:k"}, noisy("method_settings", ("with", "without", "neither"))),
    "bars": ({"kind": "bars"}, noisy("layer", ("",))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_and_nothing_overlaps(kind):
    block, frame = KINDS[kind]
    made = plots.figure(frame, {"name": "f", "metric": "top1", **block})
    made.canvas.draw()
    axes = made.axes[0]
    names = [t for t in axes.texts if t.get_text() in LABELS]
    boxes = [t.get_window_extent() for t in (*names, *axes.get_xticklabels()) if t.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert kind == "bars" or len(names) == len(LABELS)
    caption = made.texts[0].get_window_extent()
    assert caption.y1 <= axes.get_tightbbox().y0


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_rows_give_the_same_bytes(tmp_path, suffix):
    block, frame = KINDS["layers"]
    files = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for file in files:
        plots.draw(frame, {"name": "f", "metric": "top1", **block}, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f.name for f in files]


def _caption(frame, **block):
    return plots.figure(frame, {"name": "f", "metric": "top1", "kind": "layers", **block}).texts[0].get_text()


def test_one_seed_has_no_band_and_the_caption_says_so():
    frame = noisy("layer", ("conv1", "conv2"), seeds=1)
    made = plots.figure(frame, {"name": "f", "metric": "top1", "kind": "layers"})
    assert not made.axes[0].collections
    assert "1 seed, no interval." in made.texts[0].get_text()
    banded = plots.figure(
        noisy("layer", ("conv1", "conv2")), {"name": "f", "metric": "top1", "kind": "layers"}
    )
    assert len(banded.axes[0].collections) == 2
    assert "Student-t 95% interval over 3 runs" in banded.texts[0].get_text()


def test_what_is_not_drawn_is_said():
    rows = [row("a", layer="conv1", value=1.0), row("a", layer="conv2", value=1.0)]
    rows += [row("x", status="skipped", reason="x needs color", metric="", split="")]
    caption = _caption(tables.frame(rows))
    assert "Not drawn: x (skipped: x needs color)." in caption
    assert "Embedded in the package: digits" in caption


def test_a_number_without_a_step_is_no_part_of_a_curve():
    rows = [row("a", step=s, value=1.0 * s) for s in (10, 20)] + [row("a", step="", value=99.0)]
    made = plots.figure(tables.frame(rows), {"name": "f", "metric": "top1", "kind": "learning"})
    assert made.axes[0].lines[0].get_xdata().tolist() == [10.0, 20.0]


def test_labels_choose_and_order_the_lines():
    frame = noisy("layer", ("conv1", "conv2"), labels=("a", "b", "c"))
    made = plots.figure(frame, {"name": "f", "metric": "top1", "kind": "layers", "labels": ["c", "a"]})
    assert {t.get_text() for t in made.axes[0].texts} == {"c", "a"}


def test_what_is_counted_may_be_named_and_has_whole_ticks():
    epochs = noisy("step", range(4))
    block = {"name": "f", "metric": "top1", "kind": "learning"}
    axes = plots.figure(epochs, block).axes[0]
    assert axes.get_xlabel() == "optimizer step"
    assert all(tick == int(tick) for tick in axes.get_xticks())
    assert plots.figure(epochs, {**block, "x_label": "epoch"}).axes[0].get_xlabel() == "epoch"


@pytest.mark.parametrize(("count", "held"), [(2, False), (9, True)])
def test_of_many_lines_a_wide_interval_does_not_make_the_range(count, held):
    labels = tuple("abcdefghi"[:count])
    few = noisy("layer", ("conv1", "conv2"), seeds=2, labels=labels)
    wide = few["label"].eq("a") & few["layer"].eq("conv1")
    few.loc[wide, "value"] = [30.0, 70.0]  # mean 50, as the others have, and an interval of 254 to each side
    axes = plots.figure(few, {"name": "f", "metric": "top1", "kind": "layers"}).axes[0]
    bottom, top = axes.get_ylim()
    means = few.groupby(["label", "layer"])["value"].mean()
    assert bottom < means.min() < means.max() < top  # every line is inside
    assert (top - bottom < 2 * (means.max() - means.min())) == held


def test_bars_without_a_number_say_why():
    rows = [row("a", value=1.0), row("x", status="failed", reason="loss is NaN", metric="", split="")]
    made = plots.figure(tables.frame(rows), {"name": "f", "metric": "top1", "kind": "bars"})
    assert "failed: loss is NaN" in {t.get_text() for t in made.axes[0].texts}


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"kind": "layer"}, "kind cannot be 'layer'; did you mean 'layers'?"),
        ({"kind": "vary"}, 'kind "vary" needs x'),
        ({"kind": "layers", "metrc": "x"}, "unknown key 'metrc'; did you mean 'metric'?"),
        ({"kind": "layers", "labels": ["q"]}, "no row has label = 'q'"),
        (
            {"kind": "bars", "metric": ["top1", "lr"], "where": {"layer": "conv1"}},
            "bars are of one metric, not of top1, lr",
        ),
        ({"kind": "vary", "x": "bugdet"}, "rows have no column 'bugdet'; did you mean 'budget'?"),
    ],
)
def test_slips_are_told_in_one_line(block, says):
    rows = KINDS["layers"][1]
    rows = pd.concat([rows, rows.assign(metric="lr")]) if "metric" in block else rows
    with pytest.raises(BenchError, match=r"^s\.toml: figure f: ") as caught:
        plots.figure(rows, {"name": "f", "metric": "top1", **block}, "s.toml: figure")
    assert says in str(caught.value)


def test_figures_of_a_suite(tmp_path):
    block, frame = KINDS["layers"]
    suite = Suite("s", Path("s.toml"), "", None, (), figures=({"name": "f", "metric": "top1", **block},))
    assert plots.of_suite(suite, frame, tmp_path / "new", form="svg") == [tmp_path / "new" / "s-f.svg"]
    with pytest.raises(BenchError, match="there is no figure 'g'"):
        plots.of_suite(suite, frame, tmp_path, "g")
    with pytest.raises(BenchError, match=r"as \.png, \.svg or \.pdf"):
        plots.draw(frame, suite.figures[0], tmp_path / "f.gif")


def test_lines_are_told_apart():
    looks = [look(i) for i in range(28)]
    assert len(set(looks)) == 28
    assert len({marker for _, marker, _ in looks[:10]}) == 10


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_names_are_spread_without_overlap(wanted):
    places = spread(sorted(wanted), 0.08)
    assert all(b - a >= 0.08 - 1e-9 for a, b in itertools.pairwise(places))
    assert places[0] >= -1e-9
    assert places[-1] <= 1 + 1e-9
