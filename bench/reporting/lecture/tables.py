"""The lecture's tables: all parts that can be made, measured beside published."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records import BenchError
from bench.reporting import printed, tables
from bench.reporting.blocks import query, texts
from bench.reporting.lecture.parts import Rows, block_of, rows_of
from bench.reporting.lecture.side_by_side import join
from bench.reporting.lecture.specs import Spec
from bench.reporting.render import Table
from bench.reporting.selection import Selection
from bench.reporting.squares import Column, Footnotes
from bench.reporting.tables import Exhibit


@dataclass(frozen=True)
class Shown:
    """A table as far as it can be made, and a line for each part that is not there."""

    spec: Spec
    exhibit: Exhibit | None
    missing: tuple[str, ...]


def table(spec: Spec, rows: Rows) -> Shown:
    """All parts that can be made, side by side, and why the others cannot."""
    found: list[tuple[str, Exhibit]] = []
    missing: list[str] = []
    for part in spec.parts:
        head, (frame, why) = str(part.get("head", "")), rows_of(part, rows)
        if frame is not None:
            try:
                found.append(
                    (head, tables.exhibit(frame, block_of(spec, part, frame), "lecture.toml: table"))
                )
            except BenchError as error:
                why = str(error).removeprefix(f"{spec.place}: ")
            else:
                missing += _unmeasured(part, found[-1][1], head)
                continue
        if "published" in part:
            found.append((head, _published(spec, part, found)))
        if "suite" in part:
            missing.append(f"{head or spec.name}: not measured: {why}")
    if not found:
        return Shown(spec, None, tuple(missing))
    joined = join(found)
    about = (spec.about, *joined.table.about)
    about = (*about, *(f"Not there: {line}." for line in missing))
    made = dataclasses.replace(joined.table, name=spec.name, title=spec.title, about=about)
    return Shown(spec, Exhibit(made, joined.columns), tuple(missing))


def _unmeasured(part: Mapping[str, Any], made: Exhibit, head: str) -> list[str]:
    """The published methods that have no row here."""
    wanted = part.get("published", {}).get("rows", {})
    here = {line.name.partition(" (here: ")[2].removesuffix(")") for line in made.table.published}
    here |= {line.name for line in made.table.measured}
    lacking = (
        [method for label, method in wanted.items() if label not in here] if isinstance(wanted, dict) else []
    )
    return [f"{head}{': ' if head else ''}no row yet for {', '.join(lacking)}"] if lacking else []


def _published(spec: Spec, part: Mapping[str, Any], before: Sequence[tuple[str, Exhibit]]) -> Exhibit:
    """Published numbers alone; with ``against``, their order beside that of a measured column."""
    columns = texts(part.get("columns", "metric"))
    asked = query(
        {"split": "test", **{k: part[k] for k in ("metric", "protocol") if k in part}},
        spec.place,
        ["label"],
        columns,
    )
    empty = tables.frame([])
    found = Selection(asked, [], [], {}, {}, empty, empty, ([], [], []))
    footnotes, block = Footnotes(), part["published"]
    heads, lines = printed.alone(block, found, footnotes, spec.place)
    about: list[str] = []
    against = _measured(str(part.get("against", "")), before)
    if against is not None:
        named = [dataclasses.replace(against, head=f"{against.head} and {head}") for head in heads]
        about = printed.rank_sentences(block, named, spec.place, against=found)
    made = Table(
        spec.name, spec.title, "method", tuple(heads), tuple(lines), tuple(about), tuple(footnotes.texts)
    )
    return Exhibit(made, (None,) * len(heads))


def _measured(key: str, before: Sequence[tuple[str, Exhibit]]) -> Column | None:
    every = [column for _, exhibit in before for column in exhibit.columns if column is not None]
    return next((column for column in every if column.key == (key,)), None)
