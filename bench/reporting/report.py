"""One static page with everything: tables, figures, what is behind each number, cost, failures. No network.

The page is made of ``page/``; it holds its style, script, images and provenance in itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from bench.planning.suite import Suite
from bench.records import BenchError
from bench.reporting import lecture, pictures, plots, tables
from bench.reporting.columns import among, combine, latest, ran
from bench.reporting.provenance import Behind, Sources, facts, square
from bench.reporting.render import Entry, Line
from bench.reporting.tables import Exhibit

_RUNS = 40  # that are told of one number; `bench explain` tells all
_PICTURES = 24
_PICTURE_BYTES = 1_500_000
_LEAST = 0.001  # of hours; less is not told apart
_MANY = 1000  # without decimals from here on
_SVG_BYTES = 200_000  # a larger drawing is kept as pixels


@dataclass
class Pool:
    """What the script reads: every text once, numbers as places in them."""

    texts: dict[str, int] = field(default_factory=dict)
    numbers: list[dict[str, Any]] = field(default_factory=list)

    def text(self, value: str) -> int:
        """The place of a text."""
        return self.texts.setdefault(value, len(self.texts))

    def add(self, found: Behind) -> int:
        """The place of a number's provenance."""
        rows = found.rows
        shared, own = facts(rows.head(_RUNS)) if len(rows) else ({}, [[]])
        notes = list(found.notes)
        notes += [f"The first {_RUNS} of {len(rows)} rows; all of them: bench explain"] * (len(rows) > _RUNS)
        self.numbers.append(
            {
                "title": self.text(f"{found.table}: {found.row}, {found.column}: {found.entry.text}"),
                "notes": [self.text(note) for note in notes],
                "shared": [[self.text(k), self.text(v)] for k, v in shared.items()],
                "head": [self.text(name) for name in own[0]],
                "rows": [[self.text(value) for value in row] for row in own[1:]],
            }
        )
        return len(self.numbers) - 1

    def json(self) -> str:
        """As a script may hold it: no tag can end it."""
        whole = {"texts": list(self.texts), "numbers": self.numbers}
        return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


@dataclass(frozen=True)
class Section:
    """One suite, or the lecture, as the template reads it."""

    id: str
    title: str
    about: str = ""
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[Mapping[str, Any]] = ()
    pictures: Sequence[Mapping[str, Any]] = ()
    missing: Sequence[str] = ()
    failures: Mapping[str, Any] | None = None
    cost: Mapping[str, Any] | None = None


def page(title: str, sections: Sequence[Section], pool: Pool) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FunctionLoader
    from markupsafe import Markup, escape

    folder = resources.files("bench.reporting") / "page"
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        trim_blocks=True,
        keep_trailing_newline=True,
    )

    def raw(name: str) -> Markup:
        return Markup((folder / name).read_text("utf-8"))  # noqa: S704 - our own files

    def soft(name: str) -> Markup:
        """A long name may be broken after these signs."""
        told = str(escape(name))
        for sign in ("_", "=", "/"):
            told = told.replace(sign, f"{sign}<wbr>")
        return Markup(told)  # noqa: S704 - escaped above

    environment.filters["soft"] = soft
    return environment.get_template("page.html").render(
        title=title,
        sections=sections,
        style=raw("style.css"),
        script=raw("page.js"),
        provenance=Markup(pool.json()),  # noqa: S704 - without "<"
    )


# ---- sections ------------------------------------------------------------------------------------


def of_suite(suite: Suite, rows: pd.DataFrame, runs: Path, pool: Pool) -> Section:
    """A suite: its tables, figures, pictures, what did not come out, what it cost."""
    frame = latest(rows)
    figures = []
    missing = []
    for block in suite.figures:
        try:
            figures.append(_drawing(rows, block, f"{suite.path}: figure"))
        except BenchError as error:
            missing.append(f"figure {block.get('name', '')}: {error}")
    figures += _losses(frame, runs)
    shown = []
    for block in tables.blocks_of(suite, rows):
        try:
            found = tables.exhibit(rows, block, f"{suite.path}: table")
            shown.append(_table(found, f"{suite.name}-{found.table.name}", pool))
        except BenchError as error:
            missing.append(f"table {block.get('name', '')}: {error}")
    return Section(
        suite.name,
        suite.name,
        suite.about,
        _facts(frame),
        shown,
        figures,
        _pictures(frame, runs),
        missing,
        _failures(frame, suite.name),
        _cost(frame, suite.name),
    )


