"""Multiplies a suite's axes out into cells. Pure: no torch, no printing, no files but those that settings name."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.records import WHITENINGS, Aim, BenchError, Cell, Data, Training, Unit, freeze
from bench.registry import Field, Info, checked, find, suggest
from bench.suite import Suite, check_scalars

_NO_BACKBONE = Unit("none")
_PARTS = ("method", "backbone", "data", "target", "protocol")
_SCALARS = ("budget", "precision", "threads", "snapshots", "seed", "processes", "sync_batch_norm")
_SEED = "seed"  # a setting of data or target that every seed has of its own
FEATURES = ("float32", "float16")
_WORDS = {"labels": "all", "unlabeled": "all", "validation": "auto"}  # what may stand there beside a number


def _fields_of(record: type) -> dict[str, Field]:
    return {f.name: Field(str(f.type), sequence="tuple" in str(f.type)) for f in dataclasses.fields(record)}


_DATA, _AIM = _fields_of(Data), _fields_of(Aim)


@dataclass(frozen=True)
class Planned:
    """A cell of a suite, and the name under which its method stands in the suite's tables."""

    cell: Cell
    label: str
    variant: str = ""
    trial: int | None = None  # of a search


def cells(suite: Suite) -> list[Planned]:
    """All cells of a suite, each once, in the suite's order."""
    found: dict[tuple[Cell, str, int | None], Planned] = {}
    resolve = _Resolver(str(suite.path))
    for choice in _choices(suite):
        _apply(suite.sets, choice, f"{suite.path}: set")
        for trial, tried in _trials(suite, choice):
            planned = replace(_planned(tried, resolve), trial=trial)
            found.setdefault((planned.cell, planned.label, trial), planned)
    return list(found.values())


def trainings(planned: Iterable[Planned]) -> dict[Training, list[Planned]]:
    """The models to be made, each with the cells that wait for it."""
    found: dict[Training, list[Planned]] = {}
    for one in planned:
        found.setdefault(one.cell.training, []).append(one)
    return found


def remaining(planned: Iterable[Planned], done: Callable[[Cell], bool]) -> list[Planned]:
    """The cells that are neither done nor impossible."""
    return [one for one in planned if not one.cell.skip and not done(one.cell)]


# ---- axes ----------------------------------------------------------------------------------------


def _choices(suite: Suite) -> Iterator[dict[str, Any]]:
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
    elif not key and (part in _SCALARS or part == "backbone"):
        choice |= _with_names({part: value}, where)
    else:
        raise BenchError(
            f'{where}: path {path!r} names nothing: write e.g. "method.lr", "data.labels" or "budget"'
        )


