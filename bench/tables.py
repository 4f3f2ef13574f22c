"""Tables from rows: means with intervals, what is missing and why, paired differences, published numbers.

A ``[[table]]`` block says what is shown; see README for the grammar by example. Every planned square
appears, and nothing is ever chosen on test data unless a block asks for an ``oracle`` by name.
"""

from __future__ import annotations

import csv as csv_module
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench import squares
from bench.artifacts import write_text
from bench.blocks import SELECTION_KEYS, checked, query, texts
from bench.columns import codes, combine, latest, ran, varying
from bench.printed import published_lines
from bench.records import COLUMNS, STATUSES, BenchError
from bench.registry import suggest
from bench.render import Table, csv, latex, markdown, terminal
from bench.selection import Selection, select
from bench.suite import Suite
from bench.wording import data_sentences

__all__ = [
    "Table",
    "build",
    "csv",
    "frame",
    "latex",
    "markdown",
    "of_suite",
    "read",
    "summary",
    "terminal",
    "write_markdown",
]

_KEYS: dict[str, Any] = {
    **SELECTION_KEYS,
    "rows": (str, list),
    "columns": (str, list),
    "extra": list,
    "baseline": str,
    "digits": int,
    "published": dict,
}


# ---- rows in -------------------------------------------------------------------------------------


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a DataFrame with all columns."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS))


def read(path: Path) -> pd.DataFrame:
    """A result table from its CSV, every column as text: what a number is, the reader of the column knows."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head = next(csv_module.reader(file), [])
        missing = [c for c in COLUMNS if c not in head]
        if missing:
            raise BenchError(f"{path}: column {missing[0]!r} is missing: not a result table, or an older one")
        found = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, csv_module.Error) as error:
        line = (str(error).splitlines() or [""])[0]
        raise BenchError(f"{path}: cannot be read ({line}); write it anew with: bench run") from error
    wrong = ~found["status"].isin(STATUSES) | found.isna().any(axis=1)
    if wrong.any():
        raise BenchError(f"{path}: row {int(wrong.argmax()) + 1} is damaged; write it anew with: bench run")
    return found


# ---- tables of a suite -----------------------------------------------------------------------------


def of_suite(suite: Suite, rows: pd.DataFrame, name: str | None = None) -> list[Table]:
    """The tables that a suite asks for (or the one of that name); without [[table]] blocks a summary."""
    blocks = suite.tables or tuple(summary(rows))
    place = f"{suite.path}: table"
    if name is not None:
        known = [str(b.get("name", "")) for b in blocks]
        if name not in known:
            raise BenchError(f"{place}: there is no table {name!r}{suggest(name, known)}")
        blocks = tuple(b for b in blocks if b.get("name") == name)
    return [build(rows, block, place) for block in blocks]


def summary(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Blocks for a suite without any: a table for each protocol and dataset, labels by metrics or layers."""
    frame = latest(rows)
    blocks: list[dict[str, Any]] = []
    code, keys = combine(frame, ("protocol", "dataset"))
    for i, (protocol, dataset) in enumerate(keys):
        part = frame[code == i]
        done = part[ran(part)]
        metrics = [m for m in codes(done, "metric")[1] if m and len(done)]
        layers = len(combine(done, ("layer",))[1]) > 1
        splits = [s for (s,) in combine(done, ("split",))[1]]
        base: dict[str, Any] = {"split": "test" if "test" in splits or not splits else splits[0]}
        base |= {
            "protocol": protocol,
            "where": {"dataset": dataset},
            "rows": ["label", *varying(part, ("label",))],
        }
        for metric in metrics if layers else metrics[:1] or [""]:
            name = "-".join(filter(None, (protocol, dataset, metric if layers else "")))
            title = f"{protocol} on {dataset}" + (f", {metric}" if layers else "")
            shown = {"metric": metric} if layers else {"metric": metrics}
            blocks.append(
                {**base, **shown, "name": name, "title": title, "columns": "layer" if layers else "metric"}
            )
    return blocks


def write_markdown(path: Path, suite: Suite, tables: Sequence[Table]) -> None:
    """All tables of a suite as one Markdown file, whole or not at all."""
    head = [f"# {suite.name}", "", suite.about, ""] if suite.about else [f"# {suite.name}", ""]
    body = "\n".join(f"## {t.name}\n\n{markdown(t)}" for t in tables)
    write_text(path, "\n".join(head) + "\n" + body)


# ---- one block -----------------------------------------------------------------------------------


def build(rows: pd.DataFrame, block: Mapping[str, Any], where: str = "table") -> Table:
    """The table of one [[table]] block."""
    place = checked(block, _KEYS, where)
    columns = texts(block.get("columns", "metric"))
    if "metric" not in block and "metric" not in columns:
        raise BenchError(f'{place}: metric is missing: say which one is shown, or columns = "metric"')
    found = select(rows, query(block, place, texts(block.get("rows", "label")), columns))
    if not found.runs and columns == ("layer",) and "published" in block:
        found.columns = [
            (name,) for name in block["published"].get("columns", {})
        ]  # stands in for what will be measured
    footnotes = squares.Footnotes()
    best = _best_layer(rows, block, found)
    grid = squares.grid(found, best, footnotes, block.get("digits"))
    if "baseline" in block:
        grid.add_differences(block["baseline"])
    lines = grid.lines()
    if "published" in block:
        lines += published_lines(block["published"], found, len(grid.heads), footnotes, place)
    corner = " · ".join(_short(c) for c in found.query.rows)
    about = (*data_sentences(found), *grid.sentences())
    title = block.get("title") or block["name"]
    return Table(block["name"], title, corner, tuple(grid.heads), tuple(lines), about, tuple(footnotes.texts))


def _best_layer(rows: pd.DataFrame, block: Mapping[str, Any], found: Selection) -> Selection | None:
    """The column "best layer": every run's layer is chosen on its validation images."""
    extra = block.get("extra", [])
    for name in extra:
        if name != "best":
            raise BenchError(f"{found.query.place}: extra cannot be {name!r}{suggest(str(name), ['best'])}")
    if not extra:
        return None
    columns = found.query.columns
    if "layer" not in columns:
        raise BenchError(f'{found.query.place}: extra = ["best"] needs columns = "layer"')
    rest = [c for c in columns if c != "layer"]
    return select(rows, query({**block, "select": "best_layer"}, found.query.place, found.query.rows, rest))


def _short(column: str) -> str:
    return {"label": "method"}.get(column, column.rpartition(":")[2])
