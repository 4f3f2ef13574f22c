"""What the command and its workers import and inherit, wherever they are started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, "-P", "-c", "from bench.cli import main; main()"]  # as the installed script starts

SUITE = """
budget = 100
backbone = {name = "alexnet_small", widths = [8, 8, 8, 8, 8], stem_stride = 1}
data = {dataset = {name = "digits", side = 16}, labels = 100}
[methods]
random = {}
[protocols]
knn = {k = 10}
"""


@pytest.mark.slow
def test_packages_of_the_working_folder_are_not_taken_for_ours(home):
    (home / "methods").mkdir()
    (home / "methods" / "__init__.py").touch()
    (home / "random.py").write_text("raise SystemExit('the wrong one')\n")
    (home / "mine.toml").write_text(SUITE)
    (
        home / "cache" / "units.json"
    ).unlink()  # units are described by a process, refusals and training are another's
    done = subprocess.run([*SCRIPT, "run", "mine.toml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_folder_that_python_puts_first_is_first_for_children_too(tmp_path):
    (tmp_path / "mine.py").touch()
    look = (
        "import subprocess; from bench import children; raise SystemExit("
        "subprocess.run(children.python('mine'), env=children.environment(), stderr=-3).returncode)"
    )
    (tmp_path / "looker.py").write_text(look)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def ended(*options):
        line = [sys.executable, *options]
        return subprocess.run(line, cwd=tmp_path, env=environment, check=False).returncode

    assert ended("-m", "looker") == 0
    assert ended("-P", "-c", look) == 1


def test_figures_are_drawn_off_screen_whatever_is_inherited(tmp_path):
    for path in (ROOT / "results").glob("cpc_embedded.csv"):
        shutil.copy(path, tmp_path)
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    line = [*SCRIPT, "plot", "cpc_embedded", "--results", str(tmp_path), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cpc_embedded-layers.png").stat().st_size > 1000
