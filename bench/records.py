"""The values that everything else passes around: plain, frozen, and free of torch.

A suite is planned into cells (training x protocol x target), a cell yields rows. What a value
means is said here once; how it is made, run and stored is said elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

# Raised by hand when the harness core changes a number that a unit's own files do not explain.
NUMERICS = 2  # 2: random resized crops are antialiased

_NEVER = object()  # equal to no value
_LATER = "later"  # metadata of a field that came after ids were given: see later()
_ASIDE = "aside"  # of a field that is no part of an identity: see aside()

Value: TypeAlias = "str | int | float | bool | tuple[Value, ...] | None"

# How pixels are whitened, or scaled, before a network reads them (bench/backbones/_whitening.py).
WHITENINGS = ("", "laine_aila", "vat", "ict", "mean_teacher", "per_image", "centered", "signed")

STATUSES = ("ok", "failed", "oom", "timeout", "killed", "skipped", "pending")

COLUMNS = (
    "suite",
    "cell",
    "training",
    "label",
    "method",
    "method_settings",
    "backbone",
    "variant",
    "train_dataset",
    "labels",
    "label_split",
    "label_noise",
    "data_settings",
    "split_digest",
    "budget",
    "seed",
    "precision",
    "threads",
    "init",
    "protocol",
    "protocol_settings",
    "dataset",
    "target_labels",
    "target_split",
    "layer",
    "split",
    "metric",
    "value",
    "step",
    "status",
    "reason",
    "attempt",
    "train_seconds",
    "eval_seconds",
    "images_seen",
    "peak_memory_mb",
    "device",
    "commit",
    "code_digest",
    "versions",
)

# Two runs are equal when these agree; clocks, machines and attempts may differ (design: "same numbers").
EQUAL_COLUMNS = ("value", "status", "metric", "layer", "step")


class BenchError(Exception):
    """Bad input, told in one line: where it stands, what it is, what to write instead. Exit code 2."""


def later(default: Any) -> Any:
    """A field that records did not always have: left out where it has its default, so that ids stay."""
    return field(default=default, metadata={_LATER: True})


def is_later(spec: dataclasses.Field[Any]) -> bool:
    """Whether a field was made by :func:`later`."""
    return bool(spec.metadata.get(_LATER))


def aside(default: Any) -> Any:
    """A field that says how files are reached and changes no number: no part of an identity, nor of a row."""
    return field(default=default, metadata={_ASIDE: True})


def is_aside(spec: dataclasses.Field[Any]) -> bool:
    """Whether a field was made by :func:`aside`."""
    return bool(spec.metadata.get(_ASIDE))


@dataclass(frozen=True)
class Needs:
    """What a method needs of its data, backbone and machine; unmet, its cells are skipped with the reason."""

    color: bool = False
    min_side: int = 0
    labels: bool = False
    batch_norm_free: bool = False
    video: bool = False
    audio: bool = False


@dataclass(frozen=True)
class TargetNeeds:
    """What a protocol needs of a model and of its target; unmet, its cells are skipped with the reason."""

    annotation: str = "class"  # class, multilabel, boxes, mask
    spatial: bool = False  # convolutional maps to read
    trainable: bool = False  # weights to train: a parameter-free encoder cannot be fine-tuned
    head: bool = False  # a classifier that the method itself made
    top: bool = False  # fully connected layers of its own (fc6, fc7)


def _sorted(settings: Mapping[str, Any]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted((k, freeze(v)) for k, v in settings.items()))


@dataclass(frozen=True)
class Unit:
    """A method, protocol, backbone or dataset by name, with its settings (all of them, once resolved)."""

    name: str
    settings: tuple[tuple[str, Value], ...] = ()
    aside: tuple[tuple[str, Value], ...] = field(default=(), compare=False)  # fields made by aside()

    @classmethod
    def of(
        cls, name: str, settings: Mapping[str, Any] | None = None, aside: Mapping[str, Any] | None = None
    ) -> Unit:
        return cls(name, _sorted(settings or {}), _sorted(aside or {}))

    @property
    def all_settings(self) -> dict[str, Value]:
        """What the unit is made with."""
        return {**dict(self.settings), **dict(self.aside)}

    def get(self, key: str, default: Value = None) -> Value:
        return dict(self.settings).get(key, default)


@dataclass(frozen=True)
class Data:
    """What a method is trained on, and how much of the labels it is shown."""

    dataset: Unit
    labels: int | str = "all"  # 0, n, "all"
    label_split: int = 0
    label_noise: float = 0.0  # fraction of the shown labels replaced by a uniform draw over all classes
    labeled_classes: tuple[int, ...] = ()  # () is all
    unlabeled: int | str = "all"  # n, "all"
    unlabeled_classes: tuple[int, ...] = ()
    extra: bool = False  # SVHN's extra images, STL-10's unlabeled ones
    validation: int = 0  # images held out of the training set
    resample: int = 0  # which draw of the validation images
    whitening: str = later(
        ""
    )  # of the network's input, as one of WHITENINGS; its statistics are of the images above


@dataclass(frozen=True)
class Training:
    """One model to be made.

    ``budget`` is in encoder passes (one full-size image forward and backward; a tile counts by its
    area, four rotations count four), or the text ``"12 epochs"`` of the method's own epochs.
    """

    method: Unit
    backbone: Unit
    data: Data
    budget: int | str = 0
    seed: int = 0
    precision: str = "fp32"
    threads: int = 1
    snapshots: int = 1  # how many models are kept, evenly over the training; the last is always one
    init: Training | None = None  # start from the encoder of this one
    processes: int = later(1)  # that share every batch: local batch norm, and the order of sums, depend on it
    sync_batch_norm: bool = later(False)  # statistics over the batches of all processes


@dataclass(frozen=True)
class Aim:
    """The labeled target that a protocol judges on."""

    dataset: Unit
    labels: int | str = "all"
    label_split: int = 0
    validation: int | str = "auto"  # images of the training set held out for choices; "auto": a tenth
    classes: tuple[int, ...] = later(())  # judged on images of these alone; () is all
    features: str = later("float32")  # as what frozen features are kept and read; "float16" halves the cache


@dataclass(frozen=True)
class Cell:
    """One square of the grid: a model (or one of its variants and snapshots) judged by a protocol."""

    training: Training
    protocol: Unit
    aim: Aim
    variant: str = ""  # "" is the model as the method hands it back
    snapshots: str = "last"  # "last" or "all"
    skip: str = field(default="", compare=False)  # the reason why this cell cannot be measured


@dataclass(frozen=True)
class Rehearsal:
    """How a run is shortened to see whether it comes to its end.

    :param images: at most so many of each split of a dataset.
    :param steps: at most so many of each descent: its first ones and its last.
    """

    images: int
    steps: int


def freeze(value: Any) -> Value:
    """Lists become tuples, so that settings can be compared, hashed and never changed."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise BenchError(f"a setting must be text, a number, true/false or a list of these, not {value!r}")


