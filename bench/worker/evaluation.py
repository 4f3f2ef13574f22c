"""Judges one model by the cells that wait for it; each ends as a file, well or not."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import artifacts, pause, registry, tensors, traps
from bench.cache import FileCache
from bench.contracts import DataShape, Evaluation, Measurement, Model, Picture, Tap, Target
from bench.data import assemble
from bench.records import BenchError, Cell, Training, digest, plain
from bench.session import Assignments, Session
from bench.worker import machine
from bench.worker.models import backbone_of, build, method_of
from bench.worker.outcomes import SkipError, guarded
from bench.worker.place import Place, Progress


def evaluate(cells: Sequence[Cell], files: artifacts.Folder, place: Place, progress: Progress) -> list[str]:
    """Judge by each cell in turn. Returns the reasons of what failed, a line each."""
    if not cells:
        return []
    problems = []
    taps = _LazyTaps(cells)
    for cell in cells:
        pause.check()
        progress(cell.protocol.name, 0, 1)
        name = artifacts.cell_name(cell)
        facts = {"cell": plain(cell), "code": artifacts.cell_code(cell), **machine.facts()}
        facts["attempt"] = _attempts(files.failed(name)) + 1
        started = time.monotonic()
        evaluation = functools.partial(_evaluate, cell, files, place, taps, progress)
        outcome = guarded(evaluation, files.log)
        facts |= {**outcome, "eval_seconds": round(time.monotonic() - started, 3)}
        if outcome["status"] in {"ok", "skipped"}:
            artifacts.write_json(files.cell(name), facts)
            files.failed(name).unlink(missing_ok=True)
        else:
            artifacts.write_json(files.failed(name), facts)
            problems.append(f"{files.path.name}/{name}: {outcome['reason']}")
    return problems


def _attempts(path: Path) -> int:
    """How often a cell was tried; a damaged record of a failure is worth no more than none."""
    try:
        return int((artifacts.read_json(path) or {}).get("attempt", 0))
    except (BenchError, TypeError, ValueError):
        return 0


class _LazyTaps:
    """What the frozen protocols of one target will read, asked once the encoder is there."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = cells

    def __call__(self, cell: Cell, model: Model) -> tuple[Tap, ...]:
        found: dict[Tap, None] = {}
        for other in self.cells:
            if other.aim == cell.aim and other.variant == cell.variant:
                evaluation: Evaluation = registry.load("protocol", other.protocol)
                try:
                    found.update(dict.fromkeys(evaluation.taps(model.encoder)))
                except Exception:  # noqa: BLE001, S112 - its own cell will tell
                    continue
        return tuple(found)


def _evaluate(
    cell: Cell, files: artifacts.Folder, place: Place, taps: _LazyTaps, progress: Progress
) -> dict[str, Any]:
    training = cell.training
    method, evaluation = method_of(training), registry.load("protocol", cell.protocol)
    target, info = target_of(cell.aim, place, machine.device())
    shape, weights = _made(files)
    assigned = _assigned(training, files, place)
    rows: list[dict[str, Any]] = []
    told: list[str] = []
    rehearsed: dict[str, Any] = {}
    for step, path in _models(cell, files):
        session = Session(
            files.path / "work" / artifacts.cell_name(cell) / str(step or 0),
            seed=training.seed,
            device=machine.device(),
            cache=FileCache(place.cache / "features"),
            precision=training.precision,
            stamp=digest([artifacts.cell_id(cell), info]),
            report=lambda done, total: progress(cell.protocol.name, done, total),
            steps=place.steps,
        )
        session.features = cell.aim.features
        model = build(method, backbone_of(training), shape, session)
        fresh = _fresh(model, cell.variant)
        tensors.load_model(path, model)
        found = artifacts.file_digest(path)
        if step is None and found != weights:
            raise BenchError(f"{path}: not the weights that were trained; delete it and it is made again")
        model = _variant(model, cell.variant).eval()
        _check_model(evaluation, model, cell)
        known = [artifacts.training_id(training), cell.variant, found, artifacts.features_code(cell)]
        session.weights_digest = digest(known, 32)
        session.taps = taps(cell, model)
        session.assigned, session.assigned_labels = assigned
        before = traps.state(model)
        for measured in evaluation.evaluate(model, target, session):
            if isinstance(measured, Picture):
                session.picture(measured.name, measured.image)
            else:
                rows.append(_row(measured, step))
        session.finish()
        rehearsed = session.rehearsed()
        told += [*session.warnings, *traps.untrained(method, fresh, model), *traps.moved(before, model)]
    return {**rehearsed, "rows": rows, "target": info, "reason": _warned(rows, told, target)}


