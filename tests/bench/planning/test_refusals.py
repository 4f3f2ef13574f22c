"""A word that a unit does not know is told before anything is trained, and asked for once only."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import registry
from bench.planning import plan, refusals
from bench.planning.suite import load

SUITE = """
budget = 48
backbone = {name = "alexnet_small", widths = [4, 4, 4, 4, 4]}
data = {dataset = {name = "digits", side = 16}}
[methods]
random = {}
vat = {}
[protocols]
knn = {k = 5}
linear_probe = {augment = "WORD", side = 16}
"""


@pytest.fixture
def path(home):
    def write(word="none", change=("", "")):
        file = home / "words.toml"
        file.write_text(SUITE.replace("WORD", word).replace(*change))
        return file

    return write


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("none", "flp"), "linear_probe.augment is 'flp'; write none or"),
        (("side = 16}}", "side = 17}}"), "digits: side must be 16 or 32, not 17"),
    ],
)
@pytest.mark.parametrize("command", [("run", "--jobs", "0"), ("submit", "--dry-run")])
def test_it_is_one_line_and_nothing_ran(bench, home, path, command, change, told):
    file = path(change=change)
    done = bench(command[0], file, *command[1:])
    assert done.code == 2
    assert done.err.startswith(f"bench: {file}: {told}")
    assert done.err.count("\n") == 1
    assert not (home / "runs").exists()
    assert not (home / "results").exists()


def test_a_process_without_the_units_asks_another_one_and_once_only(path, home, monkeypatch):
    asked = []

    def told(command, **more):
        asked.append(json.loads(more["input"]))
        return subprocess.CompletedProcess(command, 0, json.dumps([""] * len(asked[-1])), "")

    monkeypatch.setattr(refusals.subprocess, "run", told)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    file = path()
    for _ in range(2):
        refusals.check(plan.cells(load(str(file))), "words.toml")
    (units,) = asked
    assert {name for _, name, _ in units} == {"vat", "linear_probe", "digits", "alexnet_small"}
    assert [settings["augment"] for _, name, settings in units if name == "linear_probe"] == ["none"]
    path("crop_flip")
    refusals.check(plan.cells(load(str(file))), "words.toml")
    assert [(name, s["augment"]) for _, name, s in asked[1]] == [("linear_probe", "crop_flip")]


def test_the_other_process_gives_the_words_of_the_units():
    asked = [["protocol", "linear_probe", {"augment": "flp"}], ["dataset", "digits", {"side": 16}]]
    done = subprocess.run(
        [sys.executable, "-m", "bench.planning.refusals"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    wrong, right = json.loads(done.stdout)
    assert wrong.startswith("linear_probe.augment is 'flp'")
    assert right == ""


def test_every_shipped_suite_is_accepted(home, monkeypatch):
    """Suites that only a cluster runs: their words are known to the units."""
    from bench.planning.files import builtin

    planned = [p for name in builtin() for p in plan.cells(load(name)) if not p.cell.skip]
    assert len(planned) > 1000
    refusals.check(planned, "the shipped suites")
    assert registry.cache_folder() == home / "cache"
