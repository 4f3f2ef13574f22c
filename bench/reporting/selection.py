"""From long rows to the values of one table or figure: which rows, which runs, which step or layer.

Rows of cells that failed, wait or were skipped have no layer, metric or value; they are kept apart so
that what was planned is always known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bench.records import BenchError
from bench.registry import suggest
from bench.reporting.columns import (
    MEASURED,
    RUN,
    Key,
    among,
    check_column,
    codes,
    combine,
    latest,
    matching,
    mixtures,
    number,
    ran,
    text,
)

SELECTS = ("last", "median:N", "best_layer", "best_step", "oracle_layer", "oracle_step")
_LOW = ("entropy", "error", "loss", "mse", "nll", "perplexity")


@dataclass(frozen=True)
class Query:
    """What to take out of the rows; ``place`` begins every error line."""

    place: str
    rows: Key
    columns: Key
    metrics: Key
    protocol: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    labels: Key = ()
    split: str = "test"
    select: str = "last"
    mixed: bool = False  # average over different experiments, and say so
    lower: bool | Key | None = None  # metrics where less is better; None: told by the metric's name
    trials: str = "validation"  # of a search: on what the best one is chosen, or "oracle": on the test images

    def lower_is_better(self, metric: str) -> bool:
        """Whether less of this metric is better."""
        if isinstance(self.lower, bool):
            return self.lower
        return metric in self.lower if self.lower is not None else any(w in metric.lower() for w in _LOW)


@dataclass
class Selection:
    """Values by (row, column) and run, and the runs that were planned by (row, planned part of the column)."""

    query: Query
    rows: list[Key]
    columns: list[Key]
    runs: dict[tuple[Key, Key], dict[Key, float]]
    planned: dict[tuple[Key, Key], dict[Key, str]]  # run -> "" when it ran, else "failed: why"
    frame: pd.DataFrame  # the rows of all cells concerned, whatever their status
    measured: (
        pd.DataFrame
    )  # finite numbers of all splits: row, col, run, layer, metric, step, split, value codes
    keys: tuple[list[Key], list[Key], list[Key]]
    mirrored: bool = False  # "error" was made of top1
    mixed: dict[str, str] = field(default_factory=dict)  # what was averaged over although it differs, by axis
    trials: int = 0  # of a search, of which one is shown
    warned: dict[tuple[Key, Key], list[str]] = field(
        default_factory=dict
    )  # what traps told of a square's runs

    def plan_of(self, column: Key) -> Key:
        """The part of a column's key that is known before a cell has run."""
        return tuple(v for v, name in zip(column, self.query.columns, strict=True) if name not in MEASURED)

    def expected(self, row: Key, column: Key) -> dict[Key, str]:
        """The runs planned for a square of the table."""
        return self.planned.get((row, self.plan_of(column)), {})


def _with_error(frame: pd.DataFrame, metrics: Key, place: str) -> pd.DataFrame:
    """Adds "error", 100 - top1, where only top1 was measured; a metric that nobody measured is a slip."""
    done = ran(frame)
    known = set(codes(frame[done], "metric")[1]) - {""}
    if "error" in metrics and "error" not in known and "top1" in known:
        top1 = frame[done & among(frame, "metric", {"top1"})]
        mirrored = top1.assign(metric="error", value=100.0 - pd.to_numeric(top1["value"], errors="coerce"))
        frame, known = pd.concat([frame, mirrored], ignore_index=True), known | {"error"}
    for metric in metrics:
        if known and metric not in known:
            raise BenchError(f"{place}: no row has metric {metric!r}{suggest(metric, known)}")
    return frame


# ---- which trials of a search ----------------------------------------------------------------------

_TRIAL = "setting:trial"


