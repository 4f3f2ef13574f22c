"""Units with every default written out, and what data and target say, checked once for each combination."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.planning.grid import SCALARS
from bench.planning.suite import check_scalars
from bench.records import WHITENINGS, BenchError, Unit, freeze
from bench.registry import Field, Info, checked, find, suggest

_FEATURES = ("float32", "float16")
_WORDS = {"labels": "all", "unlabeled": "all", "validation": "auto"}  # what may stand there beside a number


class Resolver:
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
        key = tuple(choice[k] for k in SCALARS)
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
    return Unit.of(unit.name, settings, dict(unit.aside))


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


def _check_amount(key: str, value: Any, where: str) -> None:
    choices = {"whitening": WHITENINGS, "features": _FEATURES}
    if key in choices:
        if value not in choices[key]:
            raise BenchError(f"{where} must be one of {', '.join(filter(None, choices[key]))}, not {value!r}")
        return
    if isinstance(value, str) and value != _WORDS[key]:
        raise BenchError(f'{where} must be a number or "{_WORDS[key]}", not {value!r}')
    if isinstance(value, (int, float)) and (value < 0 or (key == "label_noise" and value > 1)):
        limit = "between 0 and 1" if key == "label_noise" else "0 or more"
        raise BenchError(f"{where} must be {limit}, not {value!r}")