def of_lecture(rows: lecture.Rows, runs: Path, pool: Pool) -> Section:
    """The lecture's tables and figures as far as they are there."""
    shown, figures, missing = [], [], []
    for spec in lecture.specs():
        if spec.kind == "table":
            made = lecture.table(spec, rows)
            missing += [f"table {spec.name}: {line}" for line in made.missing]
            if made.exhibit is not None:
                shown.append(_table(made.exhibit, f"lecture-{spec.name}", pool))
        else:
            found, why = lecture.image(spec, rows, runs)
            missing += [f"figure {spec.name}: {why}"] if why else []
            figures += [_image(found, spec.title, spec.about)] if found else []
    about = "The lecture's tables and figures, measured here beside published. Other data, other networks: orders compare, numbers do not."
    return Section("lecture", "lecture", about, (), shown, figures, (), missing)


def _table(exhibit: Exhibit, name: str, pool: Pool) -> dict[str, Any]:
    table, sources = exhibit.table, Sources()

    def entry(line: Line, at: int) -> dict[str, Any]:
        one: Entry = line.entries[at]
        found = square(exhibit, line, at, sources) if one.n and exhibit.columns[at] is not None else None
        key = pool.add(found) if found is not None and len(found.rows) else None
        return {"text": one.text, "mean": one.mean, "bold": one.bold, "marks": one.marks, "key": key}

    def lines(kind: Iterable[Line]) -> list[dict[str, Any]]:
        return [
            {"name": x.name, "marks": x.marks, "entries": [entry(x, i) for i in range(len(x.entries))]}
            for x in kind
        ]

    return {
        "id": name,
        "title": table.title,
        "heads": (table.corner, *table.columns),
        "measured": lines(table.measured),
        "published": lines(table.published),
        "about": table.about,
        "footnotes": table.footnotes,
    }