def plain(value: Any) -> Any:
    """A record as JSON-ready dicts and lists; units become ``{"name": ..., settings...}``-like pairs."""
    if isinstance(value, Unit):
        found = {"name": value.name, "settings": {k: plain(v) for k, v in value.settings}}
        return found | ({_ASIDE: {k: plain(v) for k, v in value.aside}} if value.aside else {})
    if value is None or isinstance(value, (str, int, float)):  # most are
        return value
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((name, getattr(value, name), left_out) for name, left_out in _told(type(value)))
        return {name: plain(own) for name, own, left_out in pairs if own != left_out}
    return value


def _told_alone(record: Any) -> Any:
    """A plain record without what units have aside."""
    if isinstance(record, dict):
        unit = record.keys() == {"name", "settings", _ASIDE}
        return {k: _told_alone(v) for k, v in record.items() if not (unit and k == _ASIDE)}
    return [_told_alone(v) for v in record] if isinstance(record, list) else record


@functools.lru_cache
def _told(record: type) -> tuple[tuple[str, Any], ...]:
    """The fields of a record that are told, each with the value at which it is not: what came later, at its default."""
    specs = [spec for spec in dataclasses.fields(record) if spec.compare]
    return tuple((spec.name, spec.default if is_later(spec) else _NEVER) for spec in specs)


def digest(value: Any, length: int = 10) -> str:
    """The first hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(_told_alone(plain(value)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def training_from(record: Mapping[str, Any]) -> Training:
    """The inverse of :func:`plain` for a training."""
    data: dict[str, Any] = {k: freeze(v) for k, v in record["data"].items() if k != "dataset"}
    dataset = _unit(record["data"]["dataset"])
    values = {k: freeze(v) for k, v in record.items() if k not in {"method", "backbone", "data", "init"}}
    return Training(
        method=_unit(record["method"]),
        backbone=_unit(record["backbone"]),
        data=Data(dataset, **data),
        init=training_from(record["init"]) if record.get("init") else None,
        **values,  # type: ignore[arg-type]  # field names and types are those that plain() wrote
    )


def cell_from(record: Mapping[str, Any]) -> Cell:
    """The inverse of :func:`plain` for a cell."""
    aim = {k: freeze(v) for k, v in record["aim"].items() if k != "dataset"}
    return Cell(
        training=training_from(record["training"]),
        protocol=_unit(record["protocol"]),
        aim=Aim(_unit(record["aim"]["dataset"]), **aim),  # type: ignore[arg-type]
        variant=record["variant"],
        snapshots=record["snapshots"],
    )


def _unit(record: Mapping[str, Any]) -> Unit:
    return Unit.of(record["name"], record["settings"], record.get(_ASIDE))
