"""Makes models and judges them. Everything that ends, well or not, ends as a file in the training's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import platform
import resource
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import artifacts, distributed, pause, ranks, registry, tensors
from bench.backbones import _whitening as whitening
from bench.cache import FileCache
from bench.contracts import (
    Backbone,
    Dataset,
    DataShape,
    Evaluation,
    Measurement,
    Method,
    Model,
    Picture,
    Tap,
    Target,
)
from bench.data import assemble
from bench.records import BenchError, Cell, Training, digest, plain
from bench.session import Session

Progress = Callable[[str, int, int], None]  # what, steps done, of how many


class SkipError(Exception):
    """This cell cannot be measured; the message is the reason."""


@dataclass(frozen=True)
class Place:
    """Where things are: finished runs, datasets, the feature cache."""

    runs: Path
    data: Path
    cache: Path


@dataclass(frozen=True)
class Job:
    """A training with the cells that wait for it."""

    training: Training
    cells: tuple[Cell, ...]


def device() -> torch.device:
    """``BENCH_DEVICE``, else the GPU where there is one."""
    name = os.environ.get("BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise BenchError(f'BENCH_DEVICE: {name!r} is no device; write "cpu", "cuda" or "cuda:1"') from error
    if found.type not in {"cpu", "cuda"}:
        raise BenchError(f'BENCH_DEVICE: {name!r} is not supported; write "cpu", "cuda" or "cuda:1"')
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise BenchError(
            f'BENCH_DEVICE: {name!r} is not there ({count} GPUs are); write "cpu" or another one'
        )
    local = os.environ.get("LOCAL_RANK", "")
    if found.type == "cuda" and found.index is None and local.isdigit():
        return torch.device("cuda", int(local) % torch.cuda.device_count())  # srun may show each task its own
    return found


def work(job: Job, place: Place, progress: Progress) -> list[str]:
    """Do what a job still lacks. Returns the reasons of what failed, a line each."""
    device()  # one that is not there concerns everything
    _settle(job.training)
    files = artifacts.folder(place.runs, job.training)

    def waiting() -> None:
        progress("wait", 0, 1)  # another process is at it: a sign of life
        pause.check()

    with artifacts.lock(files.path, waiting):
        pause.check()
        try:
            status = artifacts.read_json(files.status) or {}
        except BenchError as error:  # one training's file: the others go on
            return [str(error)]
        if status.get("status") != "ok" or not files.model.exists():
            status = _attempt_training(job.training, status, files, place, progress)
        if status["status"] != "ok":
            return [f"{files.path.name}: {status['reason']}"]
        done = artifacts.outcomes(place.runs, job.training)
        return _evaluate_all(
            [c for c in job.cells if artifacts.cell_name(c) not in done], files, place, progress
        )


def follow(
    training: Training, place: Place, seat: distributed.Seat, over: Callable[[], bool] = lambda: False
) -> bool:
    """Train with rank 0, which keeps what comes of it; tells it what went wrong.

    :param over: while rank 0 is looked for: whether it has nothing to train.
    :returns: whether all went well.
    """
    if training.processes == 1:
        return True
    _settle(training)
    files = artifacts.folder(place.runs, training)
    found = ranks.follow(seat, files.path.name, over)
    if found is None:
        return True
    store, join = found

    def train() -> dict[str, Any]:
        _descend(training, files, place, lambda *_: None, join)
        return {}

    outcome = _guarded(train, files.log)
    if outcome["status"] != "ok":
        distributed.tell(store, seat.world.rank, outcome)
    return bool(outcome["status"] == "ok")


def _settle(training: Training) -> None:
    """What holds for a whole process."""
    torch.set_num_threads(training.threads)
    if torch.are_deterministic_algorithms_enabled() is False:
        torch.use_deterministic_algorithms(True, warn_only=True)


# ---- units and data ------------------------------------------------------------------------------


def _method(training: Training) -> Method:
    return registry.load("method", training.method)  # type: ignore[no-any-return]


def _backbone(training: Training) -> Backbone:
    if training.backbone.name == "none":
        return _NoBackbone()
    backbone: Backbone = registry.load("backbone", training.backbone)
    dataset = training.data.dataset
    traits = registry.find("dataset", dataset.name, "the record").traits
    side: Any = dataset.get("side", traits.get("image_side"))
    return whitening.named(backbone, training.data.whitening, side)


class _NoBackbone(Backbone):
    name = "none"
    paper = ""

    def build(self, **_: Any) -> Any:
        raise BenchError("this method said that it needs no backbone, and asks for one")


@functools.lru_cache(maxsize=4)
def _target(cell_aim: Any, root: Path, where: torch.device) -> tuple[Target, dict[str, Any]]:
    dataset: Dataset = registry.load("dataset", cell_aim.dataset)
    return assemble.target(cell_aim, dataset, root, where)


def _check_needs(method: Method, backbone: Backbone) -> None:
    if method.needs.batch_norm_free and backbone.batch_norm:
        name = type(method).__module__.rpartition(".")[2]
        raise SkipError(
            f"{name} needs a net without batch normalization; {backbone.name} has it (batch_norm = false)"
        )


def _check_processes(training: Training, where: torch.device) -> None:
    count = training.processes
    if count > 1 and not _method(training).distributed:
        raise BenchError(f"{training.method.name} trains in one process only: write processes = 1")
    if training.sync_batch_norm and where.type == "cpu":
        raise BenchError("sync_batch_norm needs GPUs, and this is a CPU: leave it out, or use a GPU")
    missing = where.type == "cuda" and where.index is None and torch.cuda.device_count() < count
    if missing and not ranks.assigned():
        raise BenchError(
            f"{count} processes need {count} GPUs, and {torch.cuda.device_count()} are here: ask for more, or "
            "let them share one (BENCH_DEVICE=cuda:0)"
        )


# ---- training ------------------------------------------------------------------------------------


def _attempt_training(
    training: Training, before: dict[str, Any], files: artifacts.Folder, place: Place, progress: Progress
) -> dict[str, Any]:
    facts = {"attempt": int(before.get("attempt", 0)) + 1, **_machine()}
    artifacts.write_json(
        files.spec,
        {
            "training": plain(training),
            "code": artifacts.training_code(training),
            "modules": _modules(training),
        },
    )
    _reset_peak()
    outcome = _guarded(lambda: _train(training, files, place, progress), files.log)
    status = {**facts, **outcome, "peak_memory_mb": _peak_mb()}
    artifacts.write_json(files.status, status)
    return status


def _train(training: Training, files: artifacts.Folder, place: Place, progress: Progress) -> dict[str, Any]:
    _check_processes(training, device())
    with ranks.started(training, files.path.name, dataclasses.asdict(place)) as join:
        model, session, facts = _descend(training, files, place, progress, join)
    tensors.save_model(files.model, model)
    session.finish()
    return {
        **facts,
        "train_seconds": round(session.seconds, 3),
        "images_seen": session.images_seen,
        "weights": artifacts.file_digest(files.model),
    }


def _descend(
    training: Training, files: artifacts.Folder, place: Place, progress: Progress, join: ranks.Join
) -> tuple[Model, Session, dict[str, Any]]:
    """What every process of a training does: the trained model, its session, and what its data are."""
    where = device()
    method, backbone = _method(training), _backbone(training)
    _check_needs(method, backbone)
    dataset: Dataset = registry.load("dataset", training.data.dataset)
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
    )
    model = _build(method, backbone, data.shape, session)
    if training.init is not None:
        _start_from(training.init, model, place, progress)
    if training.data.whitening:
        whitening.fit(model, data.images)
    if training.sync_batch_norm:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    with join(where):
        model = method.train(model, data, session)
    return model, session, {"shape": dataclasses.asdict(data.shape), "data": info}


def _build(method: Method, backbone: Backbone, shape: DataShape, session: Session) -> Model:
    model = method.build(backbone, shape, session.generator("weights"))
    model.to(session.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    return model


def _start_from(init: Training, model: Model, place: Place, progress: Progress) -> None:
    """Transfer: the encoder's weights come from another training, which is made where nobody made it yet."""
    problems = work(Job(init, ()), place, progress) if distributed.current().rank == 0 else []
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


