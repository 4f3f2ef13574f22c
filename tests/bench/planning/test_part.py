"""Part of a suite: the cells that its names and settings mean, and nothing lost of the rest."""

from __future__ import annotations

import pytest

from bench.planning import part, plan
from bench.planning.part import Part
from bench.planning.suite import load
from bench.records import BenchError, plain

TABLES = "[methods]\nwalker = {}\nslow = {use = 'walker', lr = [0.3, 0.9]}"


@pytest.fixture
def planned(suite):
    path = suite(
        TABLES, top="seeds = 3\nbudget = [24, 48]", protocols="norms = {factor = [1, 2]}\nvotes = {}"
    )
    return plan.cells(load(str(path)))


def chosen(planned, **words):
    lists = {kind: words.get(kind, ()) for kind in ("methods", "datasets", "protocols", "settings")}
    return part.cells(planned, Part.of(**lists), "toy.toml")


def test_names_leave_the_rest_out(planned):
    found = chosen(planned, methods=["slow"], protocols=["votes"])
    assert found == [p for p in planned if p.label == "slow" and p.cell.protocol.name == "votes"]
    assert chosen(planned, methods=["walker,slow"], datasets=["dots"]) == planned


@pytest.mark.parametrize(
    ("written", "holds"),
    [
        ("method.lr=0.3", lambda p: p.cell.training.method.get("lr") == 0.3),
        ("budget=48", lambda p: p.cell.training.budget == 48),
        ("seed=2", lambda p: p.cell.training.seed == 2),
        ("protocol.factor=2", lambda p: p.cell.protocol.get("factor") == 2),
        ("protocol=norms", lambda p: p.cell.protocol.name == "norms"),
    ],
)
def test_a_setting_has_a_value(planned, written, holds):
    expected = [p for p in planned if holds(p)]
    assert 0 < len(expected) < len(planned)
    assert chosen(planned, settings=[written]) == expected


def test_two_values_of_a_key_are_either_and_two_keys_both(planned):
    found = chosen(planned, settings=["seed=0", "seed=1", "budget=24"])
    assert {(p.cell.training.seed, p.cell.training.budget) for p in found} == {(0, 24), (1, 24)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"methods": ["wolker"]}, "--methods: this suite has no 'wolker'; did you mean 'walker'?"),
        ({"settings": ["budget"]}, "--set must be KEY=VALUE"),
        ({"settings": ["budget=7"]}, "--set budget=7: this suite has 24, 48"),
        ({"settings": ["method.rl=7"]}, "--set method.rl=7: this suite has no such setting"),
        ({"methods": ["walker"], "settings": ["method.lr=0.3"]}, "no cell is left"),
    ],
)
def test_a_name_that_is_not_there_is_told_in_one_line(planned, words, message):
    with pytest.raises(BenchError) as told:
        chosen(planned, **words)
    assert message in str(told.value)


def test_a_part_is_kept_as_json():
    one = Part.of(["a,b"], [], ["c"], ["labels=250"])
    assert Part.read(plain(one)) == one
    assert (Part.of([], [], [], []).whole, one.whole) == (True, False)


def test_what_is_left_out_is_neither_pending_nor_lost(suite, bench, home):
    path = suite(TABLES, top="seeds = 2", protocols="norms = {}")
    assert bench("run", path, "--jobs", 0, "--set", "method.lr=0.3").code == 0
    assert {line.split(",")[3] for line in (home / "results" / "toy.csv").read_text().splitlines()[1:]} == {
        "slow"
    }
    assert "pending" not in (home / "results" / "toy.csv").read_text()
    first = bench("status", path, "--set", "method.lr=0.3").out
    assert "2 ok" in first
    assert "pending" not in first
    assert "4 pending" in bench("status", path).out
    assert bench("run", path, "--jobs", 0, "--methods", "walker", "--set", "seed=0").code == 0
    assert "3 ok" in bench("status", path).out
    text = (home / "results" / "toy.csv").read_text()
    assert text.count(",slow,") == 4  # what was there before stays: two seeds, validation and test
