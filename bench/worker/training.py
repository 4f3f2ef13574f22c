"""Makes one model: attempts a training, in one process or as one of several, and records how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from bench import artifacts, distributed, ranks, registry, tensors
from bench.backbones import _whitening as whitening
from bench.batch_norm import synchronized
from bench.cache import FileCache
from bench.contracts import Backbone, Method, Model
from bench.data import assemble
from bench.data._few import Few
from bench.records import BenchError, Training, digest, plain
from bench.session import Session
from bench.worker import machine
from bench.worker.models import backbone_of, build, method_of
from bench.worker.outcomes import SkipError, guarded
from bench.worker.place import Place, Progress

Make = Callable[[Training], list[str]]  # makes the model of another training; returns what went wrong
Look = Callable[[Model, Session], None]  # at what is about to be trained; raises when it would be in vain


def attempt(
    training: Training,
    before: dict[str, Any],
    files: artifacts.Folder,
    place: Place,
    progress: Progress,
    make: Make,
    look: Look,
) -> dict[str, Any]:
    """Train, whatever comes of it. Returns the record that is kept.

    :param before: the record of the last attempt.
    :param make: for a training that starts from another's encoder.
    :param look: at the untrained model.
    """
    facts = {"attempt": int(before.get("attempt", 0)) + 1, **machine.facts()}
    artifacts.write_json(
        files.spec,
        {
            "training": plain(training),
            "code": artifacts.training_code(training),
            "modules": _modules(training),
        },
    )
    machine.reset_peak()
    outcome = guarded(lambda: _train(training, files, place, progress, make, look), files.log)
    status = {**facts, **outcome, "peak_memory_mb": machine.peak_mb()}
    artifacts.write_json(files.status, status)
    return status


def _train(
    training: Training, files: artifacts.Folder, place: Place, progress: Progress, make: Make, look: Look
) -> dict[str, Any]:
    _check_processes(training, machine.device())
    with ranks.started(training, files.path.name, place.message()) as join:
        model, session, facts = descend(training, files, place, progress, join, make, look)
    tensors.save_model(files.model, model)
    session.finish()
    return {
        **facts,
        **session.rehearsed(),
        "train_seconds": round(session.seconds, 3),
        "images_seen": session.images_seen,
        "weights": artifacts.file_digest(files.model),
    }


def descend(
    training: Training,
    files: artifacts.Folder,
    place: Place,
    progress: Progress,
    join: ranks.Join,
    make: Make,
    look: Look = lambda *_: None,
) -> tuple[Model, Session, dict[str, Any]]:
    """What every process of a training does: the trained model, its session, and what its data are."""
    where = machine.device()
    method, backbone = method_of(training), backbone_of(training)
    _check_needs(method, backbone)
    dataset = place.dataset(training.data)
    data, info = assemble.training_set(training.data, dataset, place.data, method.sees_labels, where)
    session = Session(
        files.path,
        seed=training.seed,
        device=where,
        cache=FileCache(place.cache / "features"),
        precision=training.precision,
        budget=training.budget,
        snapshots=training.snapshots,
        stamp=digest([artifacts.training_id(training), info]),
        report=lambda done, total: progress("train", done, total),
        steps=place.steps,
    )
    model = build(method, backbone, data.shape, session)
    look(model, session)
    if training.init is not None:
        _start_from(training.init, model, place, make)
    if training.data.whitening:
        whitening.fit(model, data.images)
    if training.sync_batch_norm:
        synchronized(model, where)
    torch.manual_seed(
        session.generator("global").initial_seed()
    )  # as before build: what lies between may draw
    with join(where):
        model = method.train(model, data, session)
    few = {"of": dataset.of["train"]} if isinstance(dataset, Few) else {}
    return model, session, {"shape": dataclasses.asdict(data.shape), "data": info, **few}


def _start_from(init: Training, model: Model, place: Place, make: Make) -> None:
    """Transfer: the encoder's weights come from another training, which is made where nobody made it yet."""
    problems = make(init) if distributed.current().rank == 0 else []
    if problems:
        raise BenchError(f"what it starts from failed: {problems[0]}")
    source = artifacts.folder(place.runs, init)
    found = {k[8:]: v for k, v in tensors.read(source.model).items() if k.startswith("encoder.")}
    try:
        model.encoder.load_state_dict(found)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise BenchError(
            f"{source.path.name}: its encoder does not fit {type(model).__name__}: {first}"
        ) from error


def _check_needs(method: Method, backbone: Backbone) -> None:
    if method.needs.batch_norm_free and backbone.batch_norm:
        name = type(method).__module__.rpartition(".")[2]
        raise SkipError(
            f"{name} needs a net without batch normalization; {backbone.name} has it (batch_norm = false)"
        )


def _check_processes(training: Training, where: torch.device) -> None:
    count = training.processes
    if count > 1 and not method_of(training).distributed:
        raise BenchError(f"{training.method.name} trains in one process only: write processes = 1")
    missing = where.type == "cuda" and where.index is None and torch.cuda.device_count() < count
    if missing and not ranks.assigned():
        raise BenchError(
            f"{count} processes need {count} GPUs, and {torch.cuda.device_count()} are here: ask for more, or "
            "let them share one (BENCH_DEVICE=cuda:0)"
        )


def _modules(training: Training) -> dict[str, str]:
    """The digest of every unit file behind a training: what ``bench why`` compares."""
    from bench.code import closure

    found: dict[str, str] = closure(artifacts.WHITENING) if training.data.whitening else {}
    kinds = [("method", training.method.name), ("dataset", training.data.dataset.name)]
    if training.backbone.name != "none":
        kinds.append(("backbone", training.backbone.name))
    for kind, name in kinds:
        found |= closure(registry.find(kind, name, "the record").module)
    return found
