"""The entries of a suite's tables: units by name with their settings, some of them like another's; data and target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.planning.files import locate, read
from bench.records import BenchError
from bench.registry import find, suggest


def units(kind: str, value: Any, defined: Any, where: str) -> dict[str, dict[str, Any]]:
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
        entries = _entries(read(locate(suite)).get(f"{kind}s"), f"{suite}: {kind}s")
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


def named(kind: str, value: Any, where: str) -> dict[str, Any]:
    """A unit as ``{"name": unit, settings...}``, which a suite may name in one word."""
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


def part(value: Any, known: set[str], where: str) -> dict[str, Any]:
    """The table of data or target, its dataset as a list of units; one word is a dataset's name."""
    if isinstance(value, str):
        value = {"dataset": value}
    if not isinstance(value, dict):
        raise BenchError(f"{where} must be a dataset's name or a table, not {value!r}")
    check_keys(value, known, where)
    found: dict[str, Any] = dict(value)
    if "dataset" in found:
        found["dataset"] = [named("dataset", d, f"{where}.dataset") for d in listed(found["dataset"])]
    return found


# ---- shapes --------------------------------------------------------------------------------------


def check_keys(table: Mapping[str, Any], known: Any, where: str) -> None:
    """A key that means nothing is a slip."""
    for key in table:
        if key not in known:
            raise BenchError(f"{where}: unknown key {key!r}{suggest(key, known)}")


def table(value: Any, where: str) -> Mapping[str, Any]:
    """What must stand there as ``[name]``."""
    if not isinstance(value, dict):
        raise BenchError(f"{where} must be a table, as [{where.rpartition(' ')[2]}], not {value!r}")
    return value


def tables(value: Any, where: str) -> list[Mapping[str, Any]]:
    """What must stand there as ``[[name]]`` blocks."""
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BenchError(f"{where} must be written as [[{where.rpartition(' ')[2]}]] blocks")
    return value


def listed(value: Any) -> list[Any]:
    """One value is a list of one, none an empty one."""
    return value if isinstance(value, list) else [] if value is None else [value]
