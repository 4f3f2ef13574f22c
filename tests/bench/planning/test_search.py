"""A search tries each method equally often; its best trial is chosen on validation, never on test."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from _rows import made, row, texts

from bench.planning import plan
from bench.planning.suite import parse
from bench.records import BenchError

SUITE = """
budget = 48
backbone = "dot_net"
seeds = 2
[data]
dataset = "dots"
[protocols]
norms = {}
[methods]
walker = {lr = 0.1}
fast = {use = "walker", lr = 1.0}
[search]
trials = 4
"""


@pytest.fixture
def planned(home):
    return lambda text: plan.cells(parse(tomllib.loads(text), Path("mine.toml")))


def uniform(seed, label, trial, key):
    """By hand: the first seven bytes of the SHA-256 of the key, as a fraction."""
    word = hashlib.sha256(f"{seed}:{label}:{trial}:{key}".encode()).hexdigest()[:14]
    return int(word, 16) / 16**14


def test_every_method_has_as_many_trials_and_the_first_is_what_is_written(planned):
    found = planned(SUITE + "[search.every]\nlr = {low = 0.01, high = 1.0, log = true}")
    assert Counter((p.label, p.trial) for p in found) == {
        (label, trial): 2 for label in ("walker", "fast") for trial in range(4)
    }
    rates = {(p.label, p.trial): p.cell.training.method.get("lr") for p in found}
    assert (rates["walker", 0], rates["fast", 0]) == (0.1, 1.0)
    for label in ("walker", "fast"):
        for trial in (1, 2, 3):
            expected = 10 ** (-2 + 2 * uniform(0, label, trial, "lr"))
            assert math.isclose(rates[label, trial], expected, rel_tol=6e-3)  # three digits are kept


def test_draws_are_whole_where_the_field_is_and_of_a_list_where_one_is_given(planned):
    found = planned(
        SUITE + "[search.every]\nbatch_size = {low = 4, high = 12}\nnoise = [0.0, 0.5]\nlr = [0.1]"
    )
    for p in found:
        settings = dict(p.cell.training.method.settings)
        if p.trial:
            size = 4 + 8 * uniform(0, p.label, p.trial, "batch_size")
            assert settings["batch_size"] == round(size)
            assert settings["noise"] == [0.0, 0.5][int(2 * uniform(0, p.label, p.trial, "noise"))]
            assert settings["lr"] == 0.1


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ("[search.methods.walker]\nlr = [0.1]", "search: nothing to draw for 'fast'"),
        ("[search.methods.walkr]\nlr = [0.1]", "search.methods: there is no method 'walkr' here; did you mean 'walker'?"),
        ("[search.methods.walker]\nlrr = [1]", "search.methods.walker: method 'walker' has no field 'lrr'; did you mean 'lr'?"),
        ("[search.every]\nlr = 0.1", "search.every.lr must be a list of values or a range"),
        ("[search.every]\nlr = {low = 0.1}", "search.every.lr must be a list of values or a range"),
        ("[search.every]\nlr = {low = 1, high = 0.1}", "search.every.lr needs numbers low < high"),
        ("[search.every]\nlr = {low = 0, high = 0.1, log = true}", "search.every.lr needs numbers low < high (above 0"),
        ("sead = 1", "search: unknown key 'sead'; did you mean 'seed'?"),
    ],
)  # fmt: skip
def test_a_slip_is_told_in_one_line(planned, tables, told):
    with pytest.raises(BenchError) as caught:
        planned(SUITE + tables)
    assert str(caught.value).startswith(f"mine.toml: {told}")


def trial(label, number, seed, test, validation):
    settings = json.dumps({"lr": number / 10, "trial": number})
    own = {"seed": seed, "method_settings": settings, "training": f"{label}-{number}-{seed}"}
    return [row(label, value=test, **own), row(label, value=validation, split="validation", **own)]


def test_a_table_shows_the_trial_that_is_best_on_validation_in_the_mean_over_runs():
    rows = [
        *trial("a", 0, 0, 50.0, 60.0), *trial("a", 0, 1, 52.0, 70.0),  # 65 on validation
        *trial("a", 1, 0, 40.0, 80.0), *trial("a", 1, 1, 44.0, 60.0),  # 70: chosen, though worse on test
        *trial("b", 0, 0, 30.0, 50.0), *trial("b", 0, 1, 32.0, 50.0),
        *trial("b", 1, 0, 20.0, 40.0), *trial("b", 1, 1, 20.0, 40.0),
    ]  # fmt: skip
    table = made(rows)
    assert texts(table) == {"a": ["42.0 ± 25.4"], "b": ["31.0 ± 12.7"]}
    assert any(s.startswith("Of 2 trials of each method's settings") for s in table.about)
    oracle = made(rows, trials="oracle")
    assert texts(oracle)["a"] == ["51.0 ± 12.7"]
    assert any("ORACLE" in s for s in oracle.about)
    each = texts(made(rows, columns="setting:trial"))
    assert each == {"a": ["51.0 ± 12.7", "42.0 ± 25.4"], "b": ["31.0 ± 12.7", "20.0 ± 0.0"]}


def test_less_is_better_for_an_error_and_a_trial_with_missing_runs_is_out():
    rows = [
        *trial("a", 0, 0, 50.0, 40.0), *trial("a", 0, 1, 52.0, 40.0),
        *trial("a", 1, 0, 10.0, 10.0), row("a", seed=1, status="failed", reason="diverged", training="a-1-1",
                                          method_settings=json.dumps({"lr": 0.1, "trial": 1}), metric="", split="", value=""),
    ]  # fmt: skip
    for one in rows:
        one["metric"] = one["metric"] and "error"
    assert texts(made(rows, metric="error")) == {"a": ["51.0 ± 12.7"]}


def test_a_search_without_validation_rows_is_refused():
    with pytest.raises(BenchError, match=r"no validation rows to choose a trial on: write target.validation"):
        made([trial("a", 0, 0, 50.0, 60.0)[0]])
