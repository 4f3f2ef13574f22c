"""What is behind one number of a table: runs, settings, code, data, machines, logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.records import BenchError
from bench.registry import suggest
from bench.reporting import statistics
from bench.reporting.columns import Key, settings, text
from bench.reporting.render import Entry, Line
from bench.reporting.selection import SERIES, Selection, choose
from bench.reporting.squares import Column
from bench.reporting.tables import Exhibit
from bench.reporting.wording import name_of

SHARED = (
    "suite", "method", "method_settings", "backbone", "variant", "train_dataset", "labels", "label_noise",
    "data_settings", "budget", "precision", "threads", "init", "protocol", "protocol_settings", "dataset",
    "target_labels", "split", "metric", "device", "commit", "code_digest", "versions", "reason",
)  # fmt: skip
OWN = (
    "seed",
    "label_split",
    "target_split",
    "layer",
    "step",
    "value",
    "attempt",
    "split_digest",
    "training",
    "cell",
)
COSTS = ("train_seconds", "eval_seconds", "images_seen", "peak_memory_mb")


_DIFFERENCE = "δ "  # columns of differences stand back where a part of a name fits several


@dataclass(frozen=True)
class Behind:
    """One square: where it stands, what it says, and the rows that it was made of (none for a published one)."""

    table: str
    row: str
    column: str
    entry: Entry
    notes: tuple[str, ...]
    rows: pd.DataFrame


class Sources:
    """The rows behind every square of a selection, found once."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[Selection, dict[tuple[int, int], pd.Index[int]]]] = {}

    def rows(self, column: Column, row: Key) -> pd.DataFrame:
        """The rows behind a column's number in one table row."""
        source = column.source
        if id(source) not in self.found:  # the selection is kept, so that its id stays its own
            chosen = _chosen(source)
            groups = chosen.groupby(["row", "col"], sort=False)["at"]
            self.found[id(source)] = source, {k: pd.Index(v) for k, v in groups}  # type: ignore[misc]
        rows, cols, _ = source.keys
        if row not in rows or column.key not in cols:
            return source.frame.iloc[:0]
        at = self.found[id(source)][1].get((rows.index(row), cols.index(column.key)))
        return source.frame.iloc[:0] if at is None else source.frame.loc[at]


def _chosen(found: Selection) -> pd.DataFrame:
    """The numbers that were chosen, each with the place of its row."""
    numbers = found.measured.assign(at=found.measured.index)
    name, _, count = found.query.select.partition(":")
    if name == "median":
        newest = numbers[numbers["test"]].sort_values("step", kind="stable")
        return newest.groupby(SERIES, sort=False).tail(int(count))
    return choose(dataclasses.replace(found, measured=numbers), found.query.select)


def behind(exhibit: Exhibit, row: str, column: str) -> Behind:
    """What is behind one square, by the names that the table prints (or unmistakable parts of them)."""
    table = exhibit.table
    names = [_plain(line.name) for line in table.lines]
    line = table.lines[_place(row, names, [line.name for line in table.lines], f"table {table.name}: row")]
    at = _place(column, [_plain(c) for c in table.columns], table.columns, f"table {table.name}: column")
    return square(exhibit, line, at, Sources())


def square(exhibit: Exhibit, line: Line, at: int, sources: Sources) -> Behind:
    """What is behind one square of a row, by place."""
    table, entry, column = exhibit.table, line.entries[at], exhibit.columns[at]
    rows = pd.DataFrame()
    if column is not None and not line.published:
        keys = [r for r in column.source.rows if name_of(r, column.source.query.rows) == line.name]
        rows = sources.rows(column, keys[0]) if keys else rows
    notes = tuple(table.footnotes[m - 1] for m in (*line.marks, *entry.marks))
    return Behind(table.name, line.name, table.columns[at], entry, notes, rows)


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("·", " ").split())