def _plain(name: str, title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """A table without anything behind its numbers."""
    lines = []
    for first, *rest in rows:
        entries = [_cell(value) for value in rest]
        lines.append({"name": first, "marks": (), "entries": entries})
    return {
        "id": name,
        "title": title,
        "heads": heads,
        "measured": lines,
        "published": [],
        "about": (),
        "footnotes": (),
    }


def _cell(value: Any) -> dict[str, Any]:
    mean = float(value) if isinstance(value, (int, float)) else None
    shown = f"{value:,}" if isinstance(value, int) else str(value)
    if isinstance(value, float):
        shown = f"< {_LEAST}" if value < _LEAST else f"{value:.3g}" if value < _MANY else f"{value:,.0f}"
    return {"text": shown, "mean": mean, "bold": False, "marks": (), "key": None}


# ---- facts, cost, failures -------------------------------------------------------------------------


def _facts(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    code, keys = combine(frame, ("cell", "training", "status"))
    counts = pd.Series([status for *_, status in keys]).value_counts(sort=False)
    told = [("cells", ", ".join(f"{n} {status}" for status, n in counts.items()))]
    for column, name in (("train_dataset", "trained on"), ("dataset", "judged on"), ("commit", "commits")):
        told.append((name, _listed(frame, column)))
    told += [("devices", _listed(frame, "device")), ("versions", _listed(frame, "versions"))]
    return [(name, value) for name, value in told if value and len(code)]


def _listed(frame: pd.DataFrame, column: str) -> str:
    names = [name for (name,) in combine(frame, (column,))[1] if name]
    return "; ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _cost(frame: pd.DataFrame, name: str) -> dict[str, Any] | None:
    """Hours, images and memory by method: each training and each judging counted once."""
    label, labels = combine(frame, ("label",))
    numbers = {
        c: pd.to_numeric(frame[c], errors="coerce").to_numpy(dtype=float)
        for c in ("train_seconds", "eval_seconds", "images_seen", "peak_memory_mb")
    }
    every = pd.DataFrame({"label": label, "cell": combine(frame, ("training", "cell"))[0], **numbers})
    every["training"] = combine(frame, ("training",))[0]
    made = (
        every.drop_duplicates(["label", "training"])
        .dropna(subset=["train_seconds"])
        .groupby("label", sort=False)
    )
    judged = every.drop_duplicates(["label", "cell"]).groupby("label", sort=False)["eval_seconds"].sum()
    rows = []
    for at, part in made:
        seconds = part["train_seconds"]
        seen, memory = part["images_seen"].median(), part["peak_memory_mb"].max()
        rows.append(
            (
                labels[int(str(at))][0],
                len(part),
                float(seconds.sum()) / 3600,
                float(seconds.median()),
                float(judged.loc[at]) / 3600,
                int(seen) if pd.notna(seen) else "",
                int(memory) if pd.notna(memory) else "",
            )
        )
    heads = ["method", "models", "hours of training", "seconds a model (median)", "hours of judging"]
    heads += ["images seen a model", "peak memory (MB)"]
    return _plain(f"{name}-cost", "Cost", heads, rows) if rows else None


def _failures(frame: pd.DataFrame, name: str) -> dict[str, Any] | None:
    """What did not come out, and what came out with a warning: reasons, counted by cell."""
    bad = frame[~ran(frame) | ~among(frame, "reason", {""})]
    code, keys = combine(bad, ("label", "protocol", "dataset", "status", "reason"))
    cells = pd.DataFrame({"what": code, "cell": combine(bad, ("training", "cell"))[0]}).drop_duplicates()
    counts = cells["what"].value_counts(sort=False)
    rows = [(*keys[int(str(i))], int(n)) for i, n in counts.items()]
    heads = ("method", "protocol", "dataset", "status", "reason", "cells")
    return (
        _plain(f"{name}-failures", "What did not come out, or with a warning", heads, rows) if rows else None
    )


# ---- images ----------------------------------------------------------------------------------------


def _drawing(rows: pd.DataFrame, block: Mapping[str, Any], place: str) -> dict[str, Any]:
    title = str(block.get("title") or block.get("name", ""))
    found = plots.image(rows, block, place)
    if len(found) > _SVG_BYTES:
        found = plots.image(rows, block, place, "png")
    return _image(
        found, title, f"{block.get('kind', '')} of {block.get('metric', '')}, numbers in the tables above"
    )


def _image(content: bytes, title: str, about: str) -> dict[str, Any]:
    kind = "png" if content[:4] == b"\x89PNG" else "svg+xml"
    return {"src": _uri(content, kind), "title": title, "alt": f"{title}: {about}", "width": 760}


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _losses(frame: pd.DataFrame, runs: Path) -> list[dict[str, Any]]:
    """The losses of every method's first training, where the runs are here."""
    found: dict[str, Path] = {}
    for label, training in combine(frame, ("label", "training"))[1]:
        path = runs / training / "curves.parquet"
        if training and label not in found and path.exists():
            found[label] = path
    if not found:
        return []
    title = "Losses while training, one model a method"
    return [_image(plots.losses(found), title, f"one panel each for {', '.join(found)}")]


def _pictures(frame: pd.DataFrame, runs: Path) -> list[dict[str, Any]]:
    protocols = [name for (name,) in combine(frame, ("protocol",))[1] if name]
    shown: list[dict[str, Any]] = []
    size = 0
    for protocol in ("", *protocols):
        for label, files in pictures.kept(frame, runs, protocol).items():
            for file in files:
                content = file.read_bytes()
                size += len(content)
                if len(shown) >= _PICTURES or size > _PICTURE_BYTES:
                    return shown
                title = " · ".join(filter(None, (label, protocol, file.stem.replace("_", " "))))
                shown.append({"src": _uri(content, "png"), "title": title})
    return shown