def _expand(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    scalars = [(key, grid[key]) for key in _SCALARS if key != "seed"]
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


# ---- records ------------------------------------------------------------------------------------


class _Resolver:
    """Units with every default written out, each combination resolved once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.known: dict[Any, tuple[Info, Unit]] = {}
        self.parts: dict[Any, dict[str, Any]] = {}
        self.fine: set[Any] = set()

    def __call__(self, kind: str, settings: Mapping[str, Any]) -> tuple[Info, Unit]:
        key = (kind, *((k, freeze(v)) for k, v in settings.items()))
        if key not in self.known:
            info = find(kind, settings["name"], self.where)
            own = {k: v for k, v in settings.items() if k != "name"}
            where = f"{self.where}: {kind}"
            self.known[key] = info, _with_digests(info, info.resolve(own, where), f"{where}: {info.name}")
        return self.known[key]

    def part(self, name: str, settings: Mapping[str, Any], known: Mapping[str, Field]) -> dict[str, Any]:
        """What data or target say beside their dataset, checked once for each combination."""
        own = {k: v for k, v in settings.items() if k != "dataset"}
        key = (name, *((k, type(v), freeze(v)) for k, v in own.items()))
        if key not in self.parts:
            where = f"{self.where}: {name}"
            for k in own:
                if k not in known:
                    raise BenchError(f"{where}: unknown key {k!r}{suggest(k, known)}")
            self.parts[key] = checked(own, known, where)
            for k, v in own.items():
                _check_amount(k, v, f"{where}.{k}")
        return self.parts[key]

    def scalars(self, choice: Mapping[str, Any]) -> None:
        """Blocks of [[set]] and [[vary]] may have put anything there."""
        key = tuple(choice[k] for k in _SCALARS)
        if key not in self.fine:
            check_scalars(choice, self.where)
            self.fine.add(key)


def _with_digests(info: Info, unit: Unit, where: str) -> Unit:
    """The SHA-256 of each file that a unit's result hangs on stands among its settings."""
    settings = dict(unit.settings)
    for name in info.traits.get("files", ()):
        if settings.get(name):
            key = f"{name}_sha256"
            settings[key] = _file_digest(str(settings[name]), str(settings.get(key, "")), f"{where}.{name}")
    return Unit.of(unit.name, settings)


def _file_digest(path: str, said: str, where: str) -> str:
    """A file's digest; one that is said is believed where there is no file, so that results can be read anywhere."""
    file = Path(path).expanduser()
    if not file.is_file():
        if said:
            return said
        raise BenchError(
            f"{where}: {path} is no file here; write its path, or its digest as {where.rpartition('.')[2]}_sha256"
        )
    found = artifacts.file_digest(file)
    if said not in {"", found}:
        raise BenchError(f"{where}: {path} is another file: its SHA-256 is {found}, not {said}")
    return found


def _wants_backbone(method: Info, unit: Unit) -> bool:
    """Whether a backbone makes a difference; one that the method's settings replace makes none."""
    own = method.traits.get("own_network", "")
    return "backbone" in method.traits["depends_on"] and not (own and unit.get(own))


def _check_amount(key: str, value: Any, where: str) -> None:
    choices = {"whitening": WHITENINGS, "features": FEATURES}
    if key in choices:
        if value not in choices[key]:
            raise BenchError(f"{where} must be one of {', '.join(filter(None, choices[key]))}, not {value!r}")
        return
    if isinstance(value, str) and value != _WORDS[key]:
        raise BenchError(f'{where} must be a number or "{_WORDS[key]}", not {value!r}')
    if isinstance(value, (int, float)) and (value < 0 or (key == "label_noise" and value > 1)):
        limit = "between 0 and 1" if key == "label_noise" else "0 or more"
        raise BenchError(f"{where} must be {limit}, not {value!r}")


def _planned(choice: Mapping[str, Any], resolve: _Resolver) -> Planned:
    method, method_unit = resolve("method", choice["method"])
    protocol, protocol_unit = resolve("protocol", choice["protocol"])
    given = choice["data"]["dataset"]
    dataset, dataset_unit = resolve("dataset", _own(given, choice))
    target, target_unit = resolve("dataset", _own(choice["target"].get("dataset", given), choice))
    backbone = _NO_BACKBONE
    if choice["backbone"]["name"] != "none":
        backbone = resolve("backbone", choice["backbone"])[1]
    resolve.scalars(choice)
    data = Data(dataset_unit, **resolve.part("data", _own(choice["data"], choice), _DATA))
    training = Training(
        method_unit,
        backbone,
        data,
        choice["budget"],
        choice["seed"],
        choice["precision"],
        choice["threads"],
        choice["snapshots"],
        processes=choice["processes"],
        sync_batch_norm=choice["sync_batch_norm"],
    )
    if backbone == _NO_BACKBONE and _wants_backbone(method, method_unit):
        raise BenchError(f"{resolve.where}: {method.name} needs a backbone: write backbone = ...")
    training = _collapse(training, method)
    aim = Aim(target_unit, **resolve.part("target", _own(choice["target"], choice), _AIM))
    start, unmet = _start(choice, resolve)
    training = replace(training, init=start)
    skip = unmet or _unmet_by_data(method, training, dataset) or _unmet_by_target(protocol, method, target)
    snapshots = "all" if training.snapshots > 1 and protocol.traits["needs"]["head"] else "last"
    cell = Cell(training, protocol_unit, aim, snapshots=snapshots, skip=skip)
    return Planned(
        cell, choice["label"] if start is None else f"{choice['label']} from {choice['init']['label']}"
    )


def _start(choice: Mapping[str, Any], resolve: _Resolver) -> tuple[Training | None, str]:
    """The training whose encoder this one starts from, and why it cannot be made."""
    if not choice["init"]:
        return None, ""
    first = {**choice, **choice["init"], "snapshots": 1, "init": {}, "target": {}}
    cell = _planned(first, resolve).cell
    method = find("method", cell.training.method.name, resolve.where)
    dataset = find("dataset", cell.training.data.dataset.name, resolve.where)
    return cell.training, _unmet_by_data(method, cell.training, dataset)


def _own(settings: Mapping[str, Any], choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """``label_split = "seed"`` gives every seed labels of its own, as papers do; ``fold = "seed"`` its fold."""
    if _SEED not in settings.values():
        return settings
    return {key: choice["seed"] if value == _SEED else value for key, value in settings.items()}


def _collapse(training: Training, method: Info) -> Training:
    """Axes that the method does not depend on stand at one value: the same model is made once."""
    depends = method.traits["depends_on"]
    data = training.data
    if not method.traits["sees_labels"]:
        data = replace(data, labels=0, label_split=0, label_noise=0.0, labeled_classes=())
    changes: dict[str, Any] = {"data": data}
    if not _wants_backbone(method, training.method):
        changes["backbone"] = _NO_BACKBONE
    if "budget" not in depends:
        changes |= {"budget": 0, "snapshots": 1}
    if "seed" not in depends:
        changes["seed"] = 0
    if training.processes == 1 or not method.traits["distributed"]:
        changes |= {"processes": 1, "sync_batch_norm": False}
    return replace(training, **changes)


def _unmet_by_data(method: Info, training: Training, dataset: Info) -> str:
    """Why this training cannot be made, or nothing."""
    needs = method.traits["needs"]
    name = dataset.name
    if needs["color"] and not dataset.traits["color"]:
        return f"{method.name} needs color; {name} is gray"
    for sense in ("video", "audio"):
        if needs[sense] and sense not in dataset.traits["annotations"]:
            return f"{method.name} needs {sense}; {name} has none"
    side = training.data.dataset.get("side", dataset.traits.get("image_side"))
    if needs["min_side"] and isinstance(side, int) and side < needs["min_side"]:
        return f"{method.name} needs images of at least {needs['min_side']} pixels a side; {name} has {side}"
    if needs["labels"] and training.data.labels == 0:
        return f"{method.name} needs labels; data.labels is 0"
    if method.traits["sees_labels"] and "class" not in dataset.traits["annotations"]:
        return (
            f"{method.name} needs one class an image; {name} has {', '.join(dataset.traits['annotations'])}"
        )
    return ""


def _unmet_by_target(protocol: Info, method: Info, target: Info) -> str:
    needs = protocol.traits["needs"]
    if needs["annotation"] not in target.traits["annotations"]:
        return f"{protocol.name} needs {needs['annotation']} annotations; {target.name} has none"
    if needs["head"] and not method.traits["sees_labels"]:
        return f"{protocol.name} needs a classifier; {method.name} makes none"
    return ""
