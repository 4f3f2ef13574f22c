"""Columns of long rows as text and as integer codes, settings inside JSON columns included.

Everything over all rows is done on integer codes: a million rows take a second.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.records import COLUMNS, BenchError
from bench.registry import suggest

Key: TypeAlias = "tuple[str, ...]"
Codes: TypeAlias = "NDArray[np.int64]"

RUN = ("seed", "label_split", "target_split")
MEASURED = ("layer", "metric", "split", "step")  # known only of a cell that has run
SETTINGS = {
    "setting": "method_settings",
    "protocol_setting": "protocol_settings",
    "data_setting": "data_settings",
    "backbone_setting": "backbone",
}
_JSON = ("method_settings", "protocol_settings", "data_settings")
# Two values of one of these under one mean would be an average of different things.
AXES = (
    "method",
    "backbone",
    "variant",
    "train_dataset",
    "labels",
    "label_noise",
    "budget",
    "precision",
    "protocol",
    "dataset",
    "target_labels",
    *_JSON,
)
_OF_RUNS = {
    "seed",
    "label_split",
    "target_split",
    "resample",
    "fold",
}  # settings that tell runs apart, not experiments


def text(value: Any) -> str:
    """A value as it is written in a suite; 250, 250.0 and "250" are one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return str(int(value)) if value.is_integer() else repr(float(value))
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, sort_keys=True)
    whole = str(value)
    return whole[:-2] if whole.endswith(".0") and whole[:-2].lstrip("-").isdigit() else whole


