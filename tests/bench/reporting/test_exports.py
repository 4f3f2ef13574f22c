"""Rows as parquet give the tables that the CSV gives; HTML is well formed; every LaTeX table compiles."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from bench.planning import suite
from bench.records import BenchError
from bench.reporting import lecture, tables

RESULTS = Path(__file__).resolve().parents[3] / "results"
SUITES = ["mixed_batches", "rotations_embedded"]


def made(name):
    return tables.of_suite(suite.load(name), tables.read(RESULTS / f"{name}.csv"))


@pytest.mark.parametrize("name", SUITES)
def test_parquet_holds_the_same_numbers(name, tmp_path):
    rows = tables.read(RESULTS / f"{name}.csv")
    tables.write_parquet(tmp_path / "rows.parquet", rows)
    plain = pd.read_parquet(tmp_path / "rows.parquet")
    assert plain["value"].tolist() == rows["value"].astype(float).tolist()
    assert plain["training"].tolist() == rows["training"].tolist()
    assert plain["seed"].tolist() == rows["seed"].astype(float).tolist()
    again = tables.of_suite(suite.load(name), tables.read(tmp_path / "rows.parquet"))
    assert [tables.csv(t) for t in again] == [tables.csv(t) for t in made(name)]


def test_a_file_that_is_no_table_is_told(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(BenchError, match=r"a\.parquet: cannot be read"):
        tables.read(tmp_path / "a.parquet")
    pd.DataFrame({"suite": ["s"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(BenchError, match=r"b\.parquet: column 'cell' is missing"):
        tables.read(tmp_path / "b.parquet")


def test_the_command(bench, home, tmp_path):
    (home / "results").mkdir()
    shutil.copy(RESULTS / "mixed_batches.csv", home / "results")
    assert bench("export", "mixed_batches").out == f"{home}/results/mixed_batches.parquet\n"
    before = bench("table", "mixed_batches").out
    (home / "results" / "mixed_batches.csv").unlink()
    assert bench("table", "mixed_batches").out == before
    assert bench("export", "mixed_batches", "--format", "csv").code == 0  # from the parquet
    written = home / "results" / "mixed_batches.csv"
    assert bench("diff", RESULTS / "mixed_batches.csv", written).out == "no difference\n"
    assert ",nan," not in written.read_text()
    assert "mixed_40" in bench("table", home / "results" / "mixed_batches.parquet").out


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.cells, self.scopes = [], 0, []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.cells += tag == "td"
        self.scopes += [dict(attributes)["scope"]] if tag == "th" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", SUITES)
def test_html_is_balanced_and_says_what_heads_what(name):
    for table in made(name):
        checker = Checker()
        checker.feed(tables.html(table))
        assert checker.open == []
        assert checker.cells == len(table.columns) * len(table.lines)
        assert checker.scopes.count("col") == len(table.columns) + 1
        assert checker.scopes.count("row") == len(table.lines)


def test_html_escapes():
    rows = tables.read(RESULTS / "mixed_batches.csv").assign(label="<script>")
    block = {"name": "t", "metric": "error", "protocol": "error", "mixed": True}
    text = tables.html(tables.build(rows, block))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "MIXED, as asked for" in text


@pytest.mark.slow
def test_every_latex_table_compiles(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is missing: apt-get install texlive-latex-recommended")
    every = [t for name in SUITES for t in made(name)]
    shown = [lecture.table(s, lambda _: None) for s in lecture.specs() if s.kind == "table"]
    every += [one.exhibit.table for one in shown]
    rows = tables.read(RESULTS / "lecture_embedded.csv")
    every.append(lecture.table(lecture.find("imagenet_layers", "table"), lambda _: rows).exhibit.table)
    body = "\n\\clearpage\n".join(tables.latex(t) for t in every)
    head = "\\documentclass{article}\\usepackage[utf8]{inputenc}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "all.tex").write_text(f"{head}{body}\n\\end{{document}}\n", encoding="utf-8")
    line = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(every) >= 12
