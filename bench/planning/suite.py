"""A suite: the axes of a grid, in TOML. See README for the grammar by example.

Reading a suite checks every key and value that can be checked without data, and tells what is wrong
in one line with file and key. What the axes multiply out to is :mod:`bench.planning.plan`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.planning import entries, search
from bench.planning.files import locate, read
from bench.planning.search import Search
from bench.records import Aim, BenchError, Data
from bench.registry import find, suggest

_AXES = {
    "backbone": "the network, or a list of them",
    "budget": 'encoder passes, or "12 epochs"',
    "data": "what is trained on",
    "init": "from whose encoders the trainings start",
    "methods": "which methods, with their settings",
    "precision": '"fp32" or "bf16"',
    "processes": "how many train one model together, each with a part of every batch",
    "protocols": "which protocols, with their settings",
    "seeds": "a number of seeds, or a list",
    "snapshots": "how many models of a training are kept",
    "sync_batch_norm": "one batch norm over all processes",
    "target": "what is judged on; by default the training's dataset",
    "threads": "CPU threads of one training",
}
_TOP = {
    **_AXES,
    "about": "one line",
    "minutes": "how long it took on 2 CPU cores",
    "grid": "parts that override the axes",
    "vary": "ablations",
    "set": "values for some combinations",
    "search": "settings tried at random, equally often for each method",
    "table": "tables",
    "figure": "figures",
    "slurm": "what its jobs ask a cluster for",
}
_DATA = {f.name for f in fields(Data)}
_TARGET = {f.name for f in fields(Aim)}
_VARY = {"name", "path", "values", "methods"}
_DEFAULTS = {"budget": 0, "precision": "fp32", "seeds": 1, "snapshots": 1, "threads": 1}
_DEFAULTS |= {"processes": 1, "sync_batch_norm": False}


@dataclass(frozen=True)
class Suite:
    """A suite as read: ``grids`` are complete sets of axes, the rest is as written in the file."""

    name: str
    path: Path
    about: str
    minutes: float | None
    grids: tuple[Mapping[str, Any], ...]
    sets: tuple[Mapping[str, Any], ...] = ()
    varies: tuple[Mapping[str, Any], ...] = ()
    search: Search = field(default_factory=Search)
    tables: tuple[Mapping[str, Any], ...] = ()
    figures: tuple[Mapping[str, Any], ...] = ()
    slurm: Mapping[str, Any] = field(default_factory=dict)


def load(name: str) -> Suite:
    """Read and check a suite by name or path."""
    path = locate(name)
    return parse(read(path), path)


def parse(raw: Mapping[str, Any], path: Path) -> Suite:
    """A suite from its table; ``path`` begins every error line and gives the name."""
    entries.check_keys(raw, _TOP, str(path))
    if (
        path.stem != path.stem.strip()
        or not path.stem.replace("-", "").replace("_", "").replace(".", "").isalnum()
    ):
        raise BenchError(f"{path}: a suite's file name may hold letters, digits, '.', '-' and '_' only")
    top = {k: v for k, v in raw.items() if k in _AXES}
    blocks = raw.get("grid", [{}])
    grids = tuple(
        _grid(top, block, f"{path}: grid {i + 1}" if "grid" in raw else str(path))
        for i, block in enumerate(entries.tables(blocks, f"{path}: grid"))
    )
    varies = tuple(entries.tables(raw.get("vary", []), f"{path}: vary"))
    for vary in varies:
        entries.check_keys(vary, _VARY, f"{path}: vary")
        if not {"path", "values"} <= set(vary) or not isinstance(vary["values"], list):
            raise BenchError(f'{path}: vary needs a path ("method.lr") and values (a list)')
        labels = {label for grid in grids for label in grid["methods"]}
        for label in vary.get("methods", []):
            if label not in labels:
                raise BenchError(
                    f"{path}: vary: there is no method {label!r} in this suite{suggest(label, labels)}"
                )
    infos = {
        label: find("method", unit["name"], str(path)) for g in grids for label, unit in g["methods"].items()
    }
    tried = search.parse(entries.table(raw.get("search", {}), f"{path}: search"), infos, f"{path}: search")
    return Suite(
        name=path.stem,
        path=path,
        about=str(raw.get("about", "")),
        minutes=_number(raw.get("minutes"), f"{path}: minutes"),
        grids=grids,
        sets=tuple(_sets(raw.get("set", []), f"{path}: set")),
        varies=varies,
        search=tried,
        tables=tuple(entries.tables(raw.get("table", []), f"{path}: table")),
        figures=tuple(entries.tables(raw.get("figure", []), f"{path}: figure")),
        slurm=entries.table(raw.get("slurm", {}), f"{path}: slurm"),
    )


def _number(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise BenchError(f"{where} must be a number, not {value!r}")


def _sets(blocks: Any, where: str) -> list[Mapping[str, Any]]:
    known = {"when", "method", "backbone", "data", "target", "protocol", "budget", "snapshots", "precision"}
    known |= {"processes", "sync_batch_norm"}
    conditions = {"method", "backbone", "dataset", "labels", "protocol", "target", "label_noise", "seed"}
    tables = entries.tables(blocks, where)
    for block in tables:
        entries.check_keys(block, known, where)
        if not isinstance(block.get("when"), dict):
            raise BenchError(f'{where} needs when, as in when = {{method = "rotation"}}')
        entries.check_keys(block["when"], conditions, f"{where}: when")
        for part in ("method", "data", "target", "protocol"):
            if not isinstance(block.get(part, {}), dict):
                raise BenchError(f"{where}: {part} must be a table of settings, not {block[part]!r}")
    return tables


# ---- one grid ------------------------------------------------------------------------------------


def _grid(top: Mapping[str, Any], block: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    entries.check_keys(block, _AXES, where)
    merged = {**_DEFAULTS, **top, **block}
    for key in ("methods", "protocols", "data"):
        if key not in merged:
            raise BenchError(f"{where}: key {key!r} is missing ({_AXES[key]})")
    merged["methods"] = entries.units("method", merged["methods"], top.get("methods"), f"{where}: methods")
    merged["protocols"] = entries.units(
        "protocol", merged["protocols"], top.get("protocols"), f"{where}: protocols"
    )
    merged["init"] = _init(merged.get("init", {}), top.get("methods"), f"{where}: init")
    merged["backbone"] = [
        entries.named("backbone", b, f"{where}: backbone") for b in entries.listed(merged.get("backbone"))
    ]
    merged["data"] = entries.part(merged["data"], _DATA, f"{where}: data")
    merged["target"] = entries.part(merged.get("target", {}), _TARGET, f"{where}: target")
    if "dataset" not in merged["data"]:
        raise BenchError(f"{where}: data.dataset is missing: name the dataset to train on")
    merged["seeds"] = _seeds(merged["seeds"], f"{where}: seeds")
    for key in ("budget", "precision", "processes", "snapshots", "sync_batch_norm", "threads"):
        for value in entries.listed(merged[key]):
            check_scalars({key: value}, where)
    return merged


def check_scalars(table: Mapping[str, Any], where: str) -> None:
    """The axes that are one value each; also those that [[set]] and [[vary]] put there."""
    if not isinstance(table.get("sync_batch_norm", False), bool):
        raise BenchError(f"{where}: sync_batch_norm must be true or false, not {table['sync_batch_norm']!r}")
    for key in ("threads", "snapshots", "processes"):
        if key in table and not (_whole(table[key]) and table[key] > 0):
            raise BenchError(f"{where}: {key} must be a positive whole number, not {table[key]!r}")
    if "seed" in table and not _whole(table["seed"]):
        raise BenchError(f"{where}: seed must be a whole number, not {table['seed']!r}")
    if table.get("precision", "fp32") not in {"fp32", "bf16"}:
        raise BenchError(f'{where}: precision must be "fp32" or "bf16", not {table["precision"]!r}')
    budget = table.get("budget", 0)
    number, _, unit = budget.partition(" ") if isinstance(budget, str) else ("", "", "")
    if not (_whole(budget) and budget >= 0) and not (
        unit in {"epoch", "epochs"} and number.replace(".", "", 1).isdigit()
    ):
        raise BenchError(
            f'{where}: budget must be a number of encoder passes or like "12 epochs", not {budget!r}'
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _init(value: Any, methods: Any, where: str) -> dict[str, Any]:
    """``{"methods": {label: unit}, "data": {...}, "budget": ...}``; the label "none" is a start from scratch."""
    if not value:
        return {}
    if not isinstance(value, dict):
        raise BenchError(
            f'{where} must be a table, as {{methods = ["rotation"], budget = 60_000}}, not {value!r}'
        )
    entries.check_keys(value, {"methods", "budget", "data"}, where)
    named = value.get("methods")
    scratch = isinstance(named, list) and "none" in named
    if isinstance(named, list):
        named = [label for label in named if label != "none"]
    found = dict(value, methods=entries.units("method", named, methods, f"{where}.methods"))
    if scratch:
        found["methods"] = {"none": None, **found["methods"]}
    if "data" in value:
        found["data"] = entries.part(value["data"], _DATA, f"{where}.data")
    check_scalars({"budget": value.get("budget", 0)}, where)
    return found


def _seeds(value: Any, where: str) -> list[int]:
    if _whole(value) and value > 0:
        return list(range(value))
    if isinstance(value, list) and value and all(map(_whole, value)):
        return value
    raise BenchError(f"{where} must be a number of seeds or a list of whole numbers, not {value!r}")
