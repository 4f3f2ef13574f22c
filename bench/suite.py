"""A suite: the axes of a grid, in TOML. See README for the grammar by example.

Reading a suite checks every key and value that can be checked without data, and tells what is wrong
in one line with file and key. What the axes multiply out to is :mod:`bench.plan`'s business.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from bench import search
from bench.records import Aim, BenchError, Data
from bench.registry import find, suggest
from bench.search import Search

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


def builtin() -> dict[str, Path]:
    """The suites that ship with the package, by name."""
    folder = Path(str(resources.files("bench") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def locate(name: str) -> Path:
    """The file of a suite: a path that exists, or a built-in name."""
    if name.endswith(".toml") or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise BenchError(f"suite {name}: there is no such file")
    known = builtin()
    if name not in known:
        raise BenchError(
            f"there is no suite {name!r}{suggest(name, known)}, or give the path of a .toml file"
        )
    return known[name]


def load(name: str) -> Suite:
    """Read and check a suite by name or path."""
    path = locate(name)
    return parse(_read(path), path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise BenchError(f"{path}: cannot be read: {error.strerror}") from error


def parse(raw: Mapping[str, Any], path: Path) -> Suite:
    """A suite from its table; ``path`` begins every error line and gives the name."""
    _keys(raw, _TOP, str(path))
    if (
        path.stem != path.stem.strip()
        or not path.stem.replace("-", "").replace("_", "").replace(".", "").isalnum()
    ):
        raise BenchError(f"{path}: a suite's file name may hold letters, digits, '.', '-' and '_' only")
    top = {k: v for k, v in raw.items() if k in _AXES}
    blocks = raw.get("grid", [{}])
    grids = tuple(
        _grid(top, block, f"{path}: grid {i + 1}" if "grid" in raw else str(path))
        for i, block in enumerate(_list_of_tables(blocks, f"{path}: grid"))
    )
    varies = tuple(_list_of_tables(raw.get("vary", []), f"{path}: vary"))
    for vary in varies:
        _keys(vary, _VARY, f"{path}: vary")
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
    tried = search.parse(_table(raw.get("search", {}), f"{path}: search"), infos, f"{path}: search")
    return Suite(
        name=path.stem,
        path=path,
        about=str(raw.get("about", "")),
        minutes=_number(raw.get("minutes"), f"{path}: minutes"),
        grids=grids,
        sets=tuple(_sets(raw.get("set", []), f"{path}: set")),
        varies=varies,
        search=tried,
        tables=tuple(_list_of_tables(raw.get("table", []), f"{path}: table")),
        figures=tuple(_list_of_tables(raw.get("figure", []), f"{path}: figure")),
        slurm=_table(raw.get("slurm", {}), f"{path}: slurm"),
    )


def _number(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise BenchError(f"{where} must be a number, not {value!r}")


def _keys(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            raise BenchError(f"{where}: unknown key {key!r}{suggest(key, known)}")


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BenchError(f"{where} must be a table, as [{where.rpartition(' ')[2]}], not {value!r}")
    return value


def _list_of_tables(value: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BenchError(f"{where} must be written as [[{where.rpartition(' ')[2]}]] blocks")
    return value


def _sets(blocks: Any, where: str) -> list[Mapping[str, Any]]:
    known = {"when", "method", "backbone", "data", "target", "protocol", "budget", "snapshots", "precision"}
    known |= {"processes", "sync_batch_norm"}
    conditions = {"method", "backbone", "dataset", "labels", "protocol", "target", "label_noise", "seed"}
    tables = _list_of_tables(blocks, where)
    for block in tables:
        _keys(block, known, where)
        if not isinstance(block.get("when"), dict):
            raise BenchError(f'{where} needs when, as in when = {{method = "rotation"}}')
        _keys(block["when"], conditions, f"{where}: when")
        for part in ("method", "data", "target", "protocol"):
            if not isinstance(block.get(part, {}), dict):
                raise BenchError(f"{where}: {part} must be a table of settings, not {block[part]!r}")
    return tables


# ---- one grid ------------------------------------------------------------------------------------


def _grid(top: Mapping[str, Any], block: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    _keys(block, _AXES, where)
    merged = {**_DEFAULTS, **top, **block}
    for key in ("methods", "protocols", "data"):
        if key not in merged:
            raise BenchError(f"{where}: key {key!r} is missing ({_AXES[key]})")
    merged["methods"] = _units("method", merged["methods"], top.get("methods"), f"{where}: methods")
    merged["protocols"] = _units("protocol", merged["protocols"], top.get("protocols"), f"{where}: protocols")
    merged["init"] = _init(merged.get("init", {}), top.get("methods"), f"{where}: init")
    merged["backbone"] = [
        _named("backbone", b, f"{where}: backbone") for b in _listed(merged.get("backbone"))
    ]
    merged["data"] = _part(merged["data"], _DATA, f"{where}: data")
    merged["target"] = _part(merged.get("target", {}), _TARGET, f"{where}: target")
    if "dataset" not in merged["data"]:
        raise BenchError(f"{where}: data.dataset is missing: name the dataset to train on")
    merged["seeds"] = _seeds(merged["seeds"], f"{where}: seeds")
    for key in ("budget", "precision", "processes", "snapshots", "sync_batch_norm", "threads"):
        for value in _listed(merged[key]):
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


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _init(value: Any, methods: Any, where: str) -> dict[str, Any]:
    """``{"methods": {label: unit}, "data": {...}, "budget": ...}``; the label "none" is a start from scratch."""
    if not value:
        return {}
    if not isinstance(value, dict):
        raise BenchError(
            f'{where} must be a table, as {{methods = ["rotation"], budget = 60_000}}, not {value!r}'
        )
    _keys(value, {"methods", "budget", "data"}, where)
    named = value.get("methods")
    scratch = isinstance(named, list) and "none" in named
    if isinstance(named, list):
        named = [label for label in named if label != "none"]
    found = dict(value, methods=_units("method", named, methods, f"{where}.methods"))
    if scratch:
        found["methods"] = {"none": None, **found["methods"]}
    if "data" in value:
        found["data"] = _part(value["data"], _DATA, f"{where}.data")
    check_scalars({"budget": value.get("budget", 0)}, where)
    return found


def _seeds(value: Any, where: str) -> list[int]:
    if _whole(value) and value > 0:
        return list(range(value))
    if isinstance(value, list) and value and all(map(_whole, value)):
        return value
    raise BenchError(f"{where} must be a number of seeds or a list of whole numbers, not {value!r}")


def _units(kind: str, value: Any, defined: Any, where: str) -> dict[str, dict[str, Any]]:
    """``{label: {"name": unit, settings...}}`` of a table of settings, or of a list of names."""
    known = defined if isinstance(defined, dict) else {}
    entries = _entries(value, where)
    known = {**entries, **known} if isinstance(value, list) else {**known, **entries}
    found = {}
    for label in entries:
        settings = _like(kind, label, known, where)
        name = settings.pop("use")
        info = find(kind, name, f"{where}.{label}")
        for key in settings:
            if not info.takes(key):
                raise BenchError(
                    f"{where}.{label}: {kind} {name!r} has no field {key!r}{suggest(key, info.fields)}"
                )
        found[label] = {"name": name, **settings}
    return found


def _like(
    kind: str, label: str, entries: Mapping[str, Any], where: str, taken: tuple[str, ...] = ("",)
) -> dict[str, Any]:
    """The settings of an entry, ``use`` among them: those of the one it is ``like``, but for what it writes itself.

    ``like = "jigsaw"`` is an entry of the same suite, ``like = "lecture_embedded/jigsaw"`` one of another.

    :param taken: the entries on the way here, as SUITE/LABEL.
    """
    settings = entries[label]
    if not isinstance(settings, dict):
        raise BenchError(f"{where}.{label} must be a table of settings, not {settings!r}")
    if "like" not in settings:
        return {**settings, "use": str(settings.get("use", label))}
    suite, _, other = str(settings["like"]).rpartition("/")
    if suite:
        entries = _entries(_read(locate(suite)).get(f"{kind}s"), f"{suite}: {kind}s")
    model = f"{suite or taken[-1].rpartition('/')[0]}/{other}"
    if other not in entries or model in taken:
        raise BenchError(
            f"{where}.{label}: like must name another entry, of this suite or as SUITE/ENTRY of another, not"
            f" {settings['like']!r}{suggest(other, entries)}"
        )
    found = _like(kind, other, entries, where, (*taken, model))
    return {**found, **{k: v for k, v in settings.items() if k != "like"}}


def _entries(value: Any, where: str) -> dict[str, Any]:
    """A table of settings by label; a list of names is one without settings."""
    if isinstance(value, list):
        value = {name: {} for name in map(str, value)}
    if not isinstance(value, dict) or not value:
        raise BenchError(f"{where} must be a list of names or a table of settings, not {value!r}")
    return value


def _named(kind: str, value: Any, where: str) -> dict[str, Any]:
    named: dict[str, Any] = {"name": value} if isinstance(value, str) else value
    if not isinstance(named, dict) or "name" not in named:
        raise BenchError(
            f'{where} must be a name or a table with a name, as {{name = "resnet18"}}, not {value!r}'
        )
    info = find(kind, named["name"], where)
    for key in named:
        if key != "name" and not info.takes(key):
            raise BenchError(
                f"{where}: {kind} {named['name']!r} has no field {key!r}{suggest(key, info.fields)}"
            )
    return named


def _part(value: Any, known: set[str], where: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"dataset": value}
    if not isinstance(value, dict):
        raise BenchError(f"{where} must be a dataset's name or a table, not {value!r}")
    _keys(value, known, where)
    part: dict[str, Any] = dict(value)
    if "dataset" in part:
        part["dataset"] = [_named("dataset", d, f"{where}.dataset") for d in _listed(part["dataset"])]
    return part
