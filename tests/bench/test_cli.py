"""Bad input is one line that names file, key and what to write instead; exit code 2, no traceback."""

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


def bench(folder, *words):
    environment = {**os.environ, "BENCH_DEVICE": "cpu"}
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


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
    done = bench(tmp_path, "status", "bad.toml")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    for part in told:
        assert part in done.stderr


def test_an_unknown_suite_is_told(tmp_path):
    done = bench(tmp_path, "run", "quik")
    assert done.returncode == 2
    assert "did you mean 'quick'" in done.stderr


@pytest.mark.slow
def test_an_unknown_layer_costs_its_own_cell_and_is_told(tmp_path):
    text = GOOD.replace("[protocols.knn]", '[protocols.knn]\nlayer = "conv9"')
    (tmp_path / "bad.toml").write_text(text)
    done = bench(tmp_path, "run", "bad.toml", "--jobs", "1")
    assert done.returncode == 2
    assert "conv9" in done.stderr
    assert "conv5" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_missing_data_folder_is_told(tmp_path):
    (tmp_path / "bad.toml").write_text(GOOD.replace('"digits"', '"cifar10"'))
    done = bench(tmp_path, "run", "bad.toml", "--jobs", "1")
    assert done.returncode == 2
    assert "bench data get cifar10" in done.stderr
    assert "Traceback" not in done.stderr
