"""The harness's side of one training or evaluation: where its state, curves and pictures are kept."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import artifacts, distributed, pause, tensors
from bench.contracts import Cache, Model, Run, Tap
from bench.draws import seed_of
from bench.records import BenchError

_RETRIES = 60  # times, a second each: a checkpoint on a shared disk is seen late by other machines
CHECKPOINT_MINUTES = "5"  # at most this much work is lost; BENCH_CHECKPOINT says otherwise

Report = Callable[[int, int], None]  # steps done, of how many


def _seconds(minutes: str) -> float:
    try:
        seconds = 60 * float(minutes)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise BenchError(
            f"BENCH_CHECKPOINT: {minutes!r} is no number of minutes; write e.g. 5, or 0 for after every step"
        )
    return seconds


class Session(Run):
    """A :class:`~bench.contracts.Run` whose state lies in a folder.

    :param folder: where ``checkpoint.safetensors``, ``curves.jsonl``, snapshots and pictures go.
    :param stamp: what must agree for a checkpoint to be resumed (ids, split digests).
    A checkpoint is written when BENCH_CHECKPOINT minutes have passed, when the process is asked to stop, and at the end.

    :param snapshots: how many models are kept, evenly over the training.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        device: torch.device,
        cache: Cache,
        precision: str = "fp32",
        budget: int | str = 0,
        snapshots: int = 1,
        stamp: str = "",
        report: Report | None = None,
        taps: tuple[Tap, ...] = (),
        weights_digest: str = "",
        steps: int = 0,
    ) -> None:
        self.folder, self.stamp, self.report = folder, stamp, report
        self.seed, self.device, self.precision, self.budget = seed, device, precision, budget
        self.cache, self.taps, self.weights_digest = cache, taps, weights_digest
        self.snapshots, self.steps = snapshots, steps
        self.pace: list[tuple[int, int, float]] = []  # of a rehearsal: steps done, of how many, when
        self.checkpoint_bytes = 0
        self.images_seen = 0
        self.seconds_before = 0.0  # spent by interrupted attempts
        self.started = self.saved = time.monotonic()
        self.every = _seconds(os.environ.get("BENCH_CHECKPOINT") or CHECKPOINT_MINUTES)
        self.curves: list[dict[str, float]] = []
        self.warnings: list[str] = []

    # ---- randomness and precision ----

    def generator(self, purpose: str) -> torch.Generator:
        word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:7], "big")
        return torch.Generator().manual_seed(seed_of(self.seed, word))

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # ---- state ----

    @property
    def leads(self) -> bool:
        """Files are written by one process of a training: rank 0."""
        return distributed.current().leads

    @property
    def checkpoint_file(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def seconds(self) -> float:
        """Time spent so far, interrupted attempts included as far as they were saved."""
        return self.seconds_before + time.monotonic() - self.started

    def resume(self, state: Mapping[str, Any]) -> int:
        """See :meth:`bench.contracts.Run.resume`; several processes resume from the same step.

        :raises BenchError: the checkpoint is damaged, another run's, or not the one that rank 0 reads.
        """
        done = self._restore(state)
        for _ in range(_RETRIES):
            first, *others = distributed.everyones(done)
            if all(other == first for other in others):
                return done
            time.sleep(1)
            done = self._restore(state)
        raise BenchError(f"{self.checkpoint_file}: is not the same for all processes: share the folder")

    def _restore(self, state: Mapping[str, Any]) -> int:
        if not self.checkpoint_file.exists():
            return 0
        header = tensors.read_header(self.checkpoint_file)
        if header.get("stamp") != self.stamp:
            raise BenchError(
                f"{self.checkpoint_file}: belongs to another run (its settings or label split differ); "
                "delete it to start again"
            )
        try:
            tensors.unpack(state, tensors.read(self.checkpoint_file), header["state"])
            facts = json.loads(header["facts"])
            self.images_seen, self.seconds_before = int(facts["images_seen"]), float(facts["seconds"])
            self.curves = list(facts["curves"])
            return int(facts["done"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise BenchError(
                f"{self.checkpoint_file}: does not fit ({line}); delete it to start again"
            ) from error

    def checkpoint(self, done: int, state: Mapping[str, Any], *, force: bool = False) -> None:
        stop = distributed.agreed(pause.asked())  # all stop at the same step, whoever was told
        if stop or force or time.monotonic() - self.saved >= self.every:
            self._save(done, state)
        if stop:
            raise pause.PausedError

    def _save(self, done: int, state: Mapping[str, Any]) -> None:
        if not self.leads:
            return
        packed, text = tensors.pack(state)
        facts = {
            "done": done,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "curves": self.curves,
        }
        header = {"stamp": self.stamp, "state": text, "facts": json.dumps(facts)}
        tensors.save(self.checkpoint_file, packed, header)
        self.checkpoint_bytes = self.checkpoint_file.stat().st_size
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Write what is kept and drop what is not needed any more."""
        if self.curves:
            import pandas as pd

            with artifacts.written(self.folder / "curves.parquet") as path:
                pd.DataFrame(self.curves).to_parquet(path)
        self.checkpoint_file.unlink(missing_ok=True)

    # ---- what is kept ----

    def snapshot(self, done: int, total: int, model: Model) -> None:
        if self.leads and self.snapshots > 1 and done in snapshot_steps(total, self.snapshots):
            tensors.save_model(self.folder / "snapshots" / f"{done:09d}.safetensors", model)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.curves.append({"step": step, **values})

    def rehearsed(self) -> dict[str, Any]:
        """What a rehearsal found: each descent's steps and the seconds of one, and the checkpoint's size."""
        if not self.steps:
            return {}
        took: dict[int, list[float]] = {}
        for (done, total, before), (after, same, now) in itertools.pairwise(self.pace):
            if (after, same) == (done + 1, total):
                took.setdefault(total, []).append(now - before)
        totals = dict.fromkeys(total for _, total, _ in self.pace)
        descents = [[total, statistics.median(took.get(total, [0.0]))] for total in totals]
        return {"rehearsed": {"descents": descents, "checkpoint_bytes": self.checkpoint_bytes}}

    def progress(self, done: int, total: int) -> None:
        if self.steps:
            self.pace.append((done, total, time.monotonic()))
        if self.report:
            self.report(done, total)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def saw(self, images: int) -> None:
        self.images_seen += images

    def assignments(self, epoch: int, ids: Tensor) -> None:
        if not self.leads:
            return
        tensors.save(self.folder / "assignments" / f"{epoch:06d}.safetensors", {"ids": ids.to(torch.int32)})

    def picture(self, name: str, image: Tensor) -> None:
        if not self.leads:
            return
        from PIL import Image

        pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        with artifacts.written(self.folder / "pictures" / f"{artifacts.slug(name)}.png") as path:
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, "PNG")


class Assignments(Mapping[int, Tensor]):
    """What :meth:`Session.assignments` kept in a training's folder, read as it is asked for."""

    def __init__(self, folder: Path) -> None:
        found = sorted((folder / "assignments").glob("*.safetensors"))
        self.paths = {int(path.stem): path for path in found}

    def __getitem__(self, epoch: int) -> Tensor:
        return tensors.read(self.paths[epoch])["ids"].long()

    def __iter__(self) -> Iterator[int]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def snapshot_steps(total: int, count: int) -> set[int]:
    """The steps after which a model is kept: ``count`` of them, evenly, the last included."""
    return {max(1, round(total * (i + 1) / count)) for i in range(count)}
