"""A rehearsal: every distinct combination of a suite run to its end on few images, by the road that a run takes.

What it makes smaller is listed: the number of images and of steps (:class:`bench.records.Rehearsal`, the executor's
option), amounts of labels and held-out images, and the fields that units declare as ``shrinks``. Nothing else.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from bench import artifacts
from bench.launch import Event, Executor, LocalProcesses, Places, Task
from bench.planning.plan import Planned
from bench.records import Aim, BenchError, Cell, Data, Rehearsal, Training, Unit
from bench.registry import find

BATCH = 8
SHRUNK = Rehearsal(images=32, steps=6)
HALF = Rehearsal(images=16, steps=2)  # half of each batch too: two sizes tell what one image costs
FULL_STEPS = 20


@dataclass(frozen=True)
class Combination:
    """One distinct square of the suite, made small.

    :param first: the suite's own cell that it stands for, the first of ``count``.
    :param shrunk: what was made smaller, ``batch_size 256 -> 8``.
    """

    first: Planned
    cell: Cell
    shrunk: tuple[str, ...]
    count: int = 1

    @property
    def name(self) -> str:
        """Method, backbone, data, protocol and target."""
        cell = self.cell
        parts = [self.first.label, cell.training.backbone.name, cell.training.data.dataset.name]
        return " / ".join([*parts, cell.protocol.name, cell.aim.dataset.name])


@dataclass
class Found:
    """What came of a combination."""

    problem: str = ""
    skipped: str = ""
    seconds: float = 0.0  # a training step
    memory_mb: int = 0  # at most, of the tree of processes
    device_mb: int = 0  # at most, as the device counts
    model_bytes: int = 0
    checkpoint_bytes: int = 0
    whole_share: float = 1.0  # images that a run would see, over those that were seen here
    told: dict[str, Any] = field(default_factory=dict)


# ---- what is rehearsed ------------------------------------------------------------------------------


def combinations(planned: Iterable[Planned], batch: int, images: int) -> list[Combination]:
    """The distinct squares among a suite's cells: seeds, amounts of labels and trials of a search are no difference."""
    found: dict[Any, Combination] = {}
    for one in planned:
        if one.cell.skip:
            continue
        cell, shrunk = small(one.cell, batch, images)
        key = _key(cell), one.label
        if key in found:
            found[key] = replace(found[key], count=found[key].count + 1)
        elif not one.trial:
            found[key] = Combination(one, cell, shrunk)
    return list(found.values())


def _key(cell: Cell) -> Cell:
    """A cell without its seed and what hangs on it."""
    training, aim = cell.training, cell.aim
    return replace(
        cell, training=_seedless(training), aim=replace(aim, label_split=0, dataset=_unfolded(aim))
    )


def _seedless(training: Training) -> Training:
    data = replace(training.data, label_split=0, resample=0, dataset=_unfolded(training.data))
    init = _seedless(training.init) if training.init else None
    return replace(training, seed=0, budget=0, data=data, init=init)


def _unfolded(part: Data | Aim) -> Unit:
    settings = {k: v for k, v in part.dataset.settings if k != "fold"}
    return Unit.of(part.dataset.name, settings)


