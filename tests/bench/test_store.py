"""Outcomes become rows, every planned cell at least one."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from bench import store
from bench.artifacts import cell_id, folder
from bench.planning import plan
from bench.planning.suite import load
from bench.records import COLUMNS
from bench.shared import first_seeds

MIXED = """
[methods]
walker = {trouble = "raise", trouble_seed = 1}
namer = {}
"""


@pytest.fixture
def mixed(suite):
    return suite(MIXED, top="seeds = 2", protocols="norms = {}\nvotes = {}")


def test_every_planned_cell_is_a_row_whatever_happened(home, mixed, bench):
    planned = plan.cells(load(str(mixed)))
    before = store.collect("toy", planned, home / "runs")
    assert {row["status"] for row in before} == {"pending", "skipped"}
    assert bench("run", mixed, "--jobs", 0).code == 2
    rows = store.collect("toy", planned, home / "runs")
    cells = {(row["training"], row["cell"]) for row in rows}
    assert cells == {(row["training"], row["cell"]) for row in before}
    by_status = {status: [r for r in rows if r["status"] == status] for status in ("ok", "failed", "skipped")}
    assert sum(map(len, by_status.values())) == len(rows)
    (reason,) = (r["reason"] for r in by_status["failed"])
    assert reason.startswith("RuntimeError: told to go wrong (walker.py:")
    assert {r["reason"] for r in by_status["skipped"]} == {"votes needs a classifier; walker makes none"}
    assert len(by_status["ok"]) == 2 + 2 * 2 + 2  # walker's and namer's norms on two splits, namer's votes
    for row in by_status["ok"]:
        assert row["images_seen"] == (48 if row["method"] == "walker" else 0)
        assert row["split_digest"] or row["method"] == "walker"
        assert row["versions"].startswith("python 3")


def test_rows_of_a_failed_cell_tell_why_and_the_next_run_tries_again(home, suite, bench):
    path = suite(protocols='norms = {trouble = "raise"}')
    for attempt in (1, 2):
        assert bench("run", path, "--jobs", 0).code == 2
        (row,) = store.collect("toy", plan.cells(load(str(path))), home / "runs")
        assert (row["status"], row["attempt"]) == ("failed", attempt)
        assert row["reason"].startswith("RuntimeError: cannot judge (norms.py:")
        assert row["value"] == ""  # numbers before the failure are not a result


def test_a_failed_training_speaks_for_its_cells(home, suite):
    (one,) = plan.cells(load(str(suite())))
    files = folder(home / "runs", one.cell.training)
    files.path.mkdir(parents=True)
    files.status.write_text(json.dumps({"status": "oom", "reason": "out of memory", "attempt": 3}))
    (row,) = store.collect("toy", [one], home / "runs")
    assert (row["status"], row["reason"]) == ("oom", "out of memory")
    assert (row["attempt"], f"{row['training']}/{row['cell']}") == (3, cell_id(one.cell))


def test_the_csv_holds_every_number_exactly(home, suite, bench):
    path = suite(top="seeds = 2")
    assert bench("run", path, "--jobs", 0).code == 0
    rows = store.collect("toy", plan.cells(load(str(path))), home / "runs")
    with (home / "results" / "toy.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS
    assert [float(r["value"]) for r in read] == [r["value"] for r in rows]
    assert [int(r["seed"]) for r in read] == [0, 0, 1, 1]
    assert json.loads(read[0]["method_settings"])["groups"] == [1, 2]
    assert json.loads(read[0]["data_settings"])["dataset"] == {"count": 36, "side": 8}
    assert read[0]["backbone"] == 'dot_net {"width": 4}'


def without(path, seed):
    """The table without a seed's rows."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] != str(seed)]
    store.write_csv(path, rows)


def numbers(path):
    with path.open(newline="") as file:
        return [(r["training"], r["cell"], r["label"], r["status"], r["value"]) for r in csv.DictReader(file)]


def trained(home):
    return sorted(p.name for p in (home / "runs").glob("*") if (p / "status.json").exists())