def _best_trials(frame: pd.DataFrame, query: Query, square: Key) -> tuple[pd.DataFrame, int]:
    """For each square the rows of the trial that was best in the mean over its runs, and how many there were.

    It is judged by the first metric, at its best layer, and at the step or by the median that ``select`` takes.
    A trial of which runs are missing is out as long as another has more. Nothing is chosen where trials are
    told apart.
    """
    trial, names = codes(frame, _TRIAL)
    if query.trials not in {"validation", "oracle"}:
        raise BenchError(
            f'{query.place}: trials must be "validation" or "oracle" (the test images), not {query.trials!r}'
        )
    if not any(names) or _TRIAL in (*square, *query.where):
        return frame, 0
    place = combine(frame, square)[0]
    value = pd.to_numeric(frame["value"], errors="coerce").to_numpy(dtype=float)
    by = {query.split} if query.trials == "oracle" else {"validation"}
    keep = ran(frame) & np.isfinite(value) & among(frame, "split", by)
    keep &= among(frame, "metric", set(query.metrics[:1])) if query.metrics else True
    metric, metrics = codes(frame, "metric")
    sign = np.array([-1.0 if query.lower_is_better(m) else 1.0 for m in metrics])[metric]
    parts = {"place": place, "trial": trial, "layer": codes(frame, "layer")[0], "score": value * sign}
    scores = pd.DataFrame({**parts, "run": combine(frame, RUN)[0]})
    scores["step"] = pd.to_numeric(frame["step"], errors="coerce").fillna(np.inf).to_numpy()
    scores = scores[keep].sort_values("step", kind="stable")
    if not len(scores):
        if ran(frame).any():
            raise BenchError(
                f"{query.place}: no validation rows to choose a trial on: write target.validation = 200"
            )
        return frame[trial == trial.min()], 0
    series = scores.groupby(["place", "trial", "layer", "run"], sort=False)["score"]
    name, _, count = query.select.partition(":")
    if name == "median" and count.isdigit():
        a_run = series.agg(lambda steps: steps.tail(int(count)).median())
    else:
        a_run = series.max() if name.endswith("_step") else series.last()
    means = (
        a_run.reset_index()
        .groupby(["place", "trial", "layer"], sort=True)["score"]
        .agg(["size", "mean"])
        .reset_index()
    )
    best = means.sort_values(["size", "mean"], ascending=False, kind="stable").drop_duplicates("place")
    chosen = dict(zip(best["place"].tolist(), best["trial"].tolist(), strict=True))
    first = pd.Series(trial).groupby(place).first().to_dict()  # where nothing is measured yet
    wanted = np.array([chosen.get(p, first[p]) for p in place.tolist()])
    return frame[wanted == trial].reset_index(drop=True), len(set(trial.tolist()))


# ---- which values ----------------------------------------------------------------------------------


def select(rows: pd.DataFrame, query: Query) -> Selection:
    """The values that a query asks for, and what was planned."""
    for column in (*query.rows, *query.columns):
        check_column(column, query.place)
    conditions = dict(query.where)
    conditions |= {"protocol": query.protocol} if query.protocol else {}
    conditions |= {"label": list(query.labels)} if query.labels else {}
    frame = latest(rows)
    planned = {k: v for k, v in conditions.items() if k not in MEASURED}
    frame = frame[matching(frame, planned, query.place)].reset_index(drop=True)
    before, frame = len(frame), _with_error(frame, query.metrics, query.place)
    fully, square = len(frame), (*query.rows, *(c for c in query.columns if c not in MEASURED))
    frame, trials = _best_trials(frame, query, square)
    mixed = mixtures(frame, square)
    if mixed and not query.mixed:
        told = next(iter(mixed.values()))
        raise BenchError(
            f"{query.place}: {told}: choose with where, or add it to rows or columns; mixed = true averages over it"
        )
    run = (*RUN, *mixed)
    numbers, keys = _numbers(frame, query, run)
    planned_runs = _planned(frame, query, run)
    found = Selection(query, [], [], {}, planned_runs, frame, numbers, keys)
    found.mirrored, found.mixed, found.trials = fully > before, mixed, trials
    reason, reasons = codes(frame.loc[numbers.index], "reason")
    numbers["reason"] = reason
    chosen = choose(found, query.select)
    found.runs, found.warned = by_run(found, chosen), _warned(found, chosen, reasons)
    found.rows = _ordered(combine(frame, query.rows)[1], query.rows, query)
    found.columns = _ordered(_columns(found), query.columns, query)
    return found


