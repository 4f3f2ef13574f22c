"""Why a result is stale, and taking over results of older code only where they are proven equal."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from bench import artifacts, history, launch, store
from bench.launch import InProcess
from bench.planning import plan
from bench.planning.suite import load
from bench.records import BenchError


@pytest.fixture
def finished(toys, suite, bench):
    """A suite of two seeds that has run; returns its path."""
    path = suite(top="seeds = 2")
    assert bench("run", path, "--jobs", 0).code == 0
    return path


@pytest.fixture
def edit(toys, forgetting):
    def change(name, old, new):
        path = toys / "toy_units" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        forgetting(files=True)
        for module in [m for m in sys.modules if m.startswith("toy_units")]:
            del sys.modules[module]

    return change


def names(home):
    return sorted(p.name for p in (home / "runs").iterdir())


def rows(path, home):
    return store.collect("toy", plan.cells(load(str(path))), home / "runs")


def cell_of(path):
    return artifacts.cell_id(plan.cells(load(str(path)))[0].cell)


# ---- why -----------------------------------------------------------------------------------------


def test_nothing_is_stale_at_first(finished, bench, home):
    cell = cell_of(finished)
    done = bench("why", cell)
    assert (done.code, done.out) == (0, f"{cell}: up to date\n")


def test_why_names_the_changed_module(finished, bench, edit):
    cell = cell_of(finished)
    edit("part.py", "0.25", "0.5")
    assert bench("why", cell).out == "toy_units.part: changed\n"
    assert bench("why", cell.partition("/")[0]).out == "toy_units.part: changed\n"


def test_why_names_new_and_dropped_modules_and_the_protocol(finished, bench, edit, toys):
    cell = cell_of(finished)
    (toys / "toy_units" / "pace.py").write_text("STEP = 0.25\n")
    edit("walker.py", "from toy_units.part import STEP", "from toy_units.pace import STEP")
    edit("norms.py", "self.factor", "self.factor * 2")
    assert bench("why", cell).out.splitlines() == [
        "toy_units.pace: new",
        "toy_units.part: no longer used",
        "toy_units.walker: changed",
        "protocol code changed",
    ]


def test_why_names_the_core(finished, bench, monkeypatch, forgetting):
    cell = cell_of(finished)
    for module in (artifacts, history):
        monkeypatch.setattr(module, "NUMERICS", 99)
    forgetting()
    assert "the harness's NUMERICS went from 2 to 99" in bench("why", cell).out


def test_a_comment_makes_nothing_stale(finished, bench, edit):
    cell = cell_of(finished)
    edit("part.py", "STEP", "# how far\nSTEP")
    assert "up to date" in bench("why", cell).out
    assert "nothing to do" in bench("run", finished, "--jobs", 0).out


def test_an_unknown_training_or_cell_is_told(finished, bench):
    cell = cell_of(finished)
    done = bench("why", "walkre-dot_net")
    assert done.code == 2
    assert "there is no such training" in done.err
    done = bench("why", cell[:-1] + "x")
    assert done.code == 2
    assert "there is no such cell; did you mean" in done.err


# ---- adopt ---------------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch):
    """Runs again in this process: a worker takes seconds to start."""
    monkeypatch.setattr(history, "executor", lambda *_: InProcess())


@pytest.mark.slow
def test_workers_run_again_what_is_adopted(finished, bench, edit):
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    assert "adopted 2 trainings" in bench("adopt", finished).out


def test_results_of_a_harmless_change_are_taken_over(here, finished, bench, edit, home):
    before = rows(finished, home)
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    assert {r["status"] for r in rows(finished, home)} == {"pending"}
    done = bench("adopt", finished, "--check", 1)
    assert done.code == 0
    assert "adopted 2 trainings" in done.out
    assert done.out.count("equal: ") == 1
    after = rows(finished, home)
    assert [r["value"] for r in after] == [r["value"] for r in before]
    assert [r["training"][-8:] for r in after] != [r["training"][-8:] for r in before]
    for one in plan.cells(load(str(finished))):
        files = artifacts.folder(home / "runs", one.cell.training)
        status = json.loads(files.status.read_text())
        assert status["adopted_from"].startswith(artifacts.training_stem(one.cell.training))
        assert len(status["adopted_checked"]) == 1
        assert history.why(artifacts.cell_id(one.cell), home / "runs") == []
    assert "nothing to do" in bench("run", finished, "--jobs", 0).out
    assert not [n for n in names(home) if n.startswith("adopt")]  # what was run again is not kept


def test_results_of_a_change_that_matters_are_refused(here, finished, bench, edit, home):
    kept = names(home)
    edit("walker.py", ".mean() - 1 +", ".mean() - 1.01 +")
    done = bench("adopt", finished)
    assert done.code == 2
    assert "comes out differently today: nothing was adopted" in done.err
    assert names(home) == kept
    assert {r["status"] for r in rows(finished, home)} == {"pending"}


def test_a_change_of_the_last_bit_is_refused(here, finished, bench, edit):
    edit("norms.py", "float(norm) * self.factor", "float(norm) * self.factor * (1 + 2.0**-52)")
    assert "comes out differently today" in bench("adopt", finished).err


def test_a_protocols_harmless_change_is_taken_over_too(here, finished, bench, edit, home):
    before = [(r["training"], r["value"]) for r in rows(finished, home)]
    edit("norms.py", "float(norm) * self.factor", "self.factor * float(norm)")
    assert "adopted 2 trainings" in bench("adopt", finished).out
    assert [(r["training"], r["value"]) for r in rows(finished, home)] == before
    assert bench("why", cell_of(finished)).out.endswith("up to date\n")


def test_rows_whose_runs_are_elsewhere_are_taken_over(here, finished, bench, edit, home):
    table = home / "results" / "toy.csv"
    before = store.recorded(table)
    shutil.rmtree(home / "runs")
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    assert "nothing to adopt" in bench("adopt", finished).out  # which looks at runs
    done = bench("adopt", finished, "--rows", "--check", 1)
    assert done.code == 0, done.err
    assert "adopted 2 trainings" in done.out
    assert done.out.count("equal: ") == 1
    after = store.recorded(table)
    today = {artifacts.cell_id(p.cell) for p in plan.cells(load(str(finished)))}
    assert set(after) == today
    assert not today & set(before)
    for old, new in zip(before.values(), after.values(), strict=True):
        for was, now in zip(old, new, strict=True):
            changed = {column for column in was if was[column] != now[column]}
            assert changed == {"training", "code_digest"}  # a training's code, not a protocol's
    assert names(home) == []
    assert "nothing to adopt" in bench("adopt", finished, "--rows").out


@pytest.fixture
def checkout(toys, home):
    """A folder with the code as it is now, toys and all."""
    shutil.copytree(toys, home / "older")
    for package in ("bench", "methods", "protocols"):
        (home / "older" / package).symlink_to(Path(__file__).parents[2] / package)
    return home / "older"


@pytest.fixture
def elsewhere(home):
    """Makes the table look as if another machine had measured it."""

    def change():
        table = home / "results" / "toy.csv"
        found = [row for rows in store.recorded(table).values() for row in rows]
        store.write_csv(table, [row | {"value": repr(float(row["value"]) * (1 + 2.0**-50))} for row in found])
        shutil.rmtree(home / "runs")
        return [row["value"] for rows in store.recorded(table).values() for row in rows]

    return change


@pytest.mark.slow
def test_rows_of_another_machine_are_held_against_the_code_that_made_them(
    finished, checkout, elsewhere, bench, edit, home
):
    before = elsewhere()
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    alone = bench("adopt", finished, "--rows", "--check", 1)
    assert alone.code == 2
    assert "--code runs the code that made the rows here too" in alone.err
    done = bench("adopt", finished, "--rows", "--check", 1, "--code", checkout)
    assert done.code == 0, done.err
    assert "adopted 2 trainings" in done.out
    after = store.recorded(home / "results" / "toy.csv")
    assert set(after) == {artifacts.cell_id(p.cell) for p in plan.cells(load(str(finished)))}
    assert [row["value"] for rows in after.values() for row in rows] == before  # its own, of that machine
    assert names(home) == []


@pytest.mark.slow
def test_code_that_makes_other_numbers_is_found_out_on_any_machine(
    finished, checkout, elsewhere, bench, edit, home
):
    elsewhere()
    before = (home / "results" / "toy.csv").read_bytes()
    edit("norms.py", "float(norm) * self.factor", "float(norm) * self.factor * (1 + 2.0**-52)")
    done = bench("adopt", finished, "--rows", "--code", checkout)
    assert done.code == 2
    assert "comes out differently today: nothing was adopted" in done.err
    assert (home / "results" / "toy.csv").read_bytes() == before


@pytest.mark.slow
def test_a_checkout_of_other_code_proves_nothing(finished, elsewhere, checkout, bench, edit, home):
    elsewhere()
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    shutil.copy(home / "thirdparty" / "toy_units" / "part.py", checkout / "toy_units" / "part.py")
    done = bench("adopt", finished, "--rows", "--code", checkout)
    assert done.code == 2
    assert "give the code that made the rows (column commit)" in done.err


def test_a_folder_without_code_is_no_checkout(here, finished, bench, edit, home):
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    done = bench("adopt", finished, "--rows", "--code", home)
    assert done.code == 2
    assert "is no checkout of this project" in done.err
    assert bench("adopt", finished, "--code", home).err.startswith("bench: --code goes with --rows")


def test_rows_that_are_not_taken_over_stay_as_they_were(here, suite, bench, edit, home):
    """Those of other settings too, which a run would drop."""
    both = "[methods]\nwalker = {}\nother = {use = 'walker', noise = %s}"
    table = home / "results" / "toy.csv"
    assert bench("run", suite(both % 0.25), "--jobs", 0).code == 0
    before = table.read_text().splitlines()
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    assert "adopted 1 trainings" in bench("adopt", suite(both % 0.5), "--rows").out
    after = table.read_text().splitlines()
    assert len(after) == len(before)
    kept = [line for line in after if line in before]
    assert len(kept) == 1 + sum(",other," in line for line in before)


def test_rows_keep_their_places(here, suite, bench, edit, home):
    """Two names for the same cells: a table shows its methods in the order of its rows."""
    path = suite("[methods]\nwalker = {}\ntwin = {use = 'walker'}", top="seeds = 2")
    assert bench("run", path, "--jobs", 0).code == 0
    table = home / "results" / "toy.csv"
    before = pd.read_csv(table, dtype=str, keep_default_na=False)
    assert list(before.label.drop_duplicates()) == ["walker", "twin"]
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    assert "adopted 2 trainings" in bench("adopt", path, "--rows").out
    after = pd.read_csv(table, dtype=str, keep_default_na=False)
    same = [column for column in before if column not in ("training", "code_digest")]
    pd.testing.assert_frame_equal(after[same], before[same])


def test_what_is_run_again_is_of_different_methods_first(suite, bench, home):
    path = suite("[methods]\nwalker = {}\nnamer = {}\nplain = {use = 'walker', noise = 0.1}", top="seeds = 4")
    planned = plan.cells(load(str(path)))
    stale = launch.tasks(planned)
    for seed in range(5):
        picked = history._sample(stale, 2, seed)
        assert {task.training.method.name for task in picked} == {"walker", "namer"}
    assert len(history._sample(stale, 100, 0)) == len(stale) == len(set(history._sample(stale, 100, 0)))
    assert history._sample(stale, 3, 0) != history._sample(stale, 3, 1)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("walker.py", ".mean() - 1 +", ".mean() - 1.01 +"),
        ("norms.py", "float(norm) * self.factor", "float(norm) * self.factor * (1 + 2.0**-52)"),
    ],
)
def test_rows_that_come_out_differently_are_refused(here, finished, bench, edit, home, file, old, new):
    table = home / "results" / "toy.csv"
    before = table.read_bytes()
    edit(file, old, new)
    done = bench("adopt", finished, "--rows")
    assert done.code == 2
    assert "comes out differently today: nothing was adopted" in done.err
    assert table.read_bytes() == before


def test_code_that_fails_today_adopts_nothing(here, finished, bench, edit):
    edit("walker.py", "optimizer = sgd", "raise OSError\n        optimizer = sgd")
    done = bench("adopt", finished)
    assert done.code == 2
    assert "re-running failed" in done.err
    assert "Traceback" not in done.err


def test_without_older_results_there_is_nothing_to_adopt(suite, bench, home):
    path = suite()
    (home / "runs").mkdir()
    done = bench("adopt", path)
    assert (done.code, done.out) == (
        0,
        "nothing to adopt: no result of other code stands where this suite's would\n",
    )


def test_adopting_needs_no_runs_folder(suite, bench):
    assert bench("adopt", suite()).code == 0


def test_a_checked_number_of_none_is_refused(finished, bench, edit):
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    done = bench("adopt", finished, "--check", 0)
    assert done.code == 2
    assert "--check" in done.err


def test_why_rejects_names_that_leave_the_folder(finished, bench):
    for name in ("../runs", "/etc", ".."):
        assert bench("why", name).code == 2


def test_old_results_without_this_cell_are_no_old_results(finished, bench, edit, home, suite):
    more = suite(top="seeds = 2", protocols="norms = {factor = [1, 2]}")
    edit("part.py", "STEP = 0.25", "STEP = 1 / 4")
    done = bench("adopt", more)
    assert "nothing to adopt" in done.out
    with pytest.raises(BenchError):
        history.why("nothing", home / "runs")