def test_what_another_machine_measured_is_not_run_again_where_that_is_asked_for(home, suite, bench):
    two = '[methods]\nwalker = {}\nthe_same = {use = "walker"}'  # one cell, rows under two names
    path, table = suite(two, top="seeds = 2"), home / "results" / "toy.csv"
    assert bench("run", path, "--jobs", 0).code == 0
    whole = numbers(table)
    shutil.rmtree(home / "runs")  # the table alone has come here
    said = bench("run", path, "--jobs", 0, "--missing")
    assert (said.code, trained(home)) == (0, [])
    assert "nothing to do" in said.out
    without(table, 1)
    assert bench("status", path).out == "toy: 1 elsewhere, 1 pending\n"
    assert f"measured elsewhere, its rows are in {table}" in bench("status", path, "--cells").out
    assert bench("run", path, "--jobs", 0, "--missing").code == 0
    assert bench("status", path).out == "toy: 1 elsewhere, 1 ok\n"
    assert [name.split("-")[3] for name in trained(home)] == ["s1"]
    assert numbers(table) == whole
    shown = bench("table", path)
    assert shown.code == 0
    assert "1/2" not in shown.out
    assert bench("run", path, "--jobs", 0).code == 0
    assert len(trained(home)) == 2  # without being asked, everything is run


def test_trials_of_a_search_that_are_the_same_cell_keep_a_row_each(home, suite, bench):
    both = "[methods]\nwalker = {}\n[search]\ntrials = 2\n[search.methods.walker]\nnoise = [0.0]"
    path, table = suite(both, top="seeds = 1"), home / "results" / "toy.csv"
    assert bench("run", path, "--jobs", 0).code == 0
    whole = numbers(table)
    assert len(set(whole)) < len(whole)  # the two trials differ in their number alone
    shutil.rmtree(home / "runs")
    assert bench("run", path, "--jobs", 0, "--missing").code == 0
    planned = plan.cells(load(str(path)))
    rows = store.keeping(store.collect("toy", planned, home / "runs"), table)
    assert [(r["training"], r["cell"], r["label"], r["status"], r["value"]) for r in rows] == whole


def test_rows_of_a_label_that_was_renamed_stay(home, suite, bench):
    table = home / "results" / "toy.csv"
    assert bench("run", suite(), "--jobs", 0).code == 0
    before = numbers(table)
    shutil.rmtree(home / "runs")
    path = suite("[methods]\nstroller = {use = 'walker'}\ntwin = {use = 'walker'}")
    done = bench("run", path, "--jobs", 0, "--missing")
    assert done.code == 0, done.err
    assert trained(home) == []
    after = numbers(table)
    assert {row[2] for row in after} == {"stroller", "twin"}
    for label in ("stroller", "twin"):
        own = [row for row in after if row[2] == label]
        assert [(*row[:2], *row[3:]) for row in own] == [(*row[:2], *row[3:]) for row in before]


def test_a_torn_line_of_a_table_costs_its_own_cell(home, suite, bench):
    path, table = suite(top="seeds = 2"), home / "results" / "toy.csv"
    assert bench("run", path, "--jobs", 0).code == 0
    whole = numbers(table)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:-1], lines[-1] + ",more"]) + "\n")
    shutil.rmtree(home / "runs")
    assert bench("run", path, "--jobs", 0, "--missing").code == 0
    assert [name.split("-")[3] for name in trained(home)] == ["s1"]
    assert numbers(table) == whole


def test_a_table_of_fewer_seeds_is_not_final(home, suite, bench):
    path, table = suite(top="seeds = 2"), home / "results" / "toy.csv"
    assert bench("run", path, "--jobs", 0).code == 0
    whole = table.read_bytes()
    without(table, 1)  # all is done here, but the table is that of a run of one seed
    assert bench("run", path, "--jobs", 0).code == 0
    assert table.read_bytes() == whole


@pytest.mark.parametrize(
    ("seeds", "count", "kept"), [("[7, 3]", 1, {7}), ("[5, 6]", 1, {5}), ("3", 2, {0, 1})]
)
def test_the_first_seeds_are_those_that_the_suite_names_first(home, seeds, count, kept):
    path = home / "s.toml"
    path.write_text(
        f'seeds = {seeds}\nbudget = 10\nbackbone = "alexnet_small"\n[data]\ndataset = "digits"\n'
        "[methods]\nmean_color = {}\nrandom = {}\n[protocols]\nknn = {}\n"
    )
    loaded = load(str(path))
    found = first_seeds(loaded, plan.cells(loaded), count)
    assert {p.cell.training.seed for p in found if p.label == "random"} == kept
    assert sum(p.label == "mean_color" for p in found) == 1  # one model, whatever the seeds


