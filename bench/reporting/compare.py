"""What changed between two result tables: numbers with intervals, runs that came and went, settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.reporting import statistics
from bench.reporting.columns import (
    RUN,
    Key,
    codes,
    combine,
    differing,
    latest,
    ran,
    settings,
    varying,
    without_runs,
)
from bench.reporting.wording import name_of

SQUARE = (
    "label", "backbone", "variant", "train_dataset", "labels", "label_noise", "budget", "precision",
    "protocol", "dataset", "target_labels", "layer", "split", "metric",
)  # fmt: skip
_SETTINGS = ("method_settings", "protocol_settings", "data_settings")
_SHORT = (
    "label",
    "protocol",
    "dataset",
    "labels",
    "target_labels",
    "label_noise",
    "layer",
    "split",
    "metric",
)


@dataclass(frozen=True)
class Change:
    """One square that is not the same in both: its name, what both say, and how they differ."""

    name: str
    before: str
    after: str
    change: str


def changes(a: pd.DataFrame, b: pd.DataFrame) -> list[Change]:
    """All squares that differ between two tables of rows; none when value, status, metric, layer and step agree."""
    both = pd.concat([latest(a).assign(side="a"), latest(b).assign(side="b")], ignore_index=True)
    columns = (*SQUARE, *_fields(both))
    told = tuple(c for c in columns if c in _SHORT or len(set(codes(both, c)[1]) - {""}) > 1)
    found: list[Change] = []
    for key, part in _parts(both, columns):
        name = name_of(tuple(v for v, c in zip(key, columns, strict=True) if c in told), told)
        found += _change(name, part[part["side"] == "a"], part[part["side"] == "b"])
    return found


def _fields(both: pd.DataFrame) -> list[str]:
    """The settings that tell squares of one side apart."""
    sides = [both[both["side"] == side] for side in ("a", "b")]
    return [c for c in dict.fromkeys(c for s in sides for c in varying(s, SQUARE)) if c not in SQUARE]


def _parts(both: pd.DataFrame, columns: Key) -> list[tuple[Key, pd.DataFrame]]:
    code, keys = combine(both, columns)
    groups = both.groupby(code, sort=False).indices
    return [(keys[int(i)], both.iloc[at]) for i, at in groups.items()]  # type: ignore[call-overload]


def _change(name: str, a: pd.DataFrame, b: pd.DataFrame) -> list[Change]:
    runs_a, runs_b = _runs(a), _runs(b)
    if runs_a == runs_b and _states(a) == _states(b):
        return _changed_settings(name, a, b)
    last_a, last_b = _last(runs_a), _last(runs_b)
    d = statistics.paired(last_b, last_a)
    told = f"{d.mean:+.4g}" if d.pairs else "no pair of runs"
    if d.half is not None:
        told += f" ± {d.half:.2g} ({d.pairs} pairs{', interval excludes 0' if d.differs else ''})"
    elif d.pairs:
        told += " (1 pair, no interval)"
    unequal = sum(runs_a[k] != runs_b[k] for k in runs_a.keys() & runs_b.keys())
    told += f"; {unequal} numbers changed" if unequal else ""
    return [Change(name, _summary(a, last_a), _summary(b, last_b), told), *_changed_settings(name, a, b)]


def _runs(part: pd.DataFrame) -> dict[Key, float]:
    """Numbers by run and step."""
    done = part[ran(part)]
    code, keys = combine(done, (*RUN, "step"))
    values = pd.to_numeric(done["value"], errors="coerce").to_numpy(dtype=float)
    return {keys[c]: float(v) for c, v in zip(code.tolist(), values, strict=True) if np.isfinite(v)}


def _last(runs: dict[Key, float]) -> dict[Key, float]:
    """Of every run the number of the last step."""
    ordered = sorted(runs, key=lambda key: float(key[-1] or "inf"))
    return {key[:-1]: runs[key] for key in ordered}


def _states(part: pd.DataFrame) -> set[Key]:
    return set(combine(part, (*RUN, "status"))[1])


def _summary(part: pd.DataFrame, values: dict[Key, float]) -> str:
    if len(part) == 0:
        return "not there"
    if not values:
        return ", ".join(sorted(set(codes(part, "status")[1]) - {""}))
    made = statistics.interval(list(values.values()))
    half = f" ± {made.half:.2g}" if made.half is not None else ""
    return f"{made.mean:.5g}{half} (n = {made.n})"


def _changed_settings(name: str, a: pd.DataFrame, b: pd.DataFrame) -> list[Change]:
    """Settings of a square that are not those of the other side."""
    found = []
    for axis in _SETTINGS if len(a) and len(b) else ():
        sides = [_one(part, axis) for part in (a, b)]
        if sides[0] != sides[1]:
            what, options = differing(axis, sides)
            records: list[dict[str, Any]] = [settings(s) for s in sides]
            keys = sorted({k for r in records for k in r if records[0].get(k) != records[1].get(k)})
            for key in keys:
                told = [str(r.get(key, "(not set)")) for r in records]
                found.append(Change(name, told[0], told[1], f"setting {key}"))
            if not keys:
                found.append(Change(name, options[0], options[-1], what))
    return found


def _one(part: pd.DataFrame, axis: str) -> str:
    code, names = without_runs(part, axis)
    return names[int(code[0])]