# ---- evaluation ----------------------------------------------------------------------------------


def _evaluate_all(
    cells: Sequence[Cell], files: artifacts.Folder, place: Place, progress: Progress
) -> list[str]:
    if not cells:
        return []
    problems = []
    taps = _LazyTaps(cells)
    for cell in cells:
        pause.check()
        progress(cell.protocol.name, 0, 1)
        name = artifacts.cell_name(cell)
        facts = {"cell": plain(cell), "code": artifacts.cell_code(cell), **_machine()}
        facts["attempt"] = _attempts(files.failed(name)) + 1
        started = time.monotonic()
        evaluation = functools.partial(_evaluate, cell, files, place, taps, progress)
        outcome = _guarded(evaluation, files.log)
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
                except BenchError:
                    continue  # its own cell will tell
        return tuple(found)


def _evaluate(
    cell: Cell, files: artifacts.Folder, place: Place, taps: _LazyTaps, progress: Progress
) -> dict[str, Any]:
    training = cell.training
    method, evaluation = _method(training), registry.load("protocol", cell.protocol)
    target, info = _target(cell.aim, place.data, device())
    shape, weights = _made(files)
    rows: list[dict[str, Any]] = []
    for step, path in _models(cell, files):
        session = Session(
            files.path / "work" / artifacts.cell_name(cell) / str(step or 0),
            seed=training.seed,
            device=device(),
            cache=FileCache(place.cache / "features"),
            precision=training.precision,
            stamp=digest([artifacts.cell_id(cell), info]),
            report=lambda done, total: progress(cell.protocol.name, done, total),
        )
        model = _build(method, _backbone(training), shape, session)
        tensors.load_model(path, model)
        found = artifacts.file_digest(path)
        if step is None and found != weights:
            raise BenchError(f"{path}: not the weights that were trained; delete it and it is made again")
        model = _variant(model, cell.variant).eval()
        _check_model(evaluation, model, cell)
        session.weights_digest = digest([artifacts.training_id(training), cell.variant, found], 32)
        session.taps = taps(cell, model)
        for measured in evaluation.evaluate(model, target, session):
            if isinstance(measured, Picture):
                session.picture(measured.name, measured.image)
            else:
                rows.append(_row(measured, step))
        session.finish()
    return {"rows": rows, "target": info}


