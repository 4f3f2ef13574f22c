"""A suite's axes multiplied out: every combination as one plain table of settings, units by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bench.planning.suite import Suite
from bench.records import BenchError, Data
from bench.registry import find

SCALARS = ("budget", "precision", "threads", "snapshots", "seed", "processes", "sync_batch_norm")
_PARTS = ("method", "backbone", "data", "target", "protocol")


def choices(suite: Suite) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Every combination in the suite's order, conditional settings applied, with the trial of its search."""
    for choice in _combinations(suite):
        _apply(suite.sets, choice, f"{suite.path}: set")
        yield from _trials(suite, choice)


# ---- axes ----------------------------------------------------------------------------------------


def _combinations(suite: Suite) -> Iterator[dict[str, Any]]:
    """Every combination of the axes, and of each ablation, as one table of plain settings."""
    for grid in suite.grids:
        varied = {m for vary in suite.varies for m in vary.get("methods", grid["methods"])}
        plain = {k: v for k, v in grid["methods"].items() if k not in varied}
        yield from _expand({**grid, "methods": plain})
        for vary in suite.varies:
            names = vary.get("methods", list(grid["methods"]))
            methods = {k: v for k, v in grid["methods"].items() if k in names}
            for value in vary["values"]:
                for choice in _expand({**grid, "methods": methods}):
                    _assign(choice, vary["path"], value, f"{suite.path}: vary")
                    yield choice


def _trials(suite: Suite, choice: dict[str, Any]) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """A choice as it is, or once for each trial of the search."""
    if not suite.search.trials:
        yield None, choice
    info = find("method", choice["method"]["name"], "suite")
    for trial in range(suite.search.trials):
        drawn = suite.search.settings(choice["label"], info, trial)
        yield trial, {**choice, "method": {**choice["method"], **drawn}}


def _assign(choice: dict[str, Any], path: str, value: Any, where: str) -> None:
    part, _, key = path.partition(".")
    if key and part in _PARTS:
        choice[part] = _with_names({**choice[part], key: value}, where)
    elif not key and (part in SCALARS or part == "backbone"):
        choice |= _with_names({part: value}, where)
    else:
        raise BenchError(
            f'{where}: path {path!r} names nothing: write e.g. "method.lr", "data.labels" or "budget"'
        )


def _expand(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    scalars = [(key, grid[key]) for key in SCALARS if key != "seed"]
    backbones = [b for one in grid["backbone"] for b in _axes("backbone", one)] or [{"name": "none"}]
    data = list(_data_axes(grid["data"]))
    targets = list(_data_axes(grid["target"]))
    protocols = [(k, p) for k, one in grid["protocols"].items() for p in _axes("protocol", one)]
    methods = [(k, m) for k, one in grid["methods"].items() for m in _axes("method", one)]
    rest = [_values(v) for _, v in scalars]
    inits = list(_inits(grid))
    for (label, method), backbone, datum, *values in itertools.product(methods, backbones, data, *rest):
        for seed in grid["seeds"]:
            for (evaluation, protocol), target, init in itertools.product(protocols, targets, inits):
                choice = {key: value for (key, _), value in zip(scalars, values, strict=True)}
                yield {
                    **choice,
                    "label": label,
                    "method": method,
                    "backbone": backbone,
                    "data": datum,
                    "seed": seed,
                    "protocol": protocol,
                    "target": target,
                    "evaluation": evaluation,
                    "init": init,
                }


def _inits(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the trainings start from: label, method, data and budget; nothing in a grid without [init]."""
    init = grid["init"]
    if not init:
        yield {}
        return
    data = list(_data_axes(init.get("data", grid["data"])))
    for label, unit in init["methods"].items():
        if unit is None:
            yield {}
            continue
        for method, datum in itertools.product(_axes("method", unit), data):
            yield {
                "label": label,
                "method": method,
                "data": datum,
                "budget": init.get("budget", grid["budget"]),
            }


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _axes(kind: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list is an axis, except where the field itself is a list: there a list of lists is."""
    info = find(kind, settings["name"], "suite")

    def options(key: str, value: Any) -> list[Any]:
        if key == "name" or not isinstance(value, list):
            return [value]
        if key in info.fields and info.fields[key].sequence and not any(isinstance(v, list) for v in value):
            return [value]
        return value

    return _product({key: options(key, value) for key, value in settings.items()})


def _data_axes(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = {"labeled_classes", "unlabeled_classes", "classes"}
    axes: dict[str, list[Any]] = {}
    for key, value in settings.items():
        if key == "dataset":
            axes[key] = [d for one in value for d in _axes("dataset", one)]
        elif key in lists and not any(isinstance(v, list) for v in value):
            axes[key] = [value]
        else:
            axes[key] = _values(value)
    return _product(axes)


def _product(axes: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


# ---- conditional settings -------------------------------------------------------------------------


def _apply(sets: Iterable[Mapping[str, Any]], choice: dict[str, Any], where: str) -> None:
    for block in sets:
        if all(_holds(choice, key, value) for key, value in block["when"].items()):
            for part, value in _with_names(block, where).items():
                if part in _PARTS:
                    kept = {} if "name" in value else choice[part]  # another unit has other settings
                    choice[part] = {**kept, **_with_names(value, where)}
                elif part != "when":
                    choice[part] = value


def _with_names(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Backbone and dataset, which [[set]] and [[vary]] may name in one word, as tables."""
    named = dict(table)
    for key in ("backbone", "dataset"):
        if isinstance(named.get(key), str):
            named[key] = {"name": named[key]}
        if key in named and not isinstance(named[key], dict):
            raise BenchError(f"{where}: {key} must be a name or a table with a name, not {named[key]!r}")
    return named


def _holds(choice: Mapping[str, Any], key: str, value: Any) -> bool:
    return any(v in _facts(choice, key) for v in _values(value))


def _facts(choice: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """What a condition of this key may say of a choice."""
    data = choice["data"]
    if key == "method":
        return choice["label"], choice["method"]["name"]
    if key == "protocol":
        return choice["evaluation"], choice["protocol"]["name"]
    if key == "backbone":
        return (choice["backbone"]["name"],)
    if key == "dataset":
        return (data["dataset"]["name"],)
    if key == "target":
        return (choice["target"].get("dataset", data["dataset"])["name"],)
    if key == "seed":
        return (choice["seed"],)
    return (data.get(key, getattr(Data, key)),)