def _numbers(
    frame: pd.DataFrame, query: Query, runs: Key
) -> tuple[pd.DataFrame, tuple[list[Key], list[Key], list[Key]]]:
    value = pd.to_numeric(frame["value"], errors="coerce").to_numpy(dtype=float)
    keep = ran(frame) & np.isfinite(value)
    conditions = {k: v for k, v in query.where.items() if k in MEASURED}
    if conditions and keep.any():
        keep &= matching(frame, conditions, query.place)
    if query.metrics:
        keep &= among(frame, "metric", set(query.metrics))
    kept = frame[keep]
    row, row_keys = combine(kept, query.rows)
    col, col_keys = combine(kept, query.columns)
    run, run_keys = combine(kept, runs)
    metric, metrics = codes(kept, "metric")
    sign = np.array([-1.0 if query.lower_is_better(m) else 1.0 for m in metrics])[metric]
    parts = {"row": row, "col": col, "run": run, "layer": codes(kept, "layer")[0]}
    parts |= {"metric": metric, "split": codes(kept, "split")[0]}
    numbers = pd.DataFrame({**parts, "value": value[keep], "score": value[keep] * sign}, index=kept.index)
    numbers["step"] = pd.to_numeric(kept["step"], errors="coerce").fillna(np.inf)
    numbers["test"] = among(kept, "split", {query.split})
    numbers["validation"] = among(kept, "split", {"validation"})
    return numbers, (row_keys, col_keys, run_keys)


def choose(found: Selection, how: str) -> pd.DataFrame:
    """One number a run: the last step's, the median of the last ones, or the one chosen on validation."""
    numbers, place = found.measured, found.query.place
    name, _, count = how.partition(":")
    if name == "median" and count.isdigit():
        return _median(numbers[numbers["test"]], int(count))
    if how not in SELECTS or how == "median:N":
        raise BenchError(f"{place}: select cannot be {how!r}{suggest(how, SELECTS)}")
    rule, _, what = how.partition("_")
    if "step" in found.query.columns:
        numbers = numbers[np.isfinite(numbers["step"])]  # a curve has no place for a number without a step
    if what != "step" and "step" not in found.query.columns:
        numbers = _last(numbers)
    chosen = numbers[numbers["test"]]
    if what:
        by = numbers[numbers["validation" if rule == "best" else "test"]]
        chosen = _best(chosen, by, what)
    return chosen


SERIES = ["row", "col", "run", "layer", "metric", "split"]


def _last(numbers: pd.DataFrame) -> pd.DataFrame:
    if np.isinf(numbers["step"]).all():
        return numbers
    return numbers[numbers["step"] == numbers.groupby(SERIES, sort=False)["step"].transform("max")]


def _median(numbers: pd.DataFrame, count: int) -> pd.DataFrame:
    newest = numbers.sort_values("step", kind="stable").groupby(SERIES, sort=False).tail(count)
    return newest.groupby(SERIES, sort=False)["value"].median().reset_index()


def _best(numbers: pd.DataFrame, by: pd.DataFrame, what: str) -> pd.DataFrame:
    """Of each run the numbers of the layer or step that was best on ``by``; of equals the first."""
    series = [s for s in ("row", "col", "run", "metric", "layer") if s != what]
    ranked = by.sort_values("score", ascending=False, kind="stable").drop_duplicates(series)
    return numbers.merge(ranked[[*series, what]], on=[*series, what])


