"""What ``[[table]]`` and ``[[figure]]`` blocks share: their keys, their checks, what they take out of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.records import BenchError
from bench.registry import suggest
from bench.reporting.selection import Query

SELECTION_KEYS: dict[str, Any] = {
    "name": str,
    "title": str,
    "protocol": str,
    "metric": (str, list),
    "where": dict,
    "labels": list,
    "split": str,
    "select": str,
    "trials": str,
    "lower_is_better": (bool, list),
    "mixed": bool,
}


def checked(block: Mapping[str, Any], known: Mapping[str, Any], where: str) -> str:
    """Refuses unknown keys and wrong types; returns the place that begins this block's errors."""
    place = f"{where} {block.get('name', '')}".rstrip()
    for key, value in block.items():
        if key not in known:
            raise BenchError(f"{place}: unknown key {key!r}{suggest(key, known)}")
        if not isinstance(value, known[key]) or (isinstance(value, bool) and known[key] is int):
            names = " or ".join(t.__name__ for t in _tuple(known[key]))
            raise BenchError(f"{place}: {key} must be {names}, not {value!r}")
    if not block.get("name"):
        raise BenchError(f"{place}: name is missing")
    return place


def query(block: Mapping[str, Any], place: str, rows: Sequence[str], columns: Sequence[str]) -> Query:
    """What a block of a table or figure takes out of the rows."""
    lower = block.get("lower_is_better")
    return Query(
        place=place,
        rows=tuple(rows),
        columns=tuple(columns),
        metrics=texts(block.get("metric", [])),
        protocol=block.get("protocol", ""),
        where=block.get("where", {}),
        labels=texts(block.get("labels", [])),
        split=block.get("split", "test"),
        select=block.get("select", "last"),
        mixed=block.get("mixed", False),
        trials=block.get("trials", "validation"),
        lower=tuple(lower) if isinstance(lower, list) else lower,
    )


def texts(value: Any) -> tuple[str, ...]:
    """A text, or a list of them, as a tuple."""
    return tuple(str(v) for v in value) if isinstance(value, list) else (str(value),)


def _tuple(types: Any) -> tuple[type, ...]:
    return types if isinstance(types, tuple) else (types,)
