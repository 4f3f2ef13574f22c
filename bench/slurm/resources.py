"""What a job asks SLURM for: the table ``[slurm]`` of a suite, and a machine's own file over it.

Everything here is data, handed to sbatch as arguments; only ``setup`` is shell, the user's own.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.planning.plan import Planned
from bench.planning.suite import Suite, load
from bench.records import BenchError, Value, freeze
from bench.registry import suggest
from bench.slurm import values

# Variables of the user that sbatch reads, where they mean a key of ours.
VARIABLES = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_MEM_PER_CPU": "mem_per_cpu",
    "SBATCH_MEM_PER_GPU": "mem_per_gpu",
    "SBATCH_GPUS_PER_NODE": "gpus",
}
_MEMORY = ("mem", "mem_per_cpu", "mem_per_gpu")  # sbatch takes one of them


@dataclass(frozen=True)
class Resources:
    """What one job asks for. ``time`` in minutes (0: no limit), ``gpus`` a node (``"a100:4"``: of a type), ``cpus`` a task.

    ``mem`` in MB a node, 0 all that it has, ``None`` not asked for; or ``mem_per_cpu``, ``mem_per_gpu``. ``avoid``:
    nodes that failed, a preference. ``srun``: arguments; ``python``: the command that starts Python on a node.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: int = 60
    gpus: int | str = 0
    cpus: int = 2
    mem: int | None = 4096
    mem_per_cpu: int = 0
    mem_per_gpu: int = 0
    nodes: int = 1
    constraint: str = ""
    exclude: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    parallelism: int = 256  # jobs of an array that run at once
    setup: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    python: str = ""
    extra: tuple[tuple[str, Value], ...] = ()

    @property
    def devices(self) -> int:
        """GPUs a node."""
        return int(str(self.gpus).rpartition(":")[2])

    @property
    def memory(self) -> int:
        """MB that a job has on a node; 0 where that is the site's to say."""
        return self.mem_per_cpu * self.cpus or self.mem_per_gpu * self.devices or self.mem or 0

    def with_memory(self, megabytes: int) -> Resources:
        """The same with so many MB a node, asked for in the same way."""
        if self.mem_per_cpu:
            return dataclasses.replace(self, mem_per_cpu=megabytes // self.cpus)
        if self.mem_per_gpu and self.devices:
            return dataclasses.replace(self, mem_per_gpu=megabytes // self.devices)
        return dataclasses.replace(self, mem=megabytes) if self.mem else self

    def workers(self, threads: int, processes: int = 1) -> int:
        """Workers that share one job: as many as its GPUs, or else its CPUs, carry; over several nodes there is one.

        :param threads: of a process; ``processes``: that train a model together.
        """
        if self.nodes > 1:
            return 1
        carried = self.devices // processes if self.devices else self.cpus // max(1, threads * processes)
        return max(1, carried)


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
    known: dict[Any, Resources] = field(default_factory=dict, compare=False, repr=False)

    def training(self, one: Planned) -> Resources:
        """What the training of a cell asks for.

        :raises BenchError: processes that the CPUs of its nodes do not carry: srun would not start them.
        """
        return self._asked(one, evaluation=False)

    def evaluation(self, one: Planned) -> Resources:
        """What the evaluation of a cell asks for: its training's, unless its protocol says otherwise."""
        return self._asked(one, evaluation=True)

    def _asked(self, one: Planned, *, evaluation: bool) -> Resources:
        training = one.cell.training
        key = (
            training.method.name,
            one.label,
            evaluation and one.cell.protocol,
            training.processes,
            training.threads,
        )
        if key not in self.known:  # thousands of cells ask for the same
            written = self._written(one, evaluation=evaluation)
            self.known[key] = _carried(written, one, f"{self.suite.path}: slurm")
        return self.known[key]

    def _written(self, one: Planned, *, evaluation: bool) -> Resources:
        found: dict[str, Any] = {}
        for layer in self.layers:
            _over(found, layer.all)
            for name in (one.cell.training.method.name, one.label):
                _over(found, layer.methods.get(name, {}))
            for name, table in layer.protocols.items() if evaluation else ():
                _over(found, table if _names(self.suite, name, one) else {})
        return Resources(**found)

    def nodes(self, one: Planned) -> int:
        """Nodes that are asked for, whether or not its training has processes for all of them."""
        return self._written(one, evaluation=False).nodes


def _over(found: dict[str, Any], table: Mapping[str, Any]) -> None:
    """A later word wins; of the ways to ask for memory the last one stands alone."""
    if any(key in table for key in _MEMORY):
        found |= {"mem": None, "mem_per_cpu": 0, "mem_per_gpu": 0}
    found |= table


def _carried(found: Resources, one: Planned, where: str) -> Resources:
    """No node without a process, no process without CPUs."""
    processes, threads = one.cell.training.processes, one.cell.training.threads
    nodes = min(found.nodes, processes)
    need = -(-processes // nodes) * threads
    if nodes > 1 and need > found.cpus:
        raise BenchError(
            f"{where}: nodes = {found.nodes}, cpus = {found.cpus}: {processes} processes of {one.label} with "
            f"{threads} threads each need {need} CPUs on a node: write cpus = {need}"
        )
    return dataclasses.replace(found, nodes=nodes)


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
    """The rules of a suite on this machine: the user's ``SBATCH_*``, the suite's file, the machine's, later ones win.

    :param config: the machine's file; by default BENCH_SLURM, else the user's own, where there is one.
    :raises BenchError: an unknown key or a value of the wrong type, in either.
    """
    where = f"{suite.path}: slurm"
    layer, policy = _layer(suite.slurm, where)
    _known(layer.methods, _units(suite, "methods"), f"{where}.methods")
    _known(layer.protocols, _units(suite, "protocols"), f"{where}.protocols")
    machine, own = _layer(*_machine(config))
    return Rules(suite, (_of_user(), layer, machine), Policy(**{**policy, **own}))


def of_site(name: str | None, config: Path | None = None) -> Resources:
    """What jobs of a suite ask for before methods and protocols differ; without one what this machine's file says.

    :raises BenchError: as :func:`rules`.
    """
    layers = [_of_user(), _layer(*_machine(config))[0]]
    if name:
        loaded = load(name)
        layers.insert(1, _layer(loaded.slurm, f"{loaded.path}: slurm")[0])
    found: dict[str, Any] = {}
    for layer in layers:
        _over(found, layer.all)
    return Resources(**found)


def _of_user() -> Layer:
    """The user's own variables of sbatch, below all files."""
    found: dict[str, Any] = {}
    for variable, key in VARIABLES.items():
        if value := os.environ.get(variable, ""):
            found[key] = _ASKS[key](value, variable)
    return Layer(found, {}, {})


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
        tables = values.table(table.get(part, {}), f"{where}: {part}")
        parts[part] = {
            name: _values(values.table(own, f"{where}: {part}.{name}"), _ASKS, f"{where}: {part}.{name}")
            for name, own in tables.items()
        }
    rest = {k: v for k, v in table.items() if k not in parts}
    found = _values(rest, {**_ASKS, **_POLICY}, where, {*parts})
    policy = {k: v for k, v in found.items() if k in _POLICY}
    return Layer({k: v for k, v in found.items() if k in _ASKS}, **parts), policy


def _values(
    table: Mapping[str, Any], known: Mapping[str, Callable[[Any, str], Any]], where: str, more: Any = ()
) -> dict[str, Any]:
    for key in table:
        if key.replace("-", "_") not in known:
            raise BenchError(f"{where}: unknown key {key!r}{suggest(key, {*known, *more})}")
    asked = [key for key in table if key.replace("-", "_") in _MEMORY]
    if len(asked) > 1:
        raise BenchError(f"{where}: {' and '.join(asked)} exclude each other: write one of them")
    return {
        (name := key.replace("-", "_")): known[name](value, f"{where}: {key}") for key, value in table.items()
    }


_ASKS: dict[str, Callable[[Any, str], Any]] = {
    "partition": values.text,
    "account": values.text,
    "qos": values.text,
    "time": values.limit,
    "gpus": values.gpus,
    "cpus": values.count(1),
    "mem": values.memory,
    "mem_per_cpu": values.share,
    "mem_per_gpu": values.share,
    "nodes": values.count(1),
    "constraint": values.text,
    "exclude": values.texts,
    "parallelism": values.count(1),
    "setup": values.texts,
    "srun": values.texts,
    "python": values.command,
    "extra": lambda value, where: values.more_options(
        value, where, [f.name for f in dataclasses.fields(Resources)]
    ),
}
_POLICY: dict[str, Callable[[Any, str], Any]] = {
    "pack": values.minutes,
    "stall": values.minutes,
    "retries": values.count(0),
}