def _made(files: artifacts.Folder) -> tuple[DataShape, str]:
    """What the record of a training says of its model: for which shape of data, with what digest."""
    status = artifacts.read_json(files.status) or {}
    try:
        return DataShape(**status["shape"]), str(status["weights"])
    except (KeyError, TypeError) as error:
        raise BenchError(f"{files.status}: damaged ({error}); delete it and it is made again") from error


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
    if needs.trainable and not any(True for _ in model.encoder.parameters()):
        raise SkipError(f"{cell.protocol.name} needs weights to train; {name} has none")


def _row(measured: Measurement, step: int | None) -> dict[str, Any]:
    row = dataclasses.asdict(measured)
    row["value"] = float(row["value"])
    row["step"] = measured.step if measured.step is not None else step
    return row


# ---- outcomes ------------------------------------------------------------------------------------


def _guarded(action: Callable[[], dict[str, Any]], log: Path) -> dict[str, Any]:
    """Run one unit of work; whatever a unit raises becomes a status and a reason."""
    try:
        return {"status": "ok", "reason": "", **action()}
    except distributed.LostError as lost:
        return dict(lost.outcome)
    except SkipError as reason:
        return {"status": "skipped", "reason": str(reason)}
    except BenchError as error:
        if isinstance(error.__cause__, OSError) and "cannot be written" in str(error):
            raise  # a full disk concerns everything, not this cell
        return {"status": "failed", "reason": str(error), "input": True}
    except (torch.OutOfMemoryError, MemoryError) as error:
        return {
            "status": "oom",
            "reason": f"out of memory: {str(error).splitlines()[0] if str(error) else ''}",
        }
    except Exception as error:  # noqa: BLE001 - a unit may raise anything, and must cost only its own cells
        with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc() + "\n")
        frame = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [""])[0]
        return {
            "status": "failed",
            "reason": f"{type(error).__name__}: {first} ({Path(frame.filename).name}:{frame.lineno})",
        }


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


@functools.cache
def _machine() -> dict[str, Any]:
    where = device()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"cpu ({platform.machine()})"
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    return {"device": name, "versions": versions, "commit": _commit()}


def _commit() -> str:
    """The commit of a checkout, with "+dirty" where files differ; empty for an installed package."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return ""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run(  # noqa: S603 - our own words
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(  # noqa: S603 - our own words
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # else the peak is the process's, not the training's
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() / 2**20)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
