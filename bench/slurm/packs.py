"""What is left, as jobs: tasks of equal resources packed by measured duration, split into arrays."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.launch import Task, tasks
from bench.planning.plan import Planned
from bench.planning.suite import Suite
from bench.records import BenchError, Cell, Training, digest
from bench.slurm import cluster
from bench.slurm.resources import Policy, Resources, Rules

UNKNOWN_SECONDS = 300.0  # what a cell is taken to last when nothing says better
_SAMPLES = 5  # finished trainings of a kind that are read for its duration


@dataclass(frozen=True)
class Work:
    """A task with what it asks for.

    :param seconds: the forecast of its duration, with one worker.
    :param train: whether it may make the model; a follower only judges one that is there.
    :param alone: a suspect (it was running when a job died) shares a job with nobody.
    :param after: jobs that make the same model for others: it starts when they have ended.
    """

    task: Task
    resources: Resources
    seconds: float
    train: bool = True
    alone: bool = False
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Array:
    """Jobs that ask for the same. ``follows`` is the array (by position) of which each element awaits its like."""

    resources: Resources
    packs: tuple[tuple[Work, ...], ...]
    follows: int | None = None
    after: tuple[str, ...] = ()

    @property
    def works(self) -> Iterator[Work]:
        return (work for pack in self.packs for work in pack)


@dataclass(frozen=True)
class Tried:
    """How often a training (or its evaluations) was tried, how that ended, and where not to try again.

    :param mem: MB of its last job; 0: not known.
    """

    attempts: int = 0
    status: str = ""
    nodes: tuple[str, ...] = ()
    mem: int = 0


# ---- duration ------------------------------------------------------------------------------------


class Forecast:
    """Seconds that trainings and cells will take: from finished ones that are like them, else from the suite."""

    def __init__(self, suite: Suite, planned: Sequence[Planned], runs: Path) -> None:
        self.runs = runs
        self.trained: dict[str, list[float]] = {}
        self.judged: dict[str, list[float]] = {}
        self.measured = 0
        for training in dict.fromkeys(p.cell.training for p in planned):
            if len(self.trained.get(_kind(training), ())) < _SAMPLES:
                self._read(training)
        self.trained_any, self.judged_any = _middle(self.trained), _middle(self.judged)
        told = None if suite.minutes is None else 120 * suite.minutes / max(1, len(planned))
        self.default = told if told is not None else UNKNOWN_SECONDS

    def _read(self, training: Training) -> None:
        files = artifacts.folder(self.runs, training)
        try:
            seconds = (artifacts.read_json(files.status) or {}).get("train_seconds")
            found = [artifacts.read_json(p) or {} for p in sorted(files.cell("x").parent.glob("*.json"))[:20]]
        except BenchError:
            return
        if isinstance(seconds, (int, float)):
            self.measured += 1
            self.trained.setdefault(_kind(training), []).append(float(seconds))
        for outcome in found:
            if outcome.get("status") == "ok" and isinstance(outcome.get("eval_seconds"), (int, float)):
                name = outcome["cell"]["protocol"]["name"]
                self.judged.setdefault(name, []).append(float(outcome["eval_seconds"]))

    def __call__(self, training: Training | None, cells: Sequence[Cell]) -> float:
        """Seconds of a training (``None``: it is made already) and of these evaluations."""
        if self.trained_any is None and self.judged_any is None:
            return self.default * max(1, len(cells))
        spent = sum(_of(self.judged, c.protocol.name, self.judged_any) for c in cells)
        return spent + (0.0 if training is None else _of(self.trained, _kind(training), self.trained_any))


def _kind(training: Training) -> str:
    """Trainings that take the same time: all but the seed and which labels are shown."""
    data = dataclasses.replace(training.data, label_split=0, resample=0)
    like = dataclasses.replace(training, seed=0, data=data, init=None)
    return digest(like)


def _middle(known: Mapping[str, list[float]]) -> float | None:
    return statistics.median(statistics.median(v) for v in known.values()) if known else None


def _of(known: Mapping[str, list[float]], key: str, other: float | None) -> float:
    return statistics.median(known[key]) if key in known else (other or 0.0)


# ---- works ---------------------------------------------------------------------------------------


def works(
    planned: Sequence[Planned],
    rules: Rules,
    forecast: Forecast,
    tried: Mapping[Training, Tried],
    owners: Mapping[str, tuple[str, ...]],
    made: Iterable[Training],
    site: cluster.Limits | None = None,
) -> list[tuple[Work, tuple[Work, ...]]]:
    """Each open task with its followers: the same training's cells that ask for other resources.

    :param owners: jobs of others that make a training, by its id.
    :param made: trainings that are done.
    :param site: what is not known to be there is not asked for.
    """
    first = {p.cell.training: p for p in reversed(planned)}
    asks = {p.cell: rules.evaluation(p) for p in planned}
    done = set(made)
    found: list[tuple[Work, tuple[Work, ...]]] = []
    for task in tasks(planned):
        before = tried.get(task.training, Tried())
        after = owners.get(artifacts.training_id(task.training), ())
        own = rules.training(first[task.training])
        groups: dict[Resources, list[Cell]] = {} if task.training in done else {own: []}
        for cell in task.cells:
            groups.setdefault(asks[cell], []).append(cell)
        parts = []
        for i, (resources, cells) in enumerate(groups.items()):
            train = i == 0 and task.training not in done
            seconds = forecast(task.training if train else None, cells)
            part = Task(task.training, tuple(cells), task.label)
            asked = _eased(resources if train else dataclasses.replace(resources, nodes=1), before, site)
            parts.append(Work(part, asked, seconds, train, before.attempts > 0, after))
        if task.training in done:
            found += [(part, ()) for part in parts]
        else:
            found.append((parts[0], tuple(parts[1:])))
    return found


def _eased(resources: Resources, before: Tried, site: cluster.Limits | None) -> Resources:
    """More memory for what ran out of it, up to the largest node; other nodes for what a node's failure ended."""
    if before.status == "oom" and resources.memory:
        more = 2 * last_memory(resources, before)
        most = site.largest(resources.partition) if site else 0
        resources = resources.with_memory(max(resources.memory, min(more, most or more)))
    # One that is up again is as good as any other.
    away = tuple(sorted(node for node in before.nodes if not (site and site.is_up(node))))
    return dataclasses.replace(resources, avoid=away)


