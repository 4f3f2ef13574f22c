"""CONTRIBUTING's method, taken from the text as it stands, is found by entry point and runs through `bench run`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SUITE = """
seeds = 1
budget = 400
backbone = {name = "alexnet_small", widths = [8, 8, 8, 8, 8], stem_stride = 1}
data = {dataset = {name = "digits", side = 16}}
[methods.simclr]
batch_size = 50
[protocols.knn]
k = 10
"""


@pytest.mark.slow
def test_the_method_of_contributing_runs(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len(code.splitlines()) <= 100
    point = re.search(r'(simclr = "simclr_bench.simclr")', text).group(1)
    site = tmp_path / "site"
    package, info = site / "simclr_bench", site / "simclr_bench-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "simclr.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: simclr-bench\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bench.methods]\n" + point.replace('"', "") + "\n")
    (tmp_path / "outside.toml").write_text(SUITE)
    path = os.pathsep.join([str(site), str(ROOT)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "BENCH_CACHE": str(tmp_path / "cache"),
        "BENCH_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "bench", "run", "outside.toml", "--jobs", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "results" / "outside.csv").read_text("utf-8").splitlines()
    top1 = [line for line in rows if ",top1," in line and ",ok," in line]
    assert top1, rows
