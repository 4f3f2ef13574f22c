"""Published numbers as rows below a table's rule, never mixed with the measured ones, and both orders compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.records import BenchError
from bench.registry import suggest
from bench.reporting import published, statistics
from bench.reporting.columns import Key, codes
from bench.reporting.render import Entry, Line
from bench.reporting.selection import Selection
from bench.reporting.squares import DASH, Column, Footnotes
from bench.reporting.wording import name_of

_KEYS = ("table", "rows", "columns", "optional")
_FEWER_IS_BETTER = ("error", "loss", "perplexity")


def published_lines(
    block: Mapping[str, Any], found: Selection, width: int, footnotes: Footnotes, place: str
) -> list[Line]:
    """The rows of ``published = {table, rows, columns}`` for a table of ``width`` columns.

    With ``optional = true`` a label that the rows do not have yet is no slip: its number stands alone.
    """
    place, numbers, places = _placed(block, found, place)
    parts = [part for part in places if part is not None]
    shown = pd.concat(parts) if parts else numbers
    note = footnotes(_note(shown, found))
    lines = []
    for name, method, _ in _rows(block, numbers, found, place):
        entries = [_entry(part, method, footnotes, place) for part in places]
        entries += [Entry("", status="published")] * (width - len(entries))
        lines.append(Line(name, tuple(entries), published=True, marks=(note,)))
    return lines


def rank_sentences(
    block: Mapping[str, Any], columns: Sequence[Column], place: str, *, against: Selection | None = None
) -> list[str]:
    """Whether methods stand in the published order: rank correlations a column, where three or more have both.

    ``against``: a selection that holds published columns of its own, one for each of ``columns``.
    """
    found = columns[0].source
    place, numbers, places = _placed(block, against or found, place)
    rows = _rows({**block, "optional": True}, numbers, found, place)
    told = []
    for column, part in zip(columns, places, strict=False):
        both = _both(column, [(label, method) for _, method, label in rows if label], part, place)
        ranks = statistics.rank_correlation([a for a, _ in both], [b for _, b in both])
        if ranks is not None and part is not None:
            sign = 1 if column.lower == _fewer(part) else -1
            told.append(
                f"{column.head}: Spearman {sign * ranks.spearman:+.2f}, Kendall {sign * ranks.kendall:+.2f} "
                f"(k = {ranks.pairs})"
            )
    if not told:
        return []
    return [f"Rank correlation of the measured and the published order of k methods: {'; '.join(told)}."]


def _both(
    column: Column, pairs: list[tuple[str, str]], part: pd.DataFrame | None, place: str
) -> list[tuple[float, float]]:
    """(measured mean, published number) of every label that has both, and one row of its own."""
    both = []
    for label, method in pairs if part is not None else []:
        rows = [row for row in column.source.rows if label in _names(row, column.source)]
        values = list(column.source.runs.get((rows[0], column.key), {}).values()) if len(rows) == 1 else []
        number = published.one(part, method, place) if part is not None else None
        if values and number is not None and number["value"]:
            both.append((sum(values) / len(values), float(number["value"])))
    return both


def _fewer(part: pd.DataFrame) -> bool:
    return any(word in str(part["metric"].iloc[0]) for word in _FEWER_IS_BETTER)


def alone(
    block: Mapping[str, Any], found: Selection, footnotes: Footnotes, place: str
) -> tuple[list[str], list[Line]]:
    """The published numbers as a table of their own, for a selection without any measured ones."""
    found.columns = [(str(name),) for name in block["columns"]]
    names = [name_of(key, found.query.columns, "features") for key in found.columns]
    return names, published_lines({**block, "optional": True}, found, len(names), footnotes, place)


def _placed(
    block: Mapping[str, Any], found: Selection, place: str
) -> tuple[str, pd.DataFrame, list[pd.DataFrame | None]]:
    """Where errors point to, the numbers of the printed table, and those under every measured column."""
    place = f"{place}: published"
    for key in block:
        if key not in _KEYS:
            raise BenchError(f"{place}: unknown key {key!r}{suggest(key, _KEYS)}")
    for key in ("table", "columns"):
        if key not in block:
            raise BenchError(f"{place}: {key} is missing")
    numbers = published.table(str(block["table"]), place)
    return place, numbers, _columns(block, found, numbers, place)


def _columns(
    block: Mapping[str, Any], found: Selection, numbers: pd.DataFrame, place: str
) -> list[pd.DataFrame | None]:
    """For every measured column the published numbers that stand under it."""
    wanted = block["columns"]
    names = [name_of(key, found.query.columns, "features") for key in found.columns]
    keys = [" ".join(key) for key in found.columns]
    for name in wanted:
        if names and name not in names and name not in keys and found.runs and not block.get("optional"):
            raise BenchError(f"{place}: columns: there is no column {name!r}{suggest(name, [*keys, *names])}")
    picked = {
        name: published.pick(numbers, condition, f"{place}: columns.{name}")
        for name, condition in wanted.items()
    }
    return [picked.get(key, picked.get(name)) for key, name in zip(keys, names, strict=True)] or [None]


def _rows(
    block: Mapping[str, Any], numbers: pd.DataFrame, found: Selection, place: str
) -> list[tuple[str, str, str]]:
    """(name, published method, our label): all of the printed table, a list of them, or {our label = method}."""
    wanted, known = block.get("rows"), published.methods(numbers)
    pairs = list(wanted.items()) if isinstance(wanted, dict) else [("", m) for m in (wanted or known)]
    ours = {name for row in found.rows for name in _names(row, found)}
    rows = []
    for label, method in pairs:
        if method not in known:
            raise BenchError(f"{place}: rows: there is no method {method!r}{suggest(str(method), known)}")
        if label and label not in ours and not block.get("optional"):
            raise BenchError(f"{place}: rows: there is no row {label!r}{suggest(label, ours)}")
        here = label if label in ours else ""
        rows.append((f"{method} (here: {here})" if here and here != method else method, method, here))
    return rows


def _names(row: Key, found: Selection) -> tuple[str, ...]:
    """What a row may be called: by its label, or by its whole name."""
    return (*row, name_of(row, found.query.rows))


def _entry(part: pd.DataFrame | None, method: str, footnotes: Footnotes, place: str) -> Entry:
    if part is None:
        return Entry("", status="published")
    number = published.one(part, method, place)
    if number is None or not number["value"]:
        return Entry(DASH, status="published", marks=(footnotes("not in the printed table"),))
    text = number["value"] + (f" (std {number['std']})" if number["std"] else "")
    marks = (footnotes(f"published number {number['status']}"),) if "memory" in number["status"] else ()
    return Entry(text, float(number["value"]), status="published", marks=marks)


def _note(numbers: pd.DataFrame, found: Selection) -> str:
    """Where the numbers come from, and why they do not compare."""

    def listed(column: str) -> str:
        return ", ".join(v for v in dict.fromkeys(numbers[column]) if v)

    ours = {_plain(name) for name in codes(found.frame, "dataset")[1] if name}
    same = any(_plain(d) in ours for d in numbers["dataset"])
    why = "network, budget and recipe differ" if same else "other data and network"
    papers, sources = listed("paper"), sorted({s.partition(";")[0].strip() for s in numbers["source"]} - {""})
    return (
        f"published: {listed('dataset')}; {listed('metric')}; {listed('backbone')}; not comparable: {why}. "
        f"{papers}; source: {', '.join(sources)}"
    )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower().partition(" ")[0] if c.isalnum())