def small(cell: Cell, batch: int, images: int) -> tuple[Cell, tuple[str, ...]]:
    """A cell with what must shrink made smaller, and a line for each change.

    :param batch: of how many images; 0: as it is.
    """
    told: dict[str, None] = {}
    training = _training(cell.training, batch, images, told)
    protocol = _unit("protocol", cell.protocol, batch, images, told)
    aim = _amounts(cell.aim, "target", {"labels": images // 2, "validation": images // 4}, told)
    return replace(cell, training=training, protocol=protocol, aim=aim), tuple(told)


def _training(training: Training, batch: int, images: int, told: dict[str, None]) -> Training:
    limits = {"labels": images // 4, "validation": images // 4, "unlabeled": images // 4}
    return replace(
        training,
        method=_unit("method", training.method, batch, images, told),
        data=_amounts(training.data, "data", limits, told),
        init=_training(training.init, batch, images, told) if training.init else None,
    )


def _amounts(part: Any, where: str, limits: Mapping[str, int], told: dict[str, None]) -> Any:
    changes = {}
    for key, limit in limits.items():
        value = getattr(part, key)
        if value == "auto" or (isinstance(value, int) and value > limit):
            changes[key] = limit
            told[f"{where}.{key} {value} -> {limit}"] = None
    return replace(part, **changes)


def _unit(kind: str, unit: Unit, batch: int, images: int, told: dict[str, None]) -> Unit:
    declared = find(kind, unit.name, "the rehearsal").traits.get("shrinks", {})
    settings = dict(unit.settings)
    base = next((settings[k] for k, how in declared.items() if how == "batch" and settings.get(k)), 0)
    part = min(1.0, batch / base) if batch and isinstance(base, int) and base else 1.0
    limits = {"images": images, "validation": images // 4}
    for key, how in declared.items():
        value: Any = settings.get(key)
        new: Any = value
        if how == "batch" and isinstance(value, int) and value:
            new = max(1, round(value * part))
        elif how in limits and isinstance(value, int):
            new = min(value, limits[how])
        elif how in limits and isinstance(value, tuple):
            new = tuple(dict.fromkeys(min(v, limits[how]) for v in value))
        if new != value:
            settings[key] = new
            told[f"{unit.name}.{key} {_short(value)} -> {_short(new)}"] = None
    return Unit.of(unit.name, settings)


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def largest_batch(planned: Iterable[Planned]) -> int:
    """Of all trainings and protocols of a suite."""
    sizes = [BATCH]
    for one in planned:
        for kind, unit in (("method", one.cell.training.method), ("protocol", one.cell.protocol)):
            declared = find(kind, unit.name, "the rehearsal").traits.get("shrinks", {})
            values = [unit.get(key) for key, how in declared.items() if how == "batch"]
            sizes += [v for v in values if isinstance(v, int)]
    return max(sizes)


# ---- data -----------------------------------------------------------------------------------------


def stood_in(combined: Sequence[Combination], data: Path, folder: Path) -> tuple[Path, list[str]]:
    """A data root that has what the suite reads: the real files, and stand-ins of the sets of which there are none.

    :returns: the root, and the names of what is made up.
    """
    from bench.data import standins

    units = dict.fromkeys(unit for one in combined for unit in _datasets(one.cell))
    missing = [name for name in dict.fromkeys(u.name for u in units) if _absent(name, units, data)]
    if not missing:
        return data, []
    folder.mkdir(parents=True, exist_ok=True)
    for entry in data.iterdir() if data.is_dir() else ():
        (folder / entry.name).symlink_to(entry.resolve())
    for name in missing:
        standins.write(name, folder)
    return folder, missing


def _datasets(cell: Cell) -> Iterator[Unit]:
    yield cell.aim.dataset
    training: Training | None = cell.training
    while training:
        yield training.data.dataset
        training = training.init


def _absent(name: str, units: Iterable[Unit], data: Path) -> bool:
    """No file of the set is there, and somebody can make it up."""
    from bench.data import standins

    places = standins.folders(name)
    return bool(places) and not any((data / place).exists() for place in places)


# ---- running --------------------------------------------------------------------------------------


def run(
    combined: Sequence[Combination], executor: Executor, places: Places, rehearsal: Rehearsal
) -> Iterator[tuple[Combination, Found]]:
    """Run the combinations of one training after the other; what they came to, as they come."""
    executor.rehearsal = rehearsal
    grouped: dict[Training, list[Combination]] = {}
    for one in combined:
        grouped.setdefault(one.cell.training, []).append(one)
    todo = [
        Task(t, tuple(dict.fromkeys(o.cell for o in ones)), ones[0].first.label)
        for t, ones in grouped.items()
    ]
    todo.sort(key=lambda task: task.training.init is not None)
    with _Watch(executor, {task.training.init for task in todo}) as watch:
        for event in executor.run(todo, places):
            if event.kind == "fatal":
                raise BenchError(event.what)
            if event.kind == "end":
                yield from _ended(event, grouped[event.task.training], places, watch)


def _ended(
    event: Event, ones: Sequence[Combination], places: Places, watch: _Watch
) -> Iterator[tuple[Combination, Found]]:
    files = artifacts.folder(places.runs, event.task.training)
    status = artifacts.read_json(files.status) or {}
    told = status.get("rehearsed", {})
    base = Found(
        memory_mb=watch.peak(event.task),
        device_mb=int(status.get("peak_memory_mb", 0)),
        seconds=max((seconds for _, seconds in told.get("descents", [])), default=0.0),
        checkpoint_bytes=int(told.get("checkpoint_bytes", 0)),
        model_bytes=files.model.stat().st_size if files.model.exists() else 0,
        whole_share=max(1.0, status.get("of", 0) / max(1, status.get("data", {}).get("images", 1))),
        told=told,
    )
    for one in ones:
        yield one, replace(base, **_outcome(one, status, files, event.problems))
    shutil.rmtree(files.snapshots, ignore_errors=True)  # many models fill a disk
    if event.task.training not in watch.starts:
        files.model.unlink(missing_ok=True)


def _outcome(
    one: Combination, status: Mapping[str, Any], files: artifacts.Folder, problems: Sequence[str]
) -> dict[str, Any]:
    """``problem`` or ``skipped``, or nothing: a row for every metric, and each a number."""
    if status.get("status") == "skipped":
        return {"skipped": str(status["reason"])}
    if status.get("status") != "ok":
        return {"problem": str(status.get("reason") or "; ".join(problems) or "no record was left")}
    name = artifacts.cell_name(one.cell)
    outcome = artifacts.read_json(files.cell(name)) or artifacts.read_json(files.failed(name))
    if outcome is None:
        return {"problem": "; ".join(problems) or "no outcome was left"}
    if outcome["status"] == "skipped":
        return {"skipped": str(outcome["reason"])}
    if outcome["status"] != "ok":
        return {"problem": str(outcome["reason"])}
    odd = [row["metric"] for row in outcome["rows"] if not math.isfinite(row["value"])]
    if odd or not outcome["rows"]:
        return {"problem": f"{odd[0]} is no number" if odd else "no row was measured"}
    return {}


class _Watch:
    """Peak memory of the process trees that work at tasks, looked at ten times a second."""

    def __init__(self, executor: Executor, starts: AbstractSet[Training | None]) -> None:
        self.starts = starts  # models that others start from
        self.executor, self.peaks, self.over = executor, dict[int, int](), threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(1)

    def peak(self, task: Task) -> int:
        """In MiB; 0 where the system does not tell. In one process, since the last task's end."""
        return max(self.peaks.pop(id(task), 0), self.peaks.pop(0, 0)) // 2**20

    def _look(self) -> None:
        while not self.over.wait(0.1):
            roots = (
                {pid: id(task) for pid, task in self.executor.pids().items()}
                if isinstance(self.executor, LocalProcesses)
                else {os.getpid(): 0}
            )
            for pid, key in roots.items():
                self.peaks[key] = max(self.peaks.get(key, 0), tree_bytes(pid))


def tree_bytes(root: int) -> int:
    """Memory of a process and all below it, shared pages counted by their share; 0 where /proc is not there."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    waiting, total = [root], 0
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


# ---- what the whole needs -------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """What a suite will ask for, from what its combinations did."""

    model_bytes: int  # models and snapshots of all trainings
    checkpoint_bytes: int  # the largest: one for each training that is under way
    memory_mb: int  # of the hungriest combination at its true batch


def need(
    planned: Sequence[Planned],
    found: Sequence[tuple[Combination, Found]],
    half: Mapping[str, Found],
) -> Need:
    """Disk from the sizes of what was written, memory by a straight line through two batch sizes."""
    sizes = {_timed(one.first.cell.training): result.model_bytes for one, result in found}
    models = 0
    for training in dict.fromkeys(p.cell.training for p in planned if not p.cell.skip):
        models += sizes.get(_timed(training), 0) * (training.snapshots + (training.snapshots > 1))
    memory = [memory_mb(one, result, half.get(one.name)) for one, result in found]
    checkpoints = [result.checkpoint_bytes for _, result in found]
    return Need(models, max(checkpoints, default=0), max(memory, default=0))


def hours(planned: Sequence[Planned], found: Sequence[tuple[Combination, Found]]) -> float:
    """Of all trainings, at the seconds a step that were seen: true batches, all images."""
    seen = {_timed(one.first.cell.training): result for one, result in found}
    total = 0.0
    for training in dict.fromkeys(p.cell.training for p in planned if not p.cell.skip):
        result = seen.get(_timed(training))
        for steps, seconds in result.told.get("descents", []) if result else []:
            epochs = isinstance(training.budget, str)
            assert result is not None
            total += seconds * steps * (result.whole_share if epochs else 1.0)
    return total / 3600


def _timed(training: Training) -> Any:
    """What the length of a training hangs on, its seed and amount of labels apart."""
    return training.method, training.backbone, training.data.dataset.name, training.budget


def memory_mb(one: Combination, found: Found, half: Found | None) -> int:
    """An estimate of a training's peak at its true batch: the rest and a part for each image of a batch."""
    if half is None or half.problem:
        return found.device_mb
    base = one.first.cell.training.method.get("batch_size", BATCH)
    made = one.cell.training.method.get("batch_size", BATCH)
    before = min(made, BATCH // 2) if isinstance(made, int) else 0
    if not isinstance(base, int) or not isinstance(made, int) or made <= before:
        return found.device_mb
    each = max(0.0, (found.device_mb - half.device_mb) / (made - before))
    return round(found.device_mb + each * (base - made))


def fits(asked: Mapping[str, Any]) -> bool:
    """Is this machine the suite's: has it the GPUs and cores that its jobs ask for, if they ask for any?"""
    if not asked:
        return True
    import torch

    gpus = asked.get("gpus", 0)
    enough = not isinstance(gpus, int) or torch.cuda.device_count() >= gpus
    return enough and (os.cpu_count() or 1) >= int(asked.get("cpus", 1))


def here_mb() -> int:
    """Memory of this machine in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def fresh(folder: Path) -> Path:
    """The rehearsal's own folder, empty."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}-{time.time_ns()}")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
