"""What the lecture shows: its tables and figures, as ``lecture.toml`` says them."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from bench.records import BenchError
from bench.registry import suggest
from bench.reporting.blocks import texts

_TABLE = ("name", "title", "lecture", "note", "own", "published", "part")


@dataclass(frozen=True)
class Spec:
    """One table or figure of the lecture."""

    kind: str  # "table", "figure"
    name: str
    title: str
    lecture: str  # what the lecture shows, and whose it is
    note: str  # how what is measured here differs
    parts: tuple[Mapping[str, Any], ...]
    own: str = ""  # the suite, and its table or figure, on the lecture's own data

    @property
    def place(self) -> str:
        """Begins every error line."""
        return f"lecture.toml: {self.kind} {self.name}"

    @property
    def about(self) -> str:
        """Of what it is the likeness, in sentences."""
        own = f" On the lecture's own data: suite {self.own}." if self.own else ""
        return f"In the lecture: {self.lecture}. Here: {self.note}.{own}"

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites whose rows it is made of."""
        return tuple(dict.fromkeys(s for part in self.parts for s in texts(part.get("suite", [])) if s))


@functools.cache
def specs() -> tuple[Spec, ...]:
    """All tables, then all figures, in the lecture's order."""
    text = (resources.files("bench.reporting.lecture") / "lecture.toml").read_text("utf-8")
    raw = tomllib.loads(text)
    found = []
    for block in raw["table"]:
        _known(block, _TABLE, f"lecture.toml: table {block.get('name', '')}")
        common = block.get("published", {})
        found.append(_spec("table", block, tuple(_part(part, common) for part in block["part"])))
    figures = [_spec("figure", block, (block,)) for block in raw["figure"]]
    return (*found, *figures)


def _spec(kind: str, block: Mapping[str, Any], parts: tuple[Mapping[str, Any], ...]) -> Spec:
    told = {key: block[key] for key in ("name", "title", "lecture", "note")}
    return Spec(kind, **told, parts=parts, own=block.get("own", ""))


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