@functools.lru_cache(maxsize=4)
def target_of(cell_aim: Any, place: Place, where: torch.device) -> tuple[Target, dict[str, Any]]:
    """What a cell judges on; several cells in turn share it."""
    return assemble.target(cell_aim, place.dataset(cell_aim), place.data, where)


def _fresh(model: Model, variant: str) -> dict[str, traps.State]:
    """Copies of an encoder and a classifier that were just built."""
    if variant and variant not in model.variants:
        return {}
    own = _variant(model, variant)
    return {"encoder": traps.state(own.encoder), "head": traps.state(own.head)}


def _warned(rows: Sequence[dict[str, Any]], told: Sequence[str], target: Target) -> str:
    """Warnings of all of a cell's rows; those of single ones are written into them."""
    common = list(dict.fromkeys(told))
    for place, text in traps.at_chance(rows, target).items():
        rows[place]["reason"] = "warning: " + "; ".join([*common, text])
    return "warning: " + "; ".join(common) if common else ""


def _made(files: artifacts.Folder) -> tuple[DataShape, str]:
    """What the record of a training says of its model: for which shape of data, with what digest."""
    status = artifacts.read_json(files.status) or {}
    try:
        return DataShape(**status["shape"]), str(status["weights"])
    except (KeyError, TypeError) as error:
        raise BenchError(f"{files.status}: damaged ({error}); delete it and it is made again") from error


def _assigned(
    training: Training, files: artifacts.Folder, place: Place
) -> tuple[Assignments, torch.Tensor | None]:
    """The clusters that a training kept, and its images' classes (read only where there are any)."""
    kept = Assignments(files.path)
    if not kept:
        return kept, None
    dataset = place.dataset(training.data)
    return kept, assemble.trained_labels(training.data, dataset, place.data)


def _models(cell: Cell, files: artifacts.Folder) -> Iterator[tuple[int | None, Path]]:
    if cell.snapshots == "last":
        yield None, files.model
        return
    found = sorted(files.snapshots.glob("*.safetensors"))
    if not found:
        raise SkipError("the training kept no snapshots")
    for path in found:
        yield int(path.stem), path


def _variant(model: Model, name: str) -> Model:
    if not name:
        return model
    if name not in model.variants:
        raise SkipError(f"the model has no variant {name!r}; it has: {', '.join(model.variants) or 'none'}")
    return model.variants[name]  # type: ignore[return-value]


def _check_model(evaluation: Evaluation, model: Model, cell: Cell) -> None:
    needs, name = evaluation.needs, cell.training.method.name
    if needs.head and model.head is None:
        raise SkipError(f"{cell.protocol.name} needs a classifier; {name} makes none")
    if needs.top and model.encoder.top is None:
        raise SkipError(f"{cell.protocol.name} needs fully connected layers; this backbone has none")
    if needs.spatial and not (model.encoder.layers or getattr(evaluation, "layers", ())):
        raise SkipError(
            f'{cell.protocol.name} reads maps; the network of {name} has none: write layers = ["output"]'
        )
    if needs.trainable and not any(True for _ in model.encoder.parameters()):
        raise SkipError(f"{cell.protocol.name} needs weights to train; {name} has none")


def _row(measured: Measurement, step: int | None) -> dict[str, Any]:
    row = dataclasses.asdict(measured)
    row["value"] = float(row["value"])
    row["step"] = measured.step if measured.step is not None else step
    return row