def test_a_run_of_fewer_seeds_leaves_the_others_rows(home, suite, bench):
    path, table = suite(top="seeds = 3"), home / "results" / "toy.csv"
    assert bench("run", path, "--jobs", 0, "--seeds", 2).code == 0
    two = numbers(table)
    assert {status for *_, status, _ in two} == {"ok"}  # the third was not asked for: it is not missing
    assert bench("run", path, "--jobs", 0).code == 0
    three = numbers(table)
    assert three[: len(two)] == two
    assert len(three) == len(two) * 3 // 2
    shutil.rmtree(home / "runs")
    assert bench("run", path, "--jobs", 0, "--seeds", 1).code == 0
    assert (numbers(table), len(trained(home))) == (three, 1)


def test_a_run_that_ends_early_leaves_the_rows_that_were_there(home, suite, bench, monkeypatch):
    path, table = suite(top="seeds = 2"), home / "results" / "toy.csv"
    assert bench("run", path, "--jobs", 0).code == 0
    before = numbers(table)
    shutil.rmtree(home / "runs")
    monkeypatch.setattr("bench.launch.InProcess.run", lambda *_: iter(()))
    bench("run", path, "--jobs", 0)
    assert (numbers(table), trained(home)) == (before, [])


def test_rows_of_other_settings_or_with_a_failure_are_not_taken_over(home, suite, bench):
    table = home / "results" / "toy.csv"
    assert bench("run", suite(), "--jobs", 0).code == 0
    (one,) = plan.cells(load(str(suite())))
    assert set(store.measured(table)) == {cell_id(one.cell)}
    (other,) = plan.cells(load(str(suite(top="budget = 96"))))
    assert cell_id(other.cell) not in store.measured(table)
    (row,) = store.keeping(store.collect("toy", [other], home / "nothing"), table)
    assert row["status"] == "pending"
    text = table.read_text()
    table.write_text(text.replace(",ok,", ",failed,"))
    assert store.measured(table) == {}
    table.write_text(text.replace("metric", "measure", 1))  # columns of another version
    assert store.measured(table) == {}
    assert store.measured(home / "no.csv") == {}


def test_a_baseline_that_another_suite_made_does_not_hide_a_table(home, suite, bench):
    both = suite("[methods]\nnamer = {}\nwalker = {}", name="both")
    assert bench("run", both, "--jobs", 0).code == 0
    table = home / "results" / "both.csv"
    trained_by_older_code = table.read_text().replace("walker-", "older-")
    table.write_text(trained_by_older_code)
    shutil.rmtree(home / "runs")
    assert bench("run", suite("[methods]\nnamer = {}", name="one"), "--jobs", 0).code == 0
    shown = bench("table", both).out
    assert "pending" not in shown
    assert bench("run", both, "--jobs", 0).code == 0  # now it is run here
    assert len(trained(home)) == 2
    table.write_text(trained_by_older_code)
    assert "pending" not in bench("table", both).out


def test_a_row_with_an_unknown_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="surprise"):
        store.write_csv(tmp_path / "x.csv", [{"surprise": 1}])


def test_rows_of_other_settings_are_told_and_not_lost(home, suite, bench):
    path, results = suite(top="seeds = 2"), home / "results"
    table, aside = results / "toy.csv", results / "toy-earlier.csv"
    assert bench("run", path, "--jobs", 0).code == 0
    before = numbers(table)
    suite("[methods]\nwalker = {lr = 0.3}", top="seeds = 2")
    told = f"{table}: 2 of its 2 cells are of other settings or code than "
    assert (
        told in bench("table", path).err
    )  # nothing of the suite as it is was run: the table is shown as it lies
    assert told in bench("status", path).out
    assert bench("run", path, "--jobs", 0).code == 0
    assert not aside.exists()  # their runs are here
    assert told not in bench("table", path).err + bench("status", path).out
    shutil.rmtree(home / "runs")
    suite(top="seeds = 2")
    second = numbers(table)
    said = bench("run", path, "--jobs", 0)
    assert f"{table}: 4 rows are of other settings or code: they are in {aside} now" in said.err
    assert numbers(aside) == second
    assert numbers(table) == before
    shutil.rmtree(home / "runs")
    suite("[methods]\nwalker = {lr = 0.4}", top="seeds = 1")
    assert bench("run", path, "--jobs", 0).code == 0
    assert numbers(aside) == second + before
