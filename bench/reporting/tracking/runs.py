"""Rows grouped into runs, one a model: its settings, its numbers by name, its learning curves, how it ended."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.artifacts import slug
from bench.records import BenchError
from bench.reporting.columns import SETTINGS, combine, latest, ran, settings, text, varying
from bench.reporting.columns import number as parsed

_MODEL = (
    "label", "method", "backbone", "train_dataset", "labels", "label_split", "label_noise", "budget", "seed",
    "precision", "threads", "init",
)  # fmt: skip
_FACTS = ("suite", "training", "split_digest", "device", "commit", "versions")
_COSTS = ("train_seconds", "images_seen", "peak_memory_mb")
_MEASURED = ("label", "training", "protocol", "layer", "metric", "split", "step")
_WORST = ("failed", "oom", "timeout", "killed", "pending", "skipped", "ok")  # of a run's cells counts for it

Setting = str | int | float | bool


class Scalar(NamedTuple):
    """One number of a run; ``step`` is 0 for what was measured once, at the end."""

    name: str
    step: int
    value: float


@dataclass(frozen=True)
class TrackedRun:
    """One model of a suite, a (method, settings, seed), as trackers know it."""

    name: str
    settings: Mapping[str, Setting]
    facts: Mapping[str, str]
    scalars: tuple[Scalar, ...]
    status: str  # the worst of its cells, as in records.STATUSES
    outcome: str  # "12 of 14 cells ok", then a line for each reason


def tracked(frame: pd.DataFrame, runs: Path) -> Iterator[TrackedRun]:
    """The runs behind rows, in their order. Learning curves are those that the ``runs`` folder keeps.

    :raises BenchError: a curve's file is damaged.
    """
    frame = latest(frame)
    code, keys = combine(frame, ("label", "training"))
    scalars = _measured(frame, code)
    parts = [part for _, part in frame.groupby(code, sort=True)]  # codes are 0, 1, ...
    for i, (label, training) in enumerate(keys):
        head = {str(k): v for k, v in parts[i].iloc[0].items()}
        status, outcome = _outcome(parts[i])
        numbers = [*scalars.get(i, ()), *_costs(head), *_curves(runs / training)]
        name = slug(label) + training.removeprefix(slug(text(head["method"])))
        facts = {k: text(head[k]) for k in _FACTS if text(head[k])}
        yield TrackedRun(name, _settings(head), facts, tuple(numbers), status, outcome)


# ---- settings ------------------------------------------------------------------------------------


def _settings(row: Mapping[str, Any]) -> dict[str, Setting]:
    """Hyper-parameters by name: what the model was made of, and every setting of method, backbone and data."""
    found = {name: _setting(text(row[name])) for name in _MODEL}
    found["backbone"] = text(row["backbone"]).partition(" {")[0]
    for prefix, column in SETTINGS.items():
        if column != "protocol_settings":
            found |= _flat(
                prefix.removesuffix("_setting").replace("setting", "method"), settings(row[column])
            )
    return {name: value for name, value in found.items() if value != ""}


def _setting(value: str) -> Setting:
    found = parsed(value) if value != "all" else None
    return value if found is None else int(found) if found.is_integer() else found


def _flat(prefix: str, record: Mapping[str, Any]) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= _flat(f"{prefix}.{key}", value)
        else:
            found[f"{prefix}.{key}"] = value if isinstance(value, (bool, int, float)) else text(value)
    return found


# ---- numbers -------------------------------------------------------------------------------------


def _measured(frame: pd.DataFrame, code: Any) -> dict[int, list[Scalar]]:
    """By run: every measurement under protocol/whatever differs/metric/layer/split."""
    done = ran(frame)
    rows = frame[done]
    differing = [*varying(rows, _MEASURED), *_several_splits(rows)]
    named = ("protocol", *differing, "metric", "layer", "split")
    name_code, keys = combine(rows, named)
    names = [_name(key, named) for key in keys]
    values = pd.to_numeric(rows["value"], errors="coerce").to_numpy(dtype=float)
    steps = pd.to_numeric(rows["step"], errors="coerce").fillna(0).to_numpy(dtype=np.int64)
    found: dict[int, list[Scalar]] = {}
    for run, at, step, value in zip(
        code[done].tolist(), name_code.tolist(), steps.tolist(), values.tolist(), strict=True
    ):
        found.setdefault(run, []).append(Scalar(names[at], step, value))
    return found


def _several_splits(rows: pd.DataFrame) -> list[str]:
    splits = combine(rows, (*_MEASURED, "target_split"))[0]
    return ["target_split"] if len(np.unique(splits)) > len(combine(rows, _MEASURED)[1]) else []


def _name(key: tuple[str, ...], columns: tuple[str, ...]) -> str:
    plain = {"protocol", "metric", "layer", "split", "variant", "dataset"}
    parts = [
        value if column in plain else f"{column.rpartition(':')[2]} {value}"
        for value, column in zip(key, columns, strict=True)
        if value
    ]
    return "/".join(re.sub(r"[^\w\-. ]", "_", part, flags=re.ASCII) for part in parts)


def _costs(row: Mapping[str, Any]) -> list[Scalar]:
    numbers = {name: parsed(text(row[name])) for name in _COSTS}
    return [Scalar(f"cost/{name}", 0, value) for name, value in numbers.items() if value is not None]


def _curves(folder: Path) -> list[Scalar]:
    """The losses of a training by name, where its history lies here."""
    path = folder / "curves.parquet"
    if not path.is_file():
        return []
    try:
        curves = pd.read_parquet(path)
        steps = curves.pop("step").astype(int).tolist()
        columns = {str(name): curves[name].astype(float) for name in curves}
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors
        raise BenchError(f"{path}: cannot be read; delete it, and its curves are left out") from error
    return [
        Scalar(f"train/{name}", step, value)
        for name, values in columns.items()
        for step, value in zip(steps, values.tolist(), strict=True)
        if value == value  # noqa: PLR0124 - a term that this step did not have
    ]


# ---- outcomes ------------------------------------------------------------------------------------


def _outcome(rows: pd.DataFrame) -> tuple[str, str]:
    cells = rows.drop_duplicates("cell")
    statuses = [text(s) or "ok" for s in cells["status"]]
    lines = [f"{statuses.count('ok')} of {len(cells)} cells ok"]
    told = zip(cells["cell"], statuses, map(text, cells["reason"]), strict=True)
    lines += [
        f"{cell}: {status}{f': {reason}' if reason else ''}"
        for cell, status, reason in told
        if status != "ok" or reason
    ]
    return min(statuses, key=_WORST.index), "\n".join(lines)