def _place(wanted: str, plain: Sequence[str], names: Sequence[str], where: str) -> int:
    """The one name that is ``wanted``, or begins so, or holds it."""
    text_ = _plain(wanted)
    for fits in (str.__eq__, str.startswith, str.__contains__):
        hits = [i for i, name in enumerate(plain) if fits(name, text_)]
        own = [i for i in hits if not plain[i].startswith(_DIFFERENCE)]
        hits = own if len(own) == 1 else hits
        if len(hits) == 1 or (hits and fits is str.__eq__):
            return hits[0]
        if hits:
            raise BenchError(f"{where} {wanted!r} may be any of: {', '.join(names[i] for i in hits)}")
    raise BenchError(
        f"{where}: there is no {wanted!r}{suggest(wanted, names)}; there are: {', '.join(names)}"
    )


# ---- words -----------------------------------------------------------------------------------------


def explain(found: Behind, runs: Path) -> str:
    """All that is known of one number, as text."""
    lines = [f"{found.table}: {found.row}, {found.column}: {found.entry.text or '(blank)'}"]
    lines += [f"  {note}" for note in found.notes]
    if found.rows.empty:
        return "\n".join([*lines, *(_why_nothing(found.entry))]) + "\n"
    lines += [_of_values(found)]
    shared, own = facts(found.rows)
    width = max(map(len, shared), default=0)
    lines += ["", *(f"{name:{width}}  {value}" for name, value in shared.items())]
    lines += [
        "",
        *_grid(
            [
                [*own[0], "log"],
                *([*r, _log(runs, one)] for r, one in zip(own[1:], _records(found.rows), strict=True)),
            ]
        ),
    ]
    return "\n".join(lines) + "\n"


def _why_nothing(entry: Entry) -> list[str]:
    if entry.status == "difference":
        return ["  a paired difference: explain the column that it is of"]
    return ["  published, not measured here"] if entry.status == "published" else ["  no run has this number"]


def _of_values(found: Behind) -> str:
    values = pd.to_numeric(found.rows["value"]).to_numpy(dtype=float)
    if found.entry.n <= 1:
        return f"  {len(values)} row{'s' if len(values) > 1 else ''}, no interval"
    low, high = found.entry.low, found.entry.high
    kind = "BCa bootstrap" if found.entry.n >= statistics.BCA_RUNS and low != high else "Student-t"
    what = f"mean {found.entry.mean!r} of {found.entry.n} runs"
    return f"  {what}, {kind} 95% interval [{low!r}, {high!r}]"


def facts(rows: pd.DataFrame) -> tuple[dict[str, str], list[list[str]]]:
    """What all rows have in common, by name; and as a grid with a head what is each row's own."""
    shared: dict[str, str] = {}
    own = [c for c in OWN if rows[c].astype(str).replace("nan", "").any()]
    for name in (*SHARED, *COSTS):
        values = list(dict.fromkeys(map(text, rows[name])))
        if len(values) > 1:
            own.append(name)
        elif values and values[0]:
            shared[name] = _readable(name, values[0])
    return shared, [own, *([text(v) for v in record] for record in rows[own].itertuples(index=False))]


def _readable(name: str, value: str) -> str:
    found = settings(value) if name.endswith("_settings") else {}
    return ", ".join(f"{k} = {text(v)}" for k, v in sorted(found.items())) if found else value


def _records(rows: pd.DataFrame) -> list[Mapping[str, Any]]:
    return [{str(k): v for k, v in record.items()} for record in rows.to_dict("records")]


def _log(runs: Path, record: Mapping[str, Any]) -> str:
    path = runs / str(record["training"]) / "log"
    return str(path) if record["training"] and path.exists() else "(not on this machine)"


def _grid(rows: Iterable[Sequence[str]]) -> list[str]:
    listed = list(rows)
    widths = [max(len(r[i]) for r in listed) for i in range(len(listed[0]))]
    return ["  ".join(f"{v:{w}}" for v, w in zip(r, widths, strict=True)).rstrip() for r in listed]
