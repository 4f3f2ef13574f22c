"""What is committed under results/ is made again from the rows alone, byte for byte, and ships where it should."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.planning import suite
from bench.planning.files import builtin
from bench.reporting import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
SUITES = sorted({path.stem for path in RESULTS.glob("*.csv")} & set(builtin()))


def test_there_are_results():
    assert {"lecture_embedded", "mixed_batches"} <= set(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_the_tables_come_again_from_the_committed_rows(name, tmp_path):
    loaded = suite.load(name)
    made = tables.of_suite(loaded, tables.read(RESULTS / f"{name}.csv"))
    tables.write_markdown(tmp_path / "again.md", loaded, made)
    assert (tmp_path / "again.md").read_bytes() == (RESULTS / f"{name}.md").read_bytes()


@pytest.mark.slow
def test_the_lecture_comes_again_from_the_committed_rows(bench, home):
    if not (RESULTS / "lecture.md").exists():
        pytest.skip("results/lecture.md is not committed; it is made by: bench lecture")
    for path in [*RESULTS.glob("*.csv"), *RESULTS.glob("lecture-*.png")]:
        (home / "results").mkdir(exist_ok=True)
        shutil.copy(path, home / "results")
    assert bench("lecture").code == 0
    assert (home / "results" / "lecture.md").read_bytes() == (RESULTS / "lecture.md").read_bytes()


@pytest.mark.slow
def test_the_wheel_holds_the_published_numbers_and_the_data_files(tmp_path):
    line = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    folders = [ROOT / name for name in ("bench", "methods", "protocols")]
    kinds = {".toml", ".html", ".css", ".js", ".j2"}
    data = [p for folder in folders for p in folder.rglob("*") if p.suffix in kinds]
    assert ROOT / "protocols" / "linear_probe.toml" in data
    assert {"bench/reporting/published.csv", *(p.relative_to(ROOT).as_posix() for p in data)} <= held
