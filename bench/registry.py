"""Finds units and knows what planning needs of them, without importing them.

Built-in units are found by file name, third parties' by the entry-point groups ``bench.methods``,
``bench.protocols``, ``bench.datasets`` and ``bench.backbones``. Importing a unit loads torch, so what
planning asks for (fields, defaults, needs) is described once by a child process and kept in a cache
keyed by the digest of the unit's code; a changed file is described again.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import os
import re
import subprocess
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import children
from bench.code import closure_digest, module_file
from bench.facts import Facts, tell
from bench.records import BenchError, Unit, freeze, is_aside, is_later

KINDS = {"method": "methods", "protocol": "protocols", "dataset": "bench.data", "backbone": "bench.backbones"}
RECIPE = "recipe"


@dataclass(frozen=True)
class Field:
    """A setting of a unit: its type as text, its default (JSON-ready) and whether a list is one value of it."""

    type: str
    default: Any = None
    required: bool = False
    sequence: bool = False
    later: bool = False  # came after ids were given (records.later)
    aside: bool = False  # no part of an identity (records.aside)

    def left_out(self, value: Any) -> bool:
        """Whether ids are told without it."""
        return self.later and freeze(value) == freeze(self.default)


@dataclass(frozen=True)
class Info:
    """What planning knows of a unit."""

    kind: str
    name: str
    module: str
    cls: str
    about: str = ""
    paper: str = ""
    fields: Mapping[str, Field] = field(default_factory=dict)
    traits: Mapping[str, Any] = field(
        default_factory=dict
    )  # class-level facts: sees_labels, needs, classes...

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """Settings under a name, as papers published them: the tables of the .toml file beside the unit's."""
        return _recipes(module_file(self.module).with_suffix(".toml"))

    def takes(self, key: str) -> bool:
        """Whether a suite may write this key: a field, or ``recipe`` where the unit has some."""
        return key in self.fields or (key == RECIPE and bool(self.recipes))

    def written_out(self, settings: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """Settings with those of their recipe, if they name one; what stands beside it wins."""
        if RECIPE not in settings or RECIPE in self.fields:
            return settings
        name, known = settings[RECIPE], self.recipes
        if name not in known:
            raise BenchError(f"{where}: {self.name} has no recipe {name!r}{suggest(str(name), known)}")
        return {**known[name], **{k: v for k, v in settings.items() if k != RECIPE}}

    def resolve(self, settings: Mapping[str, Any], where: str) -> Unit:
        """The unit with every default written out; unknown fields and wrong types are told in one line."""
        settings = self.written_out(settings, where)
        for key, value in settings.items():
            if key not in self.fields:
                raise BenchError(
                    f"{where}: {self.kind} {self.name!r} has no field {key!r}{suggest(key, self.fields)}"
                )
            _check_type(value, self.fields[key], f"{where}: {self.name}.{key}")
        missing = [k for k, f in self.fields.items() if f.required and k not in settings]
        if missing:
            raise BenchError(f"{where}: {self.kind} {self.name!r} needs a value for {missing[0]!r}")
        values = {k: _coerce(settings.get(k, f.default), f) for k, f in self.fields.items()}
        aside = {k: v for k, v in values.items() if self.fields[k].aside and v != self.fields[k].default}
        told = {k: v for k, v in values.items() if not (self.fields[k].aside or self.fields[k].left_out(v))}
        return Unit.of(self.name, told, aside)


@functools.cache
def _recipes(path: Path) -> Mapping[str, Mapping[str, Any]]:
    if not path.is_file():
        return {}
    try:
        found: Mapping[str, Mapping[str, Any]] = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BenchError(f"{path}: not valid TOML: {error}") from error
    return found


def suggest(key: str, known: Iterable[str]) -> str:
    """The end of an error line: the nearest known name, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, 1, 0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are: {', '.join(names)}" if names else ""


def checked(settings: Mapping[str, Any], known: Mapping[str, Field], where: str) -> dict[str, Any]:
    """Settings of the right types; a wrong one is told in one line that begins with ``where``."""
    for key, value in settings.items():
        _check_type(value, known[key], f"{where}.{key}")
    return {k: freeze(_coerce(v, known[k])) for k, v in settings.items()}


_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}


def _check_type(value: Any, spec: Field, where: str) -> None:
    if any(isinstance(v, float) and not math.isfinite(v) for v in _leaves(value)):
        raise BenchError(f"{where} must be finite, not {value!r}")
    options = [t.strip() for t in spec.type.split("|")]
    if isinstance(value, (list, tuple)):
        if not spec.sequence:
            raise BenchError(f"{where} must be {spec.type}, not the list {list(value)!r}")
        _check_items(value, spec, where)
        return
    allowed = tuple(t for o in options for t in _TYPES.get(o, ()))
    boolean = isinstance(value, bool) and "bool" not in options
    if allowed and (boolean or not isinstance(value, allowed)):
        raise BenchError(f"{where} must be {spec.type}, not {value!r}")
    if spec.sequence and not allowed:
        raise BenchError(f"{where} must be a list ({spec.type}), not {value!r}")


def _check_items(value: Sequence[Any], spec: Field, where: str) -> None:
    words = set(re.findall(r"\w+", spec.type))
    allowed = tuple(t for word in words for t in _TYPES.get(word, ()))
    fixed = re.fullmatch(r"tuple\[([^\[\].]*)\]", spec.type)  # as tuple[float, float]
    short = fixed is not None and len(value) != fixed[1].count(",") + 1
    wrong = [
        v
        for v in _leaves(value)
        if (isinstance(v, bool) and "bool" not in words) or not isinstance(v, allowed)
    ]
    if short or (allowed and wrong):
        raise BenchError(f"{where} must be {spec.type}, not the list {list(value)!r}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _coerce(value: Any, spec: Field) -> Any:
    """An integer where a float is meant is the same setting: ``lr = 1`` and ``lr = 1.0``."""
    words = set(re.findall(r"\w+", spec.type))
    if isinstance(value, (list, tuple)):
        return tuple(_coerce(v, spec) for v in value)
    if isinstance(value, int) and not isinstance(value, bool) and "float" in words and "int" not in words:
        return float(value)
    return value


# ---- finding -----------------------------------------------------------------------------------


@functools.cache
def modules(kind: str) -> dict[str, str]:
    """Candidate modules of a kind: {module: where it comes from}."""
    package = KINDS[kind]
    folder = module_file(package).parent
    found = {f"{package}.{p.stem}": str(p) for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")}
    group = f"bench.{package.rpartition('.')[2].replace('data', 'datasets')}"
    for point in importlib.metadata.entry_points(group=group):
        found[point.module] = f"entry point {point.name!r} of {point.dist.name if point.dist else '?'}"
    return found


@functools.cache
def units(kind: str) -> dict[str, Info]:
    """All units of a kind by name."""
    described = _describe_all(tuple(modules(kind)))
    found: dict[str, Info] = {}
    for module in modules(kind):
        for record in described[module]:
            if record["kind"] == kind:
                info = _info(record)
                if info.name in found and found[info.name].module != info.module:
                    raise BenchError(
                        f"{kind} {info.name!r} is defined by {found[info.name].module} and {info.module}"
                    )
                found[info.name] = info
    return found


def find(kind: str, name: str, where: str) -> Info:
    """One unit; ``where`` (file and key) begins the error line."""
    known = units(kind)
    if name not in known:
        raise BenchError(f"{where}: there is no {kind} {name!r}{suggest(name, known)}")
    return known[name]


def load(kind: str, unit: Unit) -> Any:
    """The unit itself, made with its settings: imports its module (and so torch)."""
    info = find(kind, unit.name, "the record")
    cls = getattr(importlib.import_module(info.module), info.cls)
    try:
        return cls(**unit.all_settings)
    except (TypeError, ValueError) as error:
        raise BenchError(f"{kind} {unit.name!r} refuses its settings: {error}") from error


def facts(unit: Unit, root: Path | None = None) -> Facts:
    """What planning knows of a dataset with its settings; with a root, from its files too (:mod:`bench.facts`)."""
    info = find("dataset", unit.name, "the record")
    names = [f.name for f in dataclasses.fields(Facts) if f.name in info.traits]
    constants: dict[str, Any] = {name: freeze(info.traits[name]) for name in names}
    known = Facts(**constants)
    return tell(info.traits.get("teller", ""), unit.all_settings, root, known)


def code_digest(kind: str, name: str) -> str:
    """The digest of all unit code that this one's results depend on."""
    return closure_digest(find(kind, name, "the record").module)


def _info(record: Mapping[str, Any]) -> Info:
    fields = {k: Field(**f) for k, f in record["fields"].items()}
    return Info(**{**record, "fields": fields})


# ---- describing --------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where what can be made again is kept: ``BENCH_CACHE``, else the user's cache folder."""
    base = os.environ.get("BENCH_CACHE")
    return Path(base) if base else Path.home() / ".cache" / "representation-bench"


_TELLERS = ("bench.registry", "bench.contracts", "bench.records", "bench.facts")


def _describe_all(names: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    path = cache_folder() / "units.json"
    cache = _described(path)
    # What is told of a unit also hangs on who tells it and on what the contracts say of all.
    teller = hashlib.sha256(b"".join(module_file(m).read_bytes() for m in _TELLERS)).hexdigest()
    digests = {name: f"{closure_digest(name)} {teller}" for name in names}
    stale = [name for name in names if name not in cache or cache[name]["digest"] != digests[name]]
    if stale:
        for name, records in _describe_in_child(stale).items():
            cache[name] = {"digest": digests[name], "units": records}
        keep(path, cache)
    return {name: cache[name]["units"] for name in names}


def _described(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier command kept, as far as it is whole: the rest is described again."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return {name: entry for name, entry in found.items() if _whole(entry)}
    except (OSError, ValueError, AttributeError):
        return {}


def _whole(entry: Any) -> bool:
    try:
        for record in entry["units"]:
            _info(record)
        return isinstance(entry["digest"], str)
    except (AttributeError, KeyError, TypeError):
        return False


def keep(path: Path, cache: Any) -> None:
    """Write what can be made again as JSON, where that is possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            temporary.write_text(json.dumps(cache), "utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else


def _describe_in_child(names: list[str]) -> dict[str, list[dict[str, Any]]]:
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        children.python("bench.registry", *names),
        capture_output=True,
        text=True,
        check=False,
        env=children.environment(),
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise BenchError(f"cannot read the units: {lines[-1]}")
    answer: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return answer


def describe(module: str) -> list[dict[str, Any]]:
    """The records of the units that a module defines: imports it."""
    loaded = importlib.import_module(module)
    found = []
    for name, cls in inspect.getmembers(loaded, inspect.isclass):
        is_unit = getattr(cls, "kind", None) in KINDS and cls.__module__ == module
        if is_unit and not inspect.isabstract(cls) and not name.startswith("_"):
            found.append(_record(cls))
    return found


_TRAITS = (
    "from_description",
    "sees_labels",
    "depends_on",
    "distributed",
    "variants",
    "classes",
    "color",
    "flip",
    "annotations",
    "splits",
    "image_side",
    "test_split",
    "files",
    "own_network",
    "teller",
)


def _record(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = {f.name: dataclasses.asdict(_field(f, hints[f.name])) for f in dataclasses.fields(cls)}
    traits: dict[str, Any] = {
        t: freeze(v) for t in _TRAITS if not callable(v := getattr(cls, t, None)) and v is not None
    }
    traits = {t: v for t, v in traits.items() if not isinstance(inspect.getattr_static(cls, t), property)}
    traits["checks"] = hasattr(cls, "__post_init__")  # it may refuse values of the right type
    traits["shrinks"] = dict(getattr(cls, "shrinks", {}))
    if hasattr(cls, "needs"):
        traits["needs"] = dataclasses.asdict(cls.needs)
    doc = (inspect.getdoc(cls) or "").strip().split("\n\n")[0].replace("\n", " ")
    name = getattr(cls, "name", "") or cls.__module__.rpartition(".")[2]
    paper = getattr(cls, "paper", "")
    return dataclasses.asdict(Info(cls.kind, name, cls.__module__, cls.__name__, doc, paper)) | {
        "fields": fields,
        "traits": traits,
    }


def _field(spec: dataclasses.Field[Any], hint: Any) -> Field:
    required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
    default = spec.default
    if spec.default_factory is not dataclasses.MISSING:
        default = spec.default_factory()
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    sequence = any(typing.get_origin(o) in (tuple, list) or o in (tuple, list) for o in options)
    text = " | ".join(getattr(o, "__name__", str(o)) if not typing.get_args(o) else str(o) for o in options)
    return Field(
        text, None if required else freeze(default), required, sequence, is_later(spec), is_aside(spec)
    )


def _main(names: list[str]) -> int:
    out, sys.stdout = sys.stdout, sys.stderr  # what modules print is not the answer
    described = {}
    for name in names:
        try:
            described[name] = describe(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a third party's module may raise anything
            sys.stderr.write(
                f"{name} cannot be imported: {type(error).__name__}: {error}\n".replace("\n", " ")
            )
            return 1
    out.write(json.dumps(described) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
