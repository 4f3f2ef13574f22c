"""Tables from rows: means with intervals, what is missing and why, paired differences, published numbers.

A ``[[table]]`` block says what is shown; see README for the grammar by example. Every planned square
appears, and nothing is ever chosen on test data unless a block asks for an ``oracle`` by name.
"""

from __future__ import annotations

import csv as csv_module
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.artifacts import write_text, written
from bench.planning.suite import Suite
from bench.records import COLUMNS, STATUSES, BenchError
from bench.registry import suggest
from bench.reporting import squares
from bench.reporting.blocks import SELECTION_KEYS, checked, query, texts
from bench.reporting.columns import codes, combine, latest, ran, varying
from bench.reporting.printed import published_lines, rank_sentences
from bench.reporting.render import Table, csv, html, latex, markdown, terminal
from bench.reporting.selection import Selection, select
from bench.reporting.wording import data_sentences

__all__ = [
    "Exhibit",
    "Table",
    "build",
    "csv",
    "exhibit",
    "frame",
    "html",
    "latex",
    "markdown",
    "of_suite",
    "read",
    "summary",
    "terminal",
    "write_markdown",
]

_COUNTS = ("label_split", "label_noise", "seed", "threads", "target_split", "step", "attempt", "images_seen")
NUMBERS = (*_COUNTS, "value", "train_seconds", "eval_seconds", "peak_memory_mb")
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
    """A result table from its CSV, every column as text: what a number is, the reader of the column knows.

    Or from parquet, as ``bench export`` writes it: numbers as numbers, texts as categories.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path)
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


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
        missing = [c for c in COLUMNS if c not in names]
        if missing:
            raise BenchError(f"{path}: column {missing[0]!r} is missing: not a result table, or an older one")
        texts_ = [c for c in COLUMNS if c not in NUMBERS]
        found = parquet.read_table(path, columns=list(COLUMNS), read_dictionary=texts_)
    except (OSError, pa.ArrowException) as error:
        line = (str(error).splitlines() or [""])[0]
        raise BenchError(f"{path}: cannot be read ({line}); write it anew with: bench export") from error
    frame: pd.DataFrame = found.to_pandas()
    unknown = set(frame["status"].unique()) - set(STATUSES)
    if unknown:
        raise BenchError(
            f"{path}: status {min(map(str, unknown))!r} is unknown; write it anew with: bench export"
        )
    return frame


def write_parquet(path: Path, rows: pd.DataFrame) -> None:
    """The rows as parquet: tidy, numbers as numbers (empty where there is none), texts as dictionaries."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {}
    for name in COLUMNS:
        if name in NUMBERS:
            columns[name] = pa.array(
                pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=float), from_pandas=True
            )
        else:
            code, names = codes(rows, name)
            used, places = pd.factorize(code)
            columns[name] = pa.DictionaryArray.from_arrays(used.astype("int32"), [names[i] for i in places])
    with written(path) as temporary:
        parquet.write_table(pa.table(columns), temporary, compression="zstd")


# ---- tables of a suite -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Exhibit:
    """A table and what is behind it: for every column the measured one, None for differences."""

    table: Table
    columns: tuple[squares.Column | None, ...]


def of_suite(
    suite: Suite, rows: pd.DataFrame, name: str | None = None, *, mixed: bool = False
) -> list[Table]:
    """The tables that a suite asks for (or the one of that name); without [[table]] blocks a summary."""
    return [e.table for e in exhibits(suite, rows, name, mixed=mixed)]


def exhibits(
    suite: Suite, rows: pd.DataFrame, name: str | None = None, *, mixed: bool = False
) -> list[Exhibit]:
    """The tables of a suite with what is behind them; ``mixed`` averages over different experiments, and says so."""
    place = f"{suite.path}: table"
    asked = {"mixed": True} if mixed else {}
    return [exhibit(rows, {**block, **asked}, place) for block in blocks_of(suite, rows, name)]


def blocks_of(suite: Suite, rows: pd.DataFrame, name: str | None = None) -> list[Mapping[str, Any]]:
    """The [[table]] blocks of a suite, or those of a summary."""
    blocks = suite.tables or tuple(summary(rows))
    if name is not None:
        known = [str(b.get("name", "")) for b in blocks]
        if name not in known:
            raise BenchError(f"{suite.path}: table: there is no table {name!r}{suggest(name, known)}")
        blocks = tuple(b for b in blocks if b.get("name") == name)
    return list(blocks)


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
    return exhibit(rows, block, where).table


def exhibit(rows: pd.DataFrame, block: Mapping[str, Any], where: str = "table") -> Exhibit:
    """The table of one [[table]] block, with what is behind it."""
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
    about = [*data_sentences(found), *grid.sentences()]
    if "published" in block:
        lines += published_lines(block["published"], found, len(grid.heads), footnotes, place)
        about += rank_sentences(block["published"], grid.columns, place)
    corner = " · ".join(_short(c) for c in found.query.rows)
    title = block.get("title") or block["name"]
    name, heads, texts_ = block["name"], tuple(grid.heads), tuple(footnotes.texts)
    behind = [*grid.columns, *([None] * (len(heads) - len(grid.columns)))]
    return Exhibit(Table(name, title, corner, heads, tuple(lines), tuple(about), texts_), tuple(behind))


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
