"""What does not fit is refused with the number before anything is trained; what fits is told."""

from __future__ import annotations

import json

import pytest

from bench.worker import forecast

SUITE = """
seeds = 1
budget = "1 epochs"
backbone = {{name = "alexnet_small", widths = [8, 8, 8, 8, 8], stem_stride = 1}}
data = {{dataset = {{name = "digits", side = 16}}}}
target = {{validation = 100, features = "{kept}"}}
methods = {{rotation = {{}}}}
[protocols]
knn = {{k = 5}}
{more}
"""
WIDE = 'linear_probe = {augment = "none", epochs = 1, pooling = "none", layers = ["conv2", "conv3"]}'


@pytest.fixture
def told(bench, home, monkeypatch, caplog):
    """Runs the command with so little memory and cache; returns how it ended, and what was logged."""
    monkeypatch.setattr(forecast, "FEW", 0)

    def run(memory, cache, more="", kept="float32"):
        monkeypatch.setenv("BENCH_MEMORY_GB", str(memory))
        monkeypatch.setenv("BENCH_CACHE_GB", str(cache))
        (home / "mine.toml").write_text(SUITE.format(kept=kept, more=more))
        return bench("run", "mine.toml", "--jobs", 0), caplog.messages

    return run


def trained(home):
    return [json.loads(p.read_text())["status"] for p in (home / "runs").glob("*/status.json")]


def test_what_does_not_fit_costs_no_training(told, home):
    ended, _ = told(1e-6, 1e-5)
    size = 1500 * 8 * 4 / 1e3  # all images of the output's eight numbers
    assert ended.code == 2
    assert f"features of 1,500 images x 1 layer x 8 float32 need {size:.0f} kB in" in ended.err
    assert f'features = "float16" ({size / 2:.0f} kB)' in ended.err
    assert trained(home) == ["failed"]
    assert not list((home / "runs").glob("*/model.safetensors"))


def test_what_fits_is_told_and_measured(told, home):
    ended, messages = told(1e-6, 1)
    assert ended.code == 0
    (line,) = messages
    assert line.startswith("knn: features of 1,500 images x 1 layer x 8 float32: 48 kB on disk, where ")
    assert sum(p.stat().st_size - 128 for p in (home / "cache" / "features").glob("*.npy")) == 48_000


def test_what_memory_holds_needs_no_word(told):
    ended, messages = told(1, 1)
    assert ended.code == 0
    assert messages == []


def test_one_cell_that_does_not_fit_leaves_the_others_their_numbers(told, home):
    ended, messages = told(1e-6, 1e-4, WIDE)
    assert ended.code == 2
    assert trained(home) == ["ok"]
    rows = [(r["protocol"], r["status"]) for r in read(home / "results" / "mine.csv")]
    assert ("knn", "ok") in rows
    assert {status for protocol, status in rows if protocol == "linear_probe"} == {"failed"}
    assert any(m.startswith("linear_probe: features of 1,500 images x 2 layers x") for m in messages)


def read(path):
    import csv

    with path.open() as file:
        return list(csv.DictReader(file))
