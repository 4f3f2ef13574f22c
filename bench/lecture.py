"""The lecture's tables and figures from whatever results there are, measured beside published.

``bench/lecture.toml`` says what they are. What is not there yet is named, with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench import pictures, plots, printed, registry, suite, tables
from bench.blocks import query, texts
from bench.columns import among, codes, latest, matching, varying
from bench.records import BenchError
from bench.registry import suggest
from bench.render import Entry, Line, Table, markdown
from bench.selection import Selection
from bench.squares import DASH, Column, Footnotes
from bench.tables import Exhibit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Callable[[str], "pd.DataFrame | None"]  # a suite's rows; None where there are none yet

_TABLE = ("name", "title", "lecture", "note", "published", "part")
_PART = ("suite", "head", "against")
_FIGURE = ("lecture", "note", "suite", "absent", "methods")


@dataclass(frozen=True)
class Spec:
    """One table or figure of the lecture."""

    kind: str  # "table", "figure"
    name: str
    title: str
    lecture: str  # what the lecture shows, and whose it is
    note: str  # how what is measured here differs
    parts: tuple[Mapping[str, Any], ...]

    @property
    def place(self) -> str:
        """Begins every error line."""
        return f"lecture.toml: {self.kind} {self.name}"

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites whose rows it is made of."""
        return tuple(dict.fromkeys(s for part in self.parts for s in texts(part.get("suite", [])) if s))


@dataclass(frozen=True)
class Shown:
    """A table as far as it can be made, and a line for each part that is not there."""

    spec: Spec
    exhibit: Exhibit | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Drawn:
    """A figure as far as it can be made: the file, or why there is none."""

    spec: Spec
    path: Path | None
    missing: str = ""


@functools.cache
def specs() -> tuple[Spec, ...]:
    """All tables, then all figures, in the lecture's order."""
    text = (resources.files("bench") / "lecture.toml").read_text("utf-8")
    raw = tomllib.loads(text)
    found = []
    for block in raw["table"]:
        _known(block, _TABLE, f"lecture.toml: table {block.get('name', '')}")
        common = block.get("published", {})
        parts = tuple(_part(part, common) for part in block["part"])
        found.append(Spec("table", block["name"], block["title"], block["lecture"], block["note"], parts))
    figures = [Spec("figure", b["name"], b["title"], b["lecture"], b["note"], (b,)) for b in raw["figure"]]
    return (*found, *figures)


def find(name: str, kind: str) -> Spec | None:
    """The lecture's table or figure of a name."""
    return next((s for s in specs() if s.kind == kind and s.name == name), None)


def names(kind: str) -> list[str]:
    """Of all its tables or figures."""
    return [s.name for s in specs() if s.kind == kind]


def _known(block: Mapping[str, Any], known: Iterable[str], place: str) -> None:
    for key in block:
        if key not in known:
            raise BenchError(f"{place}: unknown key {key!r}{suggest(key, known)}")


def _part(part: Mapping[str, Any], common: Mapping[str, Any]) -> Mapping[str, Any]:
    if "published" not in part:
        return part
    return {**part, "published": {**common, **part["published"], "optional": True}}


# ---- what is there -------------------------------------------------------------------------------


def _rows(part: Mapping[str, Any], rows: Rows) -> tuple[pd.DataFrame | None, str]:
    """The rows of a part's suite, the first of several that has any; else why there are none."""
    why = "published numbers alone"
    for name in texts(part["suite"]) if "suite" in part else ():
        found = rows(name)
        if found is not None and len(found):
            return found, ""
        known = name in suite.builtin()
        why = (
            f"no results of suite {name} yet: bench run {name}" if known else f"there is no suite {name} yet"
        )
    return None, _unit_missing(part) or why


def _unit_missing(part: Mapping[str, Any]) -> str:
    wanted = [("protocol", part["protocol"])] if "protocol" in part else []
    wanted += [("method", name) for name in part.get("methods", [])]
    for kind, name in wanted:
        if name not in registry.units(kind):
            return f"there is no {kind} {name} yet"
    return ""


def _block(spec: Spec, part: Mapping[str, Any], frame: pd.DataFrame) -> dict[str, Any]:
    """A part as a [[table]] block."""
    block = {k: v for k, v in part.items() if k not in _PART}
    block |= {"name": spec.name, "title": spec.title}
    if block.get("rows") == "auto":
        where = dict(block.get("where", {})) | ({"protocol": part["protocol"]} if "protocol" in part else {})
        where |= {"label": part["labels"]} if "labels" in part else {}
        planned = {k: v for k, v in where.items() if k not in {"layer", "metric", "split", "step"}}
        chosen = latest(frame)
        chosen = _one_trial(chosen[matching(chosen, planned, spec.place)])
        block["rows"] = ["label", *varying(chosen, ("label", *texts(block.get("columns", "metric"))))]
    return block