def by_run(found: Selection, numbers: pd.DataFrame) -> dict[tuple[Key, Key], dict[Key, float]]:
    """Chosen numbers by (row, column) and run; two numbers for one run are refused."""
    numbers = numbers.drop_duplicates(["row", "col", "run", "layer", "value"])
    twice = numbers[numbers.duplicated(["row", "col", "run"], keep=False)]
    rows, cols, runs = found.keys
    if len(twice):
        first = twice.iloc[0]
        who = ", ".join((*rows[int(first["row"])], *cols[int(first["col"])]))
        what = "layers" if len(twice["layer"].unique()) > 1 else "values"
        raise BenchError(
            f"{found.query.place}: {who} has several {what} a run: choose with where, rows or columns"
        )
    table: dict[tuple[Key, Key], dict[Key, float]] = {}
    fields = (numbers[c].tolist() for c in ("row", "col", "run", "value"))
    for row, col, run, value in zip(*fields, strict=True):
        table.setdefault((rows[row], cols[col]), {})[runs[run]] = value
    return table


def _warned(found: Selection, numbers: pd.DataFrame, reasons: list[str]) -> dict[tuple[Key, Key], list[str]]:
    """What stands beside the chosen numbers; a median over steps has nothing beside it."""
    if "reason" not in numbers or not any(reasons):
        return {}
    told: dict[tuple[Key, Key], list[str]] = {}
    rows, cols, _ = found.keys
    for row, col, why in numbers[["row", "col", "reason"]].drop_duplicates().itertuples(index=False):
        if reasons[why]:
            told.setdefault((rows[row], cols[col]), []).append(reasons[why])
    return told


# ---- what was planned ------------------------------------------------------------------------------


def _planned(frame: pd.DataFrame, query: Query, run_columns: Key) -> dict[tuple[Key, Key], dict[Key, str]]:
    row, row_keys = combine(frame, query.rows)
    col, col_keys = combine(frame, [c for c in query.columns if c not in MEASURED])
    run, run_keys = combine(frame, run_columns)
    state, states = combine(frame, ("status", "reason"))
    every = pd.DataFrame({"row": row, "col": col, "run": run, "state": state}).drop_duplicates()
    found: dict[tuple[Key, Key], dict[Key, str]] = {}
    for r, c, n, s in zip(*(every[k].tolist() for k in ("row", "col", "run", "state")), strict=True):
        status, reason = states[s]
        told = "" if status in {"ok", ""} else f"{status}: {reason}" if reason else status
        runs = found.setdefault((row_keys[r], col_keys[c]), {})
        runs[run_keys[n]] = told and runs.get(run_keys[n], told)
    return found


# ---- order -----------------------------------------------------------------------------------------


def _columns(found: Selection) -> list[Key]:
    """Every column that was measured, and those planned of which nothing is measured yet."""
    names = found.query.columns
    seen = dict.fromkeys(c for _, c in found.runs)
    planned = [name for name in names if name not in MEASURED]
    known = {found.plan_of(c) for c in seen}
    shapes = dict.fromkeys(
        tuple(v if n in MEASURED else "" for v, n in zip(c, names, strict=True)) for c in seen
    )
    if names == ("metric",):
        shapes = dict.fromkeys((m,) for m in found.query.metrics) or shapes
    for key in combine(found.frame, planned)[1]:
        if key not in known or names == ("metric",):
            at = dict(zip(planned, key, strict=True))
            for shape in shapes or [("",) * len(names)]:
                seen.setdefault(tuple(at.get(n, v) for v, n in zip(shape, names, strict=True)))
    return list(seen)


def _ordered(keys: list[Key], columns: Key, query: Query) -> list[Key]:
    """As listed in the block; numbers by size, "all" last; else as in the suite."""
    for i, column in reversed(list(enumerate(columns))):
        listed = {"label": query.labels, "metric": query.metrics}.get(column) or query.where.get(column)
        if isinstance(listed, (list, tuple)):
            order = {text(w): n for n, w in enumerate(listed)}
            keys = sorted(keys, key=lambda k: order.get(k[i], len(order)))
        elif all(number(k[i]) is not None for k in keys):
            keys = sorted(keys, key=lambda k: number(k[i]) or 0.0)
    return keys
