"""After a plain submit, whoever asks first writes what ``bench run`` writes, from wherever the folder is seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from bench import artifacts

FIGURE = """
[[table]]
name = "all"
metric = "norm"
[[figure]]
name = "norms"
x = "seed"
metric = "norm"
"""


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} if folder.exists() else {}


@pytest.fixture
def ran(suite, bench, home):
    """A suite of which all is done, as if jobs had done it: its runs, and what bench run wrote."""

    def make(*more, tables=""):
        path = suite("[methods]\nwalker = {}\nslow = {use = 'walker', lr = 0.3}\n" + tables, top="seeds = 2")
        assert bench("run", path, "--jobs", 0, *more).code == 0
        written = files(home / "results")
        assert {"toy.csv", "toy.md"} <= set(written)
        shutil.rmtree(home / "results")
        return path, written

    return make


def asked(home, *parts):
    (home / "runs" / ".slurm").mkdir(exist_ok=True)
    artifacts.write_json(artifacts.asked_for(home / "runs"), {"toy": list(parts)})


@pytest.mark.parametrize("command", ["table", "status"])
@pytest.mark.parametrize("part", [{}, {"methods": ["slow"]}])
def test_who_asks_first_writes_what_run_writes(ran, bench, home, monkeypatch, command, part):
    path, expected = ran(*(["--methods", "slow"] if part else []))
    asked(home, part)
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    places = ["--runs", home / "runs", "--results", home / "results"]
    done = bench(command, path, *places)
    assert done.code == 0, done.err
    assert files(home / "results") == expected
    assert list((home / "elsewhere").iterdir()) == []


def test_a_suite_that_was_never_submitted_writes_nothing_when_it_is_read(ran, bench, home):
    path, _ = ran()
    assert bench("table", path).code == 0
    assert files(home / "results") == {}


def test_a_half_done_suite_says_so(suite, bench, home):
    path = suite("[methods]\nwalker = {}\nslow = {use = 'walker', lr = 0.3}", top="seeds = 2")
    assert bench("run", path, "--jobs", 0, "--methods", "slow").code == 0
    shutil.rmtree(home / "results")
    asked(home, {})
    done = bench("table", path)
    assert (done.code, "toy: half done: 2 of 4 cells are there" in done.err) == (0, True)
    assert "[1] pending" in done.out
    assert (home / "results" / "toy.csv").read_text().count("pending") == 2
    assert "pending" in (home / "results" / "toy.md").read_text()


def test_a_folder_that_may_not_be_written_is_read_all_the_same(ran, bench, home):
    path, _ = ran()
    asked(home, {})
    (home / "results").write_text("in the way")
    done = bench("table", path)
    assert (done.code, "not written: " in done.err, "walker" in done.out) == (0, True, True)


@pytest.mark.slow
@pytest.mark.slurm
def test_submit_status_table_and_plot_end_with_the_files_of_run(slurm, home, suite, monkeypatch):
    cluster = slurm(accounting=False)
    path = suite("[methods]\nwalker = {}\n[slurm]\nmem = '2500M'\ncpus = 1", top="seeds = 4")
    (home / "elsewhere").mkdir()
    places = ["--runs", home / "runs", "--results", home / "results"]

    def bench(*words, cwd="elsewhere"):
        command = [sys.executable, "-m", "bench", *map(str, words)]
        return subprocess.run(command, cwd=home / cwd, check=True, capture_output=True, text=True)

    bench("submit", path, *places, cwd=".")
    assert files(home / "results") == {}
    cluster.wait_idle()
    assert json.loads(bench("status", path, *places, "--json").stdout)["counts"] == {"ok": 4}
    found = files(home / "results")
    assert {"toy.csv", "toy.md"} <= set(found)
    bench("table", path, *places)
    assert files(home / "results") == found
    shutil.rmtree(home / "results")
    bench("run", path, cwd=".")
    assert files(home / "results") == found
