"""What a job asks SLURM for: the table ``[slurm]`` of a suite, and a machine's own file over it.

Everything here is data until submitit quotes it into an sbatch file; only ``setup`` is shell, the user's own.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.planning.plan import Planned
from bench.planning.suite import Suite
from bench.records import BenchError, Value, freeze
from bench.registry import suggest

# What a submission decides itself: as an extra parameter it would break the bookkeeping.
_OURS = {"array", "dependency", "error", "job-name", "kill-on-invalid-dep", "open-mode", "output", "signal"}


@dataclass(frozen=True)
class Resources:
    """What one job asks for. ``time`` in minutes, ``mem`` in MB a node, ``gpus`` a node, ``cpus`` a task."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: int = 60
    gpus: int = 0
    cpus: int = 2
    mem: int = 4096
    nodes: int = 1
    constraint: str = ""
    exclude: tuple[str, ...] = ()
    parallelism: int = 256  # jobs of an array that run at once
    setup: tuple[str, ...] = ()
    extra: tuple[tuple[str, Value], ...] = ()

    def workers(self, threads: int, processes: int = 1) -> int:
        """Workers that share one job: as many as its GPUs, or else its CPUs, carry; over several nodes there is one.

        :param threads: of a process; ``processes``: that train a model together.
        """
        if self.nodes > 1:
            return 1
        return max(1, self.gpus // processes or self.cpus // max(1, threads * processes))


@dataclass(frozen=True)
class Policy:
    """``pack``: minutes that a job is filled to; ``stall``: minutes without a sign of life; ``retries``: beyond the first try."""

    pack: float = 20.0
    stall: float = 60.0
    retries: int = 2


@dataclass(frozen=True)
class Layer:
    """One file's say: for all jobs, and what differs by method and protocol."""

    all: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    protocols: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Rules:
    """Who asks for what: the suite's layer, then the machine's; the later one wins."""

    suite: Suite
    layers: tuple[Layer, ...]
    policy: Policy

    def training(self, one: Planned) -> Resources:
        """What the training of a cell asks for."""
        return self._asked(one, evaluation=False)

    def evaluation(self, one: Planned) -> Resources:
        """What the evaluation of a cell asks for: its training's, unless its protocol says otherwise."""
        return self._asked(one, evaluation=True)

    def _asked(self, one: Planned, *, evaluation: bool) -> Resources:
        values: dict[str, Any] = {}
        for layer in self.layers:
            values |= layer.all
            for name in (one.cell.training.method.name, one.label):
                values |= layer.methods.get(name, {})
            for name, table in layer.protocols.items() if evaluation else ():
                values |= table if _names(self.suite, name, one) else {}
        return Resources(**values)


def _names(suite: Suite, name: str, one: Planned) -> bool:
    """Is ``name`` the protocol of a cell, or the label of a block of the suite that led to it?"""
    protocol = one.cell.protocol
    if name == protocol.name:
        return True
    blocks = [grid["protocols"][name] for grid in suite.grids if name in grid["protocols"]]
    return any(
        block["name"] == protocol.name
        and all(_fits(protocol.get(k), v) for k, v in block.items() if k != "name")
        for block in blocks
    )


def _fits(value: Value, written: Any) -> bool:
    return value == freeze(written) or (isinstance(written, list) and value in map(freeze, written))


# ---- reading -------------------------------------------------------------------------------------


def rules(suite: Suite, config: Path | None = None) -> Rules:
    """The rules of a suite on this machine.

    :param config: the machine's file; by default BENCH_SLURM, else the user's own, where there is one.
    :raises BenchError: an unknown key or a value of the wrong type, in either.
    """
    where = f"{suite.path}: slurm"
    layer, policy = _layer(suite.slurm, where)
    _known(layer.methods, _units(suite, "methods"), f"{where}.methods")
    _known(layer.protocols, _units(suite, "protocols"), f"{where}.protocols")
    machine, own = _layer(*_machine(config))
    return Rules(suite, (layer, machine), Policy(**{**policy, **own}))


def _machine(config: Path | None) -> tuple[Mapping[str, Any], str]:
    named = config or (Path(os.environ["BENCH_SLURM"]) if os.environ.get("BENCH_SLURM") else None)
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    path = named or Path(home) / "representation-bench" / "slurm.toml"
    try:
        return tomllib.loads(path.read_text("utf-8")), str(path)
    except FileNotFoundError as error:
        if named is None:
            return {}, str(path)
        raise BenchError(f"{path}: there is no such file (--config, BENCH_SLURM)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise BenchError(f"{path}: cannot be read: {error.strerror}") from error


def _units(suite: Suite, kind: str) -> set[str]:
    tables = [grid[kind] for grid in suite.grids]
    return {name for table in tables for label, unit in table.items() for name in (label, unit["name"])}


def _known(tables: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in tables:
        if name not in known:
            raise BenchError(f"{where}: this suite has no {name!r}{suggest(name, known)}")


def _layer(table: Mapping[str, Any], where: str) -> tuple[Layer, dict[str, Any]]:
    parts: dict[str, Any] = {}
    for part in ("methods", "protocols"):
        tables = _table(table.get(part, {}), f"{where}: {part}")
        parts[part] = {
            name: _values(_table(own, f"{where}: {part}.{name}"), _ASKS, f"{where}: {part}.{name}")
            for name, own in tables.items()
        }
    rest = {k: v for k, v in table.items() if k not in parts}
    values = _values(rest, {**_ASKS, **_POLICY}, where, {*parts})
    policy = {k: v for k, v in values.items() if k in _POLICY}
    return Layer({k: v for k, v in values.items() if k in _ASKS}, **parts), policy


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BenchError(f"{where} must be a table, not {value!r}")
    return value


def _values(
    table: Mapping[str, Any], known: Mapping[str, Callable[[Any, str], Any]], where: str, more: Any = ()
) -> dict[str, Any]:
    for key in table:
        if key not in known:
            raise BenchError(f"{where}: unknown key {key!r}{suggest(key, {*known, *more})}")
    return {key: known[key](value, f"{where}: {key}") for key, value in table.items()}


# ---- values --------------------------------------------------------------------------------------


def text(value: Any, where: str) -> str:
    """One line of text: a line break would end the comment that sbatch reads."""
    if not isinstance(value, str) or not value.isprintable():
        raise BenchError(f"{where} must be text in one line, not {value!r}")
    return value


def _count(least: int) -> Callable[[Any, str], int]:
    def check(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BenchError(f"{where} must be a whole number from {least} up, not {value!r}")
        return value

    return check


_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")
_SPAN = re.compile(r"(\d+(?:\.\d+)?) *(min|h|)")


def minutes(value: Any, where: str) -> float:
    """``"02:00:00"``, ``"1-12:00:00"``, ``"20 min"``, ``"2 h"`` or a number, in minutes."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if isinstance(value, str) and (clock := _CLOCK.fullmatch(value)):
        days, hours, mins, seconds = (int(part or 0) for part in clock.groups())
        return 60 * (24 * days + hours) + mins + seconds / 60
    if isinstance(value, str) and (span := _SPAN.fullmatch(value)):
        return float(span[1]) * (60 if span[2] == "h" else 1)
    raise BenchError(f'{where} must be minutes, or like "02:00:00", "20 min" or "2 h", not {value!r}')


def _limit(value: Any, where: str) -> int:
    found = minutes(value, where)
    if found < 1:
        raise BenchError(f"{where} must be a minute or more, not {value!r}")
    return -int(-found // 1)


def memory(value: Any, where: str) -> int:
    """``"8G"``, ``"500M"`` or a number of MB, in MB."""
    known = {"M": 1, "MB": 1, "G": 1024, "GB": 1024, "T": 1024**2, "TB": 1024**2}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Z]+)", value) if isinstance(value, str) else None
    if found and found[2] in known and float(found[1]) > 0:
        return max(1, int(float(found[1]) * known[found[2]]))
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise BenchError(f'{where} must be like "8G" or a number of MB, not {value!r}')


def _texts(value: Any, where: str) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise BenchError(f"{where} must be a list of texts, not {value!r}")
    return tuple(text(one, where) for one in listed)


def _extra(value: Any, where: str) -> tuple[tuple[str, Value], ...]:
    found: dict[str, Value] = {}
    for written, one in _table(value, where).items():
        key = written.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise BenchError(f'{where}: {written!r} is no parameter of sbatch; write it as in "mail-type"')
        if key in _OURS:
            raise BenchError(f"{where}: {written!r} is decided by bench; leave it out")
        if key in {f.name for f in dataclasses.fields(Resources)}:
            raise BenchError(f"{where}: {written!r} has a key of its own: write it in [slurm] itself")
        if not isinstance(one, (str, int, float)):
            raise BenchError(f"{where}: {written} must be text, a number or true, not {one!r}")
        found[key] = text(one, f"{where}: {written}") if isinstance(one, str) else one
    return tuple(sorted(found.items()))


_ASKS: dict[str, Callable[[Any, str], Any]] = {
    "partition": text,
    "account": text,
    "qos": text,
    "time": _limit,
    "gpus": _count(0),
    "cpus": _count(1),
    "mem": memory,
    "nodes": _count(1),
    "constraint": text,
    "exclude": _texts,
    "parallelism": _count(1),
    "setup": _texts,
    "extra": _extra,
}
_POLICY: dict[str, Callable[[Any, str], Any]] = {"pack": minutes, "stall": minutes, "retries": _count(0)}
