"""Part of a suite: the cells of some methods, datasets or protocols, or where a setting has a value. The rest stays as it is."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.planning.plan import Planned
from bench.records import BenchError, Unit, freeze
from bench.registry import find, suggest

_TRAINING = ("budget", "seed", "precision", "threads", "snapshots", "processes", "sync_batch_norm")
_SEEN = ("labels", "label_split", "label_noise", "labeled_classes")  # what a method may see none of


@dataclass(frozen=True)
class Part:
    """What is asked for; nothing named is all. ``settings``: keys as in ``[[vary]]``, with their values as text."""

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        methods: Iterable[str],
        datasets: Iterable[str],
        protocols: Iterable[str],
        settings: Iterable[str],
    ) -> Part:
        """From the words of a command: lists with commas, and KEY=VALUE."""
        pairs = []
        for written in settings:
            key, equals, value = written.partition("=")
            if not equals or not key.strip():
                raise BenchError(
                    f'--set must be KEY=VALUE, as in "labels=250" or "method.lr=0.1", not {written!r}'
                )
            pairs.append((key.strip(), value.strip()))
        return cls(_split(methods), _split(datasets), _split(protocols), tuple(pairs))

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Part:
        """The inverse of :func:`bench.records.plain`."""
        pairs = tuple((str(key), str(value)) for key, value in record.get("settings", ()))
        methods, datasets, protocols = (
            tuple(record.get(k, ())) for k in ("methods", "datasets", "protocols")
        )
        return cls(methods, datasets, protocols, pairs)

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self == Part()


def _split(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.strip() for word in words for name in word.split(",") if name.strip())


def cells(planned: Sequence[Planned], part: Part, where: str) -> list[Planned]:
    """Those of ``planned`` that a part names, in their order.

    :param where: the suite's file, which begins the error line.
    :raises BenchError: a name or value that none of them has.
    """
    found = list(planned)
    for kind, wanted in (("method", part.methods), ("dataset", part.datasets), ("protocol", part.protocols)):
        if wanted:
            known = {name for one in planned for name in _names(one, kind)}
            for name in wanted:
                if name not in known:
                    raise BenchError(f"{where}: --{kind}s: this suite has no {name!r}{suggest(name, known)}")
            labels = {_label(one) for one in planned} if kind == "method" else set()
            found = [one for one in found if _meant(one, kind, wanted, labels)]
    for key in dict.fromkeys(key for key, _ in part.settings):
        found = _having(found, planned, key, [value for name, value in part.settings if name == key], where)
    if not found:
        raise BenchError(f"{where}: no cell is left: no method, dataset, protocol and setting meet in one")
    return found


def _label(one: Planned) -> str:
    return one.label.partition(" from ")[0]


def _meant(one: Planned, kind: str, wanted: Iterable[str], labels: set[str]) -> bool:
    """A label is nearer than the name of a method that stands under several."""
    return any(name == _label(one) if name in labels else name in _names(one, kind) for name in wanted)


def _names(one: Planned, kind: str) -> tuple[str, ...]:
    training = one.cell.training
    if kind == "method":
        return one.label, training.method.name, _label(one)
    if kind == "dataset":
        return training.data.dataset.name, one.cell.aim.dataset.name
    return (one.cell.protocol.name,)


def _having(
    found: Sequence[Planned], planned: Sequence[Planned], key: str, wanted: Sequence[str], where: str
) -> list[Planned]:
    values = [_value(text) for text in wanted]
    there = {fact for one in planned for fact in _facts(one, key)}
    for value in values:
        if not any(_same(value, fact) for fact in there):
            told = ", ".join(sorted(map(str, there))) or "no such setting"
            raise BenchError(f"{where}: --set {key}={value}: this suite has {told}")
    return [
        one
        for one in found
        if _independent(one, key) or any(_same(value, fact) for value in values for fact in _facts(one, key))
    ]


def _value(text: str) -> Any:
    try:
        return freeze(tomllib.loads(f"value = {text}")["value"])
    except (tomllib.TOMLDecodeError, BenchError):
        return text  # a word


def _same(value: Any, fact: Any) -> bool:
    return bool(value == fact and isinstance(value, bool) == isinstance(fact, bool)) or str(value) == str(
        fact
    )


def _facts(one: Planned, key: str) -> tuple[Any, ...]:
    """What a cell has under a key; nothing where it has no such setting."""
    training, aim = one.cell.training, one.cell.aim
    head, _, name = key.partition(".")
    units: dict[str, Unit] = {
        "method": training.method,
        "backbone": training.backbone,
        "protocol": one.cell.protocol,
    }
    if head in units:
        unit = units[head]
        own = dict(unit.settings)
        return (
            (own[name],)
            if name in own
            else ()
            if name
            else (unit.name, *((one.label,) if head == "method" else ()))
        )
    if head in {"data", "target"} and name:
        return _of_data(training.data if head == "data" else aim, name)
    if key in _TRAINING:
        return (getattr(training, key),)
    if key == "target":
        return (aim.dataset.name,)
    return _of_data(training.data, key)


def _of_data(record: Any, name: str) -> tuple[Any, ...]:
    if name == "dataset":
        return (record.dataset.name,)
    own = dict(record.dataset.settings)
    return (getattr(record, name),) if hasattr(record, name) else (own[name],) if name in own else ()


def _independent(one: Planned, key: str) -> bool:
    """A model that does not hang on a setting was made once, at one value: it belongs to all."""
    traits = find("method", one.cell.training.method.name, "the plan").traits
    name = key.removeprefix("data.")
    if name in _SEEN:
        return not traits["sees_labels"]
    return key in {"seed", "budget"} and key not in traits["depends_on"]
