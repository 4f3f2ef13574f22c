"""Tables side by side, joined by the names of their rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from bench.reporting.render import Entry, Line, Table
from bench.reporting.squares import DASH, Column, Footnotes
from bench.reporting.tables import Exhibit


def join(parts: Sequence[tuple[str, Exhibit]]) -> Exhibit:
    """Tables side by side, joined by the names of their rows; one is itself."""
    if len(parts) == 1:
        return parts[0][1]
    footnotes = Footnotes()
    heads: list[str] = []
    behind: list[Column | None] = []
    measured: dict[str, dict[int, Line]] = {}
    published: dict[str, dict[int, Line]] = {}
    for i, (head, exhibit) in enumerate(parts):
        heads += [f"{head}: {c}" if head else c for c in exhibit.table.columns]
        behind += exhibit.columns
        for line in exhibit.table.lines:
            base = line.name.partition(" (here: ")[0] if line.published else line.name
            target = published if line.published else measured
            target.setdefault(base, {})[i] = _renumbered(line, exhibit.table, footnotes)
    lines = [_joined(found, parts, footnotes, published=False) for found in measured.values()]
    lines += [_joined(found, parts, footnotes, published=True) for found in published.values()]
    about = _told([(head, exhibit.table.about) for head, exhibit in parts])
    first = parts[0][1].table
    made = Table(
        first.name,
        first.title,
        first.corner,
        tuple(heads),
        tuple(lines),
        tuple(about),
        tuple(footnotes.texts),
    )
    return Exhibit(made, tuple(behind))


def _renumbered(line: Line, table_: Table, footnotes: Footnotes) -> Line:
    def anew(marks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(footnotes(table_.footnotes[m - 1]) for m in marks)

    entries = tuple(dataclasses.replace(e, marks=anew(e.marks)) for e in line.entries)
    return dataclasses.replace(line, entries=entries, marks=anew(line.marks))


def _joined(
    found: Mapping[int, Line], parts: Sequence[tuple[str, Exhibit]], footnotes: Footnotes, *, published: bool
) -> Line:
    """One row of the joined table; where a part has no such row, a dash says so."""
    entries: list[Entry] = []
    for i, (_, exhibit) in enumerate(parts):
        width = len(exhibit.table.columns)
        if i in found:
            entries += found[i].entries
        elif published or not exhibit.table.measured:
            entries += [Entry("", status="published" if published else "unplanned")] * width
        else:
            mark = footnotes("not part of that suite")
            entries += [Entry(DASH, status="unplanned", marks=(mark,))] * width
    name = max((line.name for line in found.values()), key=len)
    marks = tuple(sorted({m for line in found.values() for m in line.marks}))
    return Line(name, tuple(entries), published=published, marks=marks)


def _told(parts: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """What all parts with sentences say is said once, the rest after the part's name."""
    speaking = [(head, about) for head, about in parts if about]
    common = [s for s in speaking[0][1] if all(s in about for _, about in speaking)] if speaking else []
    own = [f"{head}: {s}" if head else s for head, about in speaking for s in about if s not in common]
    return [*own, *common]