def settings(record: Any) -> dict[str, Any]:
    """The settings out of a JSON column, whatever name stands before them."""
    start = record.find("{") if isinstance(record, str) else -1
    try:
        found = json.loads(record[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    if isinstance(found, dict) and set(found) == {"name", "settings"}:
        found = found["settings"]
    return found if isinstance(found, dict) else {}


def check_column(name: str, place: str) -> None:
    """One of the row columns, or "setting:FIELD"; else an error with the nearest."""
    source, _, key = name.partition(":")
    if name not in COLUMNS and not (key and source in SETTINGS):
        known = [*COLUMNS, *(f"{s}:FIELD" for s in SETTINGS)]
        raise BenchError(f"{place}: rows have no column {name!r}{suggest(name, known)}")


def codes(frame: pd.DataFrame, column: str) -> tuple[Codes, list[str]]:
    """A column as integers into a list of its texts."""
    source, _, key = column.partition(":")
    raw, uniques = pd.factorize(frame[SETTINGS[source] if key else column])
    texts = [text(settings(u).get(key)) if key else text(u) for u in uniques]
    merged, names = pd.factorize(np.array([*texts, ""], dtype=object))  # -1, a missing value, finds the last
    return merged[raw], [str(n) for n in names]


def combine(frame: pd.DataFrame, columns: Iterable[str]) -> tuple[Codes, list[Key]]:
    """Several columns as integers into a list of tuples, in order of first appearance."""
    merged: Codes = np.zeros(len(frame), dtype=np.int64)
    parts = [codes(frame, column) for column in columns]
    for code, names in parts:
        merged = pd.factorize(merged * len(names) + code)[0]  # small again: products of many columns overflow
    first = np.unique(merged, return_index=True)[1]
    texts = [[names[i] for i in code[first].tolist()] for code, names in parts]
    return merged, list(zip(*texts, strict=True)) if texts else [()] * len(first)


def number(value: str) -> float | None:
    """The number that a text stands for; "all" is more than any."""
    if value == "all":
        return math.inf
    try:
        return float(value)
    except ValueError:
        return None


# ---- what differs ------------------------------------------------------------------------------


def without_runs(frame: pd.DataFrame, axis: str) -> tuple[Codes, list[str]]:
    """A JSON column as codes, less the settings that only tell runs apart."""
    code, names = codes(frame, axis)
    stripped = [text(_of_experiment(settings(n))) if n else "" for n in names]
    merged, uniques = pd.factorize(np.array(stripped, dtype=object))
    return merged[code], [str(u) for u in uniques]


def _of_experiment(record: Mapping[str, Any]) -> dict[str, Any]:
    found = {k: v for k, v in record.items() if k not in _OF_RUNS}
    return {k: _of_experiment(v) if isinstance(v, dict) else v for k, v in found.items()}


def differing(axis: str, seen: list[str]) -> tuple[str, list[str]]:
    """The field of a JSON column that differs."""
    for prefix, column in SETTINGS.items():
        if column == axis and len({s.partition("{")[0] for s in seen}) == 1:
            records = [settings(s) for s in seen]
            for key in sorted({k for r in records for k in r}):
                options = list(dict.fromkeys(text(r.get(key)) for r in records))
                if len(options) > 1:
                    return f"{prefix}:{key}", options
    return axis, [s or '""' for s in seen]


def varying(frame: pd.DataFrame, fixed: Key) -> list[str]:
    """The axes (and settings' fields) that take several values where the ``fixed`` columns agree."""
    group = combine(frame, fixed)[0]
    found: list[str] = []
    for axis in AXES:
        if axis in fixed:
            continue
        names = [axis]
        if axis in _JSON:
            prefix = next(p for p, c in SETTINGS.items() if c == axis)
            keys = {k for n in codes(frame, axis)[1] for k in settings(n)} - _OF_RUNS
            names = [f"{prefix}:{k}" for k in sorted(keys)]
        found += [n for n in names if _pairs(group, codes(frame, n)[0])["group"].duplicated().any()]
    return found


def mixtures(frame: pd.DataFrame, square: Key) -> dict[str, str]:
    """Rows that agree in the ``square`` columns are runs of one experiment; else what they mix, by axis, in words."""
    code, keys = combine(frame, square)
    found: dict[str, str] = {}
    for axis in AXES:
        axis_code, names = without_runs(frame, axis) if axis in _JSON else codes(frame, axis)
        told = _mixed(axis, code, keys, axis_code, names)
        if told:
            found[axis] = told
    known, axis_code, names = _code_marks(frame)
    told = _mixed("code_digest", code[known], keys, axis_code[known], names)
    # Versions of the code change settings' names too: where settings differ, that is what is told.
    if told and not found:
        found["code_digest"] = told
    data, data_keys = combine(frame, (*square, *RUN, "data_setting:resample", "train_dataset", "labels"))
    digest_code, names = codes(frame, "split_digest")
    known = np.array([bool(n) for n in names], dtype=bool)[digest_code]
    told = _mixed("split_digest", data[known], data_keys, digest_code[known], names)
    if told and not found:
        found["split_digest"] = told
    return found


def _mixed(axis: str, code: Codes, keys: list[Key], axis_code: Codes, names: list[str]) -> str:
    pairs = _pairs(code, axis_code)
    mixed = pairs[pairs.duplicated("group", keep=False)]
    if not len(mixed):
        return ""
    first = int(mixed["group"].iloc[0])
    seen = [names[i] for i in mixed.loc[mixed["group"] == first, "axis"]]
    what, options = differing(axis, seen)
    return f"{', '.join(k for k in keys[first] if k)} mixes {what} = {', '.join(options[:4])}"


def _pairs(group: Codes, axis: Codes) -> pd.DataFrame:
    """The different pairs of two columns of codes, in order of first appearance; none where ``axis`` is constant."""
    if len(axis) == 0 or (axis[0] == axis).all():
        return pd.DataFrame({"group": group[:0], "axis": axis[:0]})
    width = int(axis.max()) + 1
    left, right = np.divmod(pd.unique(group * width + axis), width)
    return pd.DataFrame({"group": left, "axis": right})


def _code_marks(frame: pd.DataFrame) -> tuple[NDArray[np.bool_], Codes, list[str]]:
    """Which rows say what code made them, and that code; a training's own is left out where it started from
    another training: that one's name, seed included, is part of it.
    """
    code, keys = combine(frame, ("init", "code_digest"))
    marks = [f":{mark.partition(':')[2]}" if init else mark for init, mark in keys]
    merged, uniques = pd.factorize(np.array([*marks, ""], dtype=object))
    known = ran(frame) & np.array([bool(mark.strip(":")) for mark in marks] or [False], dtype=bool)[code]
    return known, merged[code], [str(u) for u in uniques]


# ---- which rows ------------------------------------------------------------------------------------


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """Of a cell that was tried several times, the last attempt."""
    attempt = pd.to_numeric(frame["attempt"], errors="coerce").fillna(0)
    if attempt.min() == attempt.max():
        return frame
    code, keys = combine(frame, ("label", "training", "cell"))
    nameless = np.array([not cell for *_, cell in keys])[code]
    return frame[nameless | (attempt == attempt.groupby(code).transform("max"))]


def ran(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are measurements."""
    return among(frame, "status", {"ok", ""})


def matching(frame: pd.DataFrame, where: Mapping[str, Any], place: str) -> NDArray[np.bool_]:
    """Which rows fulfill all conditions; a condition that no row fulfills is a slip."""
    keep = np.ones(len(frame), dtype=bool)
    for column, wanted in where.items():
        check_column(column, place)
        options = {text(w) for w in (wanted if isinstance(wanted, (list, tuple)) else [wanted])}
        hit = among(frame, column, options)
        if not hit.any():
            first = min(options)
            raise BenchError(
                f"{place}: no row has {column} = {first!r}{suggest(first, codes(frame, column)[1])}"
            )
        keep &= hit
    if not keep.any():
        raise BenchError(
            f"{place}: no row fulfills all of: {', '.join(where) or 'nothing, as there are no rows'}"
        )
    return keep


def among(frame: pd.DataFrame, column: str, options: set[str]) -> NDArray[np.bool_]:
    """Which rows have one of these texts in a column."""
    code, names = codes(frame, column)
    hit: NDArray[np.bool_] = np.array([name in options for name in names], dtype=bool)[code]
    return hit