def last_memory(resources: Resources, before: Tried) -> int:
    """MB that the last try had."""
    return before.mem or resources.memory * 2 ** max(0, before.attempts - 1)


# ---- packing -------------------------------------------------------------------------------------


def arrays(
    found: Sequence[tuple[Work, tuple[Work, ...]]], policy: Policy, max_array: int
) -> tuple[Array, ...]:
    """Pack works of equal resources up to ``policy.pack`` minutes of wall time, ``max_array`` jobs an array."""
    groups: dict[Any, list[list[tuple[Work, tuple[Work, ...]]]]] = {}
    for chain in _chains(found):
        head = chain[0][0]
        followers = tuple(dict.fromkeys(w.resources for _, more in chain for w in more))
        key = head.resources, head.after, followers, head.task.training.processes
        groups.setdefault(key, []).append(chain)
    made: list[Array] = []
    for (resources, after, followers, processes), chains in groups.items():
        packed = _filled(chains, resources, processes, policy.pack * 60)
        size = max(1, max_array)  # a site without arrays takes jobs one by one
        for start in range(0, len(packed), size):
            part = packed[start : start + size]
            made.append(Array(resources, tuple(tuple(w for w, _ in p) for p in part), None, after))
            lead = len(made) - 1
            made += [Array(r, tuple(_following(p, r) for p in part), lead) for r in followers]
    return tuple(made)


def _following(pack: Sequence[tuple[Work, tuple[Work, ...]]], resources: Resources) -> tuple[Work, ...]:
    return tuple(w for _, more in pack for w in more if w.resources == resources)


def _chains(
    found: Sequence[tuple[Work, tuple[Work, ...]]],
) -> list[list[tuple[Work, tuple[Work, ...]]]]:
    """A training that starts from another stands after it, in the same chain; a chain is never split.

    What asks for other resources than the chain's first follows it in a job of its own, with what starts from it.
    """
    chains: dict[Training, list[tuple[Work, tuple[Work, ...]]]] = {}
    lead: dict[Training, Training] = {}
    apart: dict[Training, Resources] = {}
    alone = []
    for one in found:
        training = one[0].task.training
        if not one[0].train:
            alone.append([one])
            continue
        first = lead.get(training.init, training) if training.init else training
        lead[training] = first
        chain = chains.setdefault(first, [])
        before = apart.get(training.init) if training.init else None
        if chain and (before or one[0].resources != chain[0][0].resources):
            apart[training] = before or one[0].resources
            follower = dataclasses.replace(one[0], resources=apart[training])
            chain[0] = chain[0][0], (*chain[0][1], follower, *one[1])
        else:
            chain.append(one)
    return [*chains.values(), *alone]


def _filled(
    chains: Sequence[list[tuple[Work, tuple[Work, ...]]]], resources: Resources, processes: int, slot: float
) -> list[list[tuple[Work, tuple[Work, ...]]]]:
    packs: list[list[tuple[Work, tuple[Work, ...]]]] = []
    room = 0.0
    for chain in sorted(chains, key=lambda c: -sum(w.seconds for w, _ in c)):  # long ones first
        workers = resources.workers(max(w.task.training.threads for w, _ in chain), processes)
        need = sum(w.seconds for w, _ in chain) / workers
        alone = any(w.alone for w, _ in chain)
        if alone or need > room or room <= 0:
            packs.append([])
            room = slot
        packs[-1] += chain
        room = -math.inf if alone else room - need
    return packs


def first(found: Sequence[Array], count: int) -> tuple[Array, ...]:
    """So many jobs of arrays, and what follows those."""
    place: dict[int, int] = {}  # of an array among the kept ones
    kept: list[Array] = []
    for number, array in enumerate(found):
        if array.follows is None:
            take = min(count, len(array.packs))
            count -= take
        else:
            take = len(kept[place[array.follows]].packs) if array.follows in place else 0
        if take:
            place[number] = len(kept)
            follows = None if array.follows is None else place[array.follows]
            kept.append(dataclasses.replace(array, packs=array.packs[:take], follows=follows))
    return tuple(kept)


def workers(pack: Sequence[Work]) -> int:
    """How many workers a job has: all of its trainings are made by equally many processes."""
    threads = max(w.task.training.threads for w in pack)
    return min(pack[0].resources.workers(threads, pack[0].task.training.processes), len(pack))


def wall_seconds(pack: Sequence[Work]) -> float:
    """The forecast of a job's duration."""
    if not pack:
        return 0.0
    return max(*(w.seconds for w in pack), sum(w.seconds for w in pack) / workers(pack), 0.0)