def _one_trial(frame: pd.DataFrame) -> pd.DataFrame:
    """Of a search one trial, as the table will show one: what trials draw is not what tells rows apart."""
    trials = sorted({name for name in codes(frame, "setting:trial")[1] if name}, key=int)
    return frame[among(frame, "setting:trial", {"", trials[0]})] if trials else frame


# ---- tables --------------------------------------------------------------------------------------


def table(spec: Spec, rows: Rows) -> Shown:
    """All parts that can be made, side by side, and why the others cannot."""
    found: list[tuple[str, Exhibit]] = []
    missing: list[str] = []
    for part in spec.parts:
        head, (frame, why) = str(part.get("head", "")), _rows(part, rows)
        if frame is not None:
            try:
                found.append((head, tables.exhibit(frame, _block(spec, part, frame), "lecture.toml: table")))
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
    about = (f"In the lecture: {spec.lecture}. Here: {spec.note}.", *joined.table.about)
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


# ---- figures -------------------------------------------------------------------------------------


def figure(spec: Spec, rows: Rows, runs: Path, path: Path) -> Drawn:
    """The figure as ``path``, or why it cannot be drawn; pictures whose runs are gone stay as they are."""
    made, why = _figure(spec, rows, runs)
    if made is not None:
        return Drawn(spec, plots.save(made, path))
    if spec.parts[0]["kind"] == "pictures" and path.exists():
        return Drawn(spec, path)
    return Drawn(spec, None, why)


def image(spec: Spec, rows: Rows, runs: Path) -> tuple[bytes, str]:
    """The figure as the bytes of an SVG (of a PNG where it is a sheet of pictures), or why there is none."""
    made, why = _figure(spec, rows, runs)
    form = "png" if spec.parts[0]["kind"] == "pictures" else "svg"
    return (plots.bytes_of(made, form) if made is not None else b""), why


def _figure(spec: Spec, rows: Rows, runs: Path) -> tuple[Figure | None, str]:
    (block,) = spec.parts
    frame, why = (None, str(block["absent"])) if "absent" in block else _rows(block, rows)
    if frame is None:
        return None, why
    try:
        if block["kind"] == "pictures":
            return _sheet(spec, frame, runs)
        if block["kind"] == "learning" and not pd.to_numeric(frame["step"], errors="coerce").notna().any():
            return None, "no row has a training step: the suite keeps no snapshots"
        asked = {k: v for k, v in block.items() if k not in _FIGURE}
        asked["title"] = f"{spec.title} (here: {spec.note})"
        with plots.style():
            return plots.figure(frame, asked, "lecture.toml: figure"), ""
    except BenchError as error:
        return None, str(error).removeprefix(f"{spec.place}: ")


def _sheet(spec: Spec, frame: pd.DataFrame, runs: Path) -> tuple[Figure | None, str]:
    (block,) = spec.parts
    wanted = {"label": block.get("labels"), "method": block.get("methods")}
    wanted = {column: names_ for column, names_ in wanted.items() if names_}
    chosen = frame[matching(frame, wanted, spec.place)] if wanted else frame
    found = pictures.kept(chosen, runs, block.get("protocol", ""))
    if found:
        title, caption = f"{spec.title} (here: {spec.note})", f"In the lecture: {spec.lecture}."
        return pictures.sheet(found, title, caption), ""
    what = f"protocol {block['protocol']}" if "protocol" in block else "its methods"
    return None, _unit_missing(block) or f"no run in {runs} kept pictures of {what}"


# ---- all of it -----------------------------------------------------------------------------------


def document(shown: Sequence[Shown], drawn: Sequence[Drawn]) -> str:
    """The whole lecture as one Markdown text, with its figures beside it."""
    lines = [
        "# lecture",
        "",
        "The lecture's tables and figures, measured beside published (`bench lecture`).",
        "",
    ]
    for one in shown:
        lines += [f"## {one.spec.name}", ""]
        lines += [markdown(one.exhibit.table)] if one.exhibit else _absent(one.spec, one.missing)
    for figure_ in drawn:
        lines += [f"## {figure_.spec.name}", ""]
        if figure_.path is None:
            lines += _absent(figure_.spec, [figure_.missing])
        else:
            here = f"In the lecture: {figure_.spec.lecture}. Here: {figure_.spec.note}."
            lines += [f"![{figure_.spec.title}]({figure_.path.name})", "", here, ""]
    return "\n".join(lines).rstrip() + "\n"


def _absent(spec: Spec, missing: Iterable[str]) -> list[str]:
    return [
        f"**{spec.title}** (in the lecture: {spec.lecture})",
        "",
        *(f"Not there: {m}." for m in missing),
        "",
    ]
