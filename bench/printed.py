"""Published numbers as rows below a table's rule, never mixed with the measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench import published
from bench.columns import codes
from bench.records import BenchError
from bench.registry import suggest
from bench.render import Entry, Line
from bench.selection import Selection
from bench.squares import DASH, Footnotes
from bench.wording import name_of

_KEYS = ("table", "rows", "columns")


def published_lines(
    block: Mapping[str, Any], found: Selection, width: int, footnotes: Footnotes, place: str
) -> list[Line]:
    """The rows of ``published = {table, rows, columns}`` for a table of ``width`` columns."""
    place = f"{place}: published"
    for key in block:
        if key not in _KEYS:
            raise BenchError(f"{place}: unknown key {key!r}{suggest(key, _KEYS)}")
    for key in ("table", "columns"):
        if key not in block:
            raise BenchError(f"{place}: {key} is missing")
    numbers = published.table(str(block["table"]), place)
    places = _columns(block["columns"], found, numbers, place)
    parts = [part for part in places if part is not None]
    shown = pd.concat(parts) if parts else numbers
    note = footnotes(_note(shown, found))
    lines = []
    for name, method in _rows(block.get("rows"), numbers, found, place):
        entries = [_entry(part, method, footnotes, place) for part in places]
        entries += [Entry("", status="published")] * (width - len(entries))
        lines.append(Line(name, tuple(entries), published=True, marks=(note,)))
    return lines


def _columns(
    wanted: Mapping[str, Any], found: Selection, numbers: pd.DataFrame, place: str
) -> list[pd.DataFrame | None]:
    """For every measured column the published numbers that stand under it."""
    names = [name_of(key, found.query.columns, "features") for key in found.columns]
    keys = [" ".join(key) for key in found.columns]
    for name in wanted:
        if names and name not in names and name not in keys and found.runs:
            raise BenchError(f"{place}: columns: there is no column {name!r}{suggest(name, [*keys, *names])}")
    picked = {
        name: published.pick(numbers, condition, f"{place}: columns.{name}")
        for name, condition in wanted.items()
    }
    return [picked.get(key, picked.get(name)) for key, name in zip(keys, names, strict=True)] or [None]


def _rows(wanted: Any, numbers: pd.DataFrame, found: Selection, place: str) -> list[tuple[str, str]]:
    """(name, published method): all of the printed table, a list of them, or {our label = method}."""
    known = published.methods(numbers)
    pairs = list(wanted.items()) if isinstance(wanted, dict) else [("", m) for m in (wanted or known)]
    ours = {part for row in found.rows for part in row}
    for label, method in pairs:
        if method not in known:
            raise BenchError(f"{place}: rows: there is no method {method!r}{suggest(str(method), known)}")
        if label and label not in ours:
            raise BenchError(f"{place}: rows: there is no row {label!r}{suggest(label, ours)}")
    return [
        (f"{method} (here: {label})" if label and label != method else method, method)
        for label, method in pairs
    ]


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
    papers, sources = listed("paper"), sorted({s.partition(";")[0].strip() for s in numbers["source"]})
    return (
        f"published: {listed('dataset')}; {listed('metric')}; {listed('backbone')}; not comparable: {why}. "
        f"{papers}; source: {', '.join(sources)}"
    )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower().partition(" ")[0] if c.isalnum())
