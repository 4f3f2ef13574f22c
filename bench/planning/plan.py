"""Multiplies a suite's axes out into cells. Pure: no torch, no printing, no files but those that settings name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.planning.grid import choices
from bench.planning.resolver import Resolver
from bench.planning.suite import Suite
from bench.records import Aim, BenchError, Cell, Data, Training, Unit
from bench.registry import Field, Info, facts, find

_NO_BACKBONE = Unit("none")
_SEED = "seed"  # a setting of data or target that every seed has of its own


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
    resolve = Resolver(str(suite.path))
    for trial, choice in choices(suite):
        planned = replace(_planned(choice, resolve), trial=trial)
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


# ---- records ------------------------------------------------------------------------------------


def _planned(choice: Mapping[str, Any], resolve: Resolver) -> Planned:
    method, method_unit = resolve("method", choice["method"])
    protocol, protocol_unit = resolve("protocol", choice["protocol"])
    given = choice["data"]["dataset"]
    dataset_unit = resolve("dataset", _own(given, choice))[1]
    target_unit = resolve("dataset", _own(choice["target"].get("dataset", given), choice))[1]
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
    skip = unmet or _unmet_by_data(method, training) or _unmet_by_target(protocol, method, target_unit)
    snapshots = "all" if training.snapshots > 1 and protocol.traits["needs"]["head"] else "last"
    cell = Cell(training, protocol_unit, aim, snapshots=snapshots, skip=skip)
    return Planned(
        cell, choice["label"] if start is None else f"{choice['label']} from {choice['init']['label']}"
    )


def _start(choice: Mapping[str, Any], resolve: Resolver) -> tuple[Training | None, str]:
    """The training whose encoder this one starts from, and why it cannot be made."""
    if not choice["init"]:
        return None, ""
    first = {**choice, **choice["init"], "snapshots": 1, "init": {}, "target": {}}
    cell = _planned(first, resolve).cell
    method = find("method", cell.training.method.name, resolve.where)
    return cell.training, _unmet_by_data(method, cell.training)


def _own(settings: Mapping[str, Any], choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """``label_split = "seed"`` gives every seed labels of its own, as papers do; ``fold = "seed"`` its fold."""
    if _SEED not in settings.values():
        return settings
    return {key: choice["seed"] if value == _SEED else value for key, value in settings.items()}


def _wants_backbone(method: Info, unit: Unit) -> bool:
    """Whether a backbone makes a difference; one that the method's settings replace makes none."""
    own = method.traits.get("own_network", "")
    return "backbone" in method.traits["depends_on"] and not (own and unit.get(own))


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


def _unmet_by_data(method: Info, training: Training) -> str:
    """Why this training cannot be made, or nothing."""
    needs = method.traits["needs"]
    name, known = training.data.dataset.name, facts(training.data.dataset)
    if needs["color"] and not known.color:
        return f"{method.name} needs color; {name} is gray"
    for sense in ("video", "audio"):
        if needs[sense] and sense not in known.annotations:
            return f"{method.name} needs {sense}; {name} has none"
    side = known.image_side
    if needs["min_side"] and side is not None and side < needs["min_side"]:
        return f"{method.name} needs images of at least {needs['min_side']} pixels a side; {name} has {side}"
    if needs["labels"] and training.data.labels == 0:
        return f"{method.name} needs labels; data.labels is 0"
    if method.traits["sees_labels"] and "class" not in known.annotations:
        return f"{method.name} needs one class an image; {name} has {', '.join(known.annotations)}"
    return ""


def _unmet_by_target(protocol: Info, method: Info, target: Unit) -> str:
    needs = protocol.traits["needs"]
    if needs["annotation"] not in facts(target).annotations:
        return f"{protocol.name} needs {needs['annotation']} annotations; {target.name} has none"
    if needs["head"] and not method.traits["sees_labels"]:
        return f"{protocol.name} needs a classifier; {method.name} makes none"
    return ""
