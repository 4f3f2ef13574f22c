"""Every command says what it is for; bad input is one line that names file, key and what to write instead."""

import os
import subprocess
import sys

import pytest

GOOD = """
budget = 100
backbone = "alexnet_small"
data = {dataset = "digits"}
[methods.rotation]
[protocols.knn]
"""


def command(folder, *words):
    environment = {**os.environ, "BENCH_DEVICE": "cpu"}
    line = [sys.executable, "-m", "bench", *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


BAD = [
    ("bugdet = 3\n", ["bad.toml", "bugdet", "budget"]),
    (
        GOOD.replace("[methods.rotation]", "[methods.rotatoin]"),
        ["bad.toml", "rotatoin", "did you mean 'rotation'"],
    ),
    (GOOD.replace("[protocols.knn]", "[protocols.knnn]"), ["knnn", "did you mean 'knn'"]),
    (GOOD.replace('"digits"', '"digit"'), ["bad.toml", "digit", "did you mean 'digits'"]),
    (GOOD.replace('"alexnet_small"', '"alexnet_smal"'), ["alexnet_smal", "did you mean 'alexnet_small'"]),
    (
        GOOD.replace("[methods.rotation]", "[methods.rotation]\nrotation = 2"),
        ["'rotation'", "did you mean 'rotations'"],
    ),
    (GOOD.replace("[methods.rotation]", '[methods.rotation]\nlr = "big"'), ["rotation.lr", "float", "'big'"]),
    (GOOD.replace("budget = 100", 'budget = "ten"'), ["budget", "12 epochs", "'ten'"]),
    ("seeds = [", ["bad.toml", "TOML"]),
]


@pytest.mark.parametrize(("text", "told"), BAD)
def test_a_bad_suite_is_told_in_one_line(tmp_path, text, told):
    (tmp_path / "bad.toml").write_text(text)
    done = command(tmp_path, "status", "bad.toml")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    for part in told:
        assert part in done.stderr


def test_an_unknown_suite_is_told(tmp_path):
    done = command(tmp_path, "run", "quik")
    assert done.returncode == 2
    assert "did you mean 'quick'" in done.stderr


@pytest.mark.slow
def test_an_unknown_layer_costs_its_own_cell_and_is_told(tmp_path):
    text = GOOD.replace("[protocols.knn]", '[protocols.knn]\nlayer = "conv9"')
    (tmp_path / "bad.toml").write_text(text)
    done = command(tmp_path, "run", "bad.toml", "--jobs", "1")
    assert done.returncode == 2
    assert "conv9" in done.stderr
    assert "conv5" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_missing_data_folder_is_told(tmp_path):
    (tmp_path / "bad.toml").write_text(GOOD.replace('"digits"', '"cifar10"'))
    done = command(tmp_path, "run", "bad.toml", "--jobs", "1")
    assert done.returncode == 2
    assert "bench data get cifar10" in done.stderr
    assert "Traceback" not in done.stderr


# ---- every command: what it says, and one mistake ------------------------------------------------

FIGURE = '[[figure]]\nname = "bars"\nkind = "bars"\nmetric = "norm"\n'
TABLE = '[[table]]\nname = "all"\nprotocol = "norms"\nmetric = "norm"\n'


@pytest.fixture
def finished(suite, bench):
    path = suite(f"[methods]\nwalker = {{}}\n{TABLE}{FIGURE}")
    done = bench("run", path, "--jobs", 0)
    assert done.code == 0
    assert "walker" in done.out
    assert done.err.splitlines()[0] == (
        "toy: 1 of 1 cells to do in 1 trainings; no forecast: nothing like it was measured yet"
    )
    assert done.err.splitlines()[1] == "[1/1] walker seed 0 done; 0 s left"
    return path


def mistake(done, *parts):
    assert done.code == 2
    assert "Traceback" not in done.err
    assert all(part in done.err for part in parts), done.err


def test_run_again_does_nothing(finished, bench, home):
    done = bench("run", finished)
    assert done.code == 0
    assert done.out == (
        f"toy: nothing to do, all 1 cells are done; see {home}/results/toy.csv or: bench table {finished}\n"
    )
    assert sorted(p.name for p in (home / "results").iterdir()) == ["toy-bars.png", "toy.csv", "toy.md"]


def test_run_of_fewer_seeds(suite, bench):
    assert "1 of 1 cells to do" in bench("run", suite(top="seeds = 3"), "--jobs", 0, "--seeds", 1).err


def test_mistakes_of_run(suite, bench):
    mistake(bench("run", suite(), "--jobs", -1), "--jobs must be 0 (this process) or a number of processes")
    mistake(bench("run", suite(), "--jobs", "two"), "--jobs", "'two' is not a valid integer")
    mistake(bench("run"), "Missing argument 'SUITE'")
    mistake(bench("run", "mine.toml"), "mine.toml: there is no such file")


def test_status(finished, bench):
    assert bench("status", finished).out == "toy: 1 ok\n"
    line, total = bench("status", finished, "--cells").out.splitlines()
    assert line.startswith("ok        walker-dot_net-dots-s0-")
    assert "/norms-dots-" in line
    assert total == "toy: 1 ok"
    mistake(bench("status", "toys"), "there is no suite 'toys'", "give the path of a .toml file")


def test_why(finished, bench):
    cell = bench("status", finished, "--cells").out.split()[1]
    assert bench("why", cell).out == f"{cell}: up to date\n"
    mistake(bench("why", "nothing"), "nothing: there is no such training")


def test_adopt(finished, bench):
    assert bench("adopt", finished).out.startswith("nothing to adopt: ")
    mistake(bench("adopt", finished, "--check", 0), "--check", "0 is not in the range x>=1")


def test_table(finished, bench):
    assert "walker" in bench("table", finished).out
    assert bench("table", finished, "--format", "markdown").out.count("|") > 6
    assert bench("table", finished, "--format", "latex").out.count("\\\\") > 1
    assert "walker" in bench("table", finished, "--name", "all", "--format", "csv").out
    assert '<th scope="row">walker</th>' in bench("table", finished, "--format", "html").out
    mistake(bench("table", finished, "--name", "al"), "there is no table 'al'; did you mean 'all'?")
    mistake(bench("table", finished, "--format", "docx"), "'docx' is not one of 'terminal'")


def test_the_rows_that_came_with_a_checkout_are_shown_beside_runs_of_other_suites(finished, bench, home):
    before = bench("table", finished).out
    (home / "runs").rename(home / "elsewhere")
    (home / "runs" / "another").mkdir(parents=True)
    assert bench("table", finished).out == before


def test_plot(finished, bench, home):
    done = bench("plot", finished, "--format", "svg")
    assert done.out == f"{home}/results/toy-bars.svg\n"
    assert (home / "results" / "toy-bars.svg").read_text().startswith("<?xml")
    mistake(bench("plot", finished, "--name", "bar"), "there is no figure 'bar'; did you mean 'bars'?")


def test_list(bench):
    done = bench("list")
    assert [line for line in done.out.splitlines() if not line.startswith(" ")] == [
        "suites",
        "methods",
        "protocols",
        "datasets",
        "backbones",
    ]
    assert "  walker " in bench("list", "methods").out
    assert "      lr = 0.25  (float)" in bench("list", "methods", "--fields").out
    mistake(bench("list", "method"), "'method' is not one of 'suites', 'methods'")


def test_list_says_what_was_made_from_description(bench):
    told = {}
    for line in bench("list").out.splitlines():
        name, _, rest = line.strip().partition(" ")
        told[name] = rest.partition("[from description: ")[2].rstrip("]")
    assert told["damaged_jigsaw"] == "no code was released; weights, decoder and bins are ours"
    assert told["linear_probe"].startswith("zhang_resize alone")
    for name in ("counting", "cpc", "split_brain", "context_encoder", "pseudo_label", "entropy_minimization"):
        assert told[name], name
    for name in ("rotation", "jigsaw", "context_prediction", "bigan", "deepcluster", "mixmatch", "knn"):
        assert not told[name], name


def test_data(bench, home):
    assert bench("data", "check", "digits").out == "digits: ok\n"
    done = bench("data", "check", "digits", "cifar10")
    assert done.code == 2
    assert f"cifar10: {home}/data/cifar-10-batches-py/data_batch_1: missing" in done.out
    mistake(bench("data", "check", "cifar"), "there is no dataset 'cifar'; did you mean 'cifar10")
    mistake(bench("data", "get", "imagenet"), "imagenet cannot be downloaded freely", "image-net.org")
    mistake(bench("data", "got"), "No such command 'got'")


def test_help_and_version(bench):
    assert "Start here:" in bench("--help").out
    assert bench("--version").out.startswith("bench, version ")
    mistake(bench("rum"), "No such command 'rum'")
