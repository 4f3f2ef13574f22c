"""Resumable gradient descent, the one loop under every method and every protocol that trains.

The loop owns what is easy to get wrong: where a step's randomness comes from, what is checkpointed
and when, the schedule, and that a diverged loss stops the run. What a step does is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bench import distributed
from bench.contracts import BenchError, Frame, Images, Model, Run
from bench.draws import order, seed_of

Batch = TypeVar("Batch")

LOG_EVERY = 20  # steps: reading a loss waits for the device
_STEP, _ORDER = 0x57E9, 0x04DE4  # tell the purposes of a run's draws apart


class DivergedError(Exception):
    """The loss is not finite; the reason of a failed run."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a training, in fractions of its length.

    ``kind``: ``constant``; ``step`` (times ``gamma`` at each of ``drops``); ``cosine`` (to zero);
    ``linear`` (flat, then linearly to zero over the part after ``drops[0]``); ``inverse_sqrt`` (1 / sqrt(1 +
    ``gamma`` x steps done): DeepCluster's probes, where gamma is rate x weight decay). ``warmup`` is a number
    of steps over which the rate rises linearly from zero.
    """

    kind: str = "constant"
    drops: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: int = 0

    def __call__(self, done: int, total: int) -> float:
        """The factor on the base rate for the step after ``done`` of ``total``."""
        rise = min(1.0, (done + 1) / self.warmup) if self.warmup else 1.0
        if self.kind == "inverse_sqrt":
            return rise / math.sqrt(1 + self.gamma * done)
        return rise * self._shape(done / total)

    def _shape(self, t: float) -> float:
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            return float(self.gamma ** sum(t >= drop for drop in self.drops))
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * t))
        if self.kind == "linear":
            start = self.drops[0] if self.drops else 0.0
            return 1.0 if t < start else (1 - t) / (1 - start)
        raise BenchError(
            f"schedule {self.kind!r} is not known: write constant, step, cosine or linear, or inverse_sqrt"
        )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Every group's learning rate, times its own factor ``scale`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def epoch_batches(count: int, size: int, seed: int, epoch: int, start: int = 0) -> list[Tensor]:
    """The batches of one pass over ``count`` samples from the ``start``-th on; the incomplete last one is dropped.

    Fewer samples than ``size`` make one batch of all of them.
    """
    size = min(size, count)
    indices = order(count, seed, _ORDER, epoch)
    return list(indices[: count // size * size].split(size))[start:]  # type: ignore[no-untyped-call]


def stream(
    images: Images, size: int, frames: Sequence[Frame], seed: int, epoch: int, start: int = 0
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """One pass: (indices, one tensor per frame) a batch."""
    batches = epoch_batches(len(images), size, seed, epoch, start)
    yield from zip(batches, images.views(batches, frames, seed, epoch), strict=True)


def steps_of(budget: int | str, per_epoch: int, passes_per_step: float) -> int:
    """Optimizer steps that a budget buys: encoder passes, or ``"12 epochs"``."""
    if isinstance(budget, str):
        number, _, unit = budget.partition(" ")
        if unit not in {"epoch", "epochs"} or not number.replace(".", "", 1).isdigit():
            raise BenchError(f'budget {budget!r} is neither a number of encoder passes nor like "12 epochs"')
        return max(1, round(float(number) * per_epoch))
    return max(1, int(budget / passes_per_step))


def descend(
    run: Run,
    *,
    total: int,
    per_epoch: int,
    state: Mapping[str, Any],
    batches: Callable[[int, int], Iterable[Batch]],
    update: Callable[[int, Batch], Mapping[str, Tensor]],
    model: Model | None = None,
    begin_epoch: Callable[[int], None] | None = None,
    end_epoch: Callable[[int], None] | None = None,
) -> None:
    """Run ``total`` steps of ``update``, resuming from the last checkpoint.

    :param state: all that changes: modules, optimizers, tensors (updated in place).
    :param batches: ``(epoch, first) -> `` the batches of an epoch from the ``first``-th on.
    :param update: one step, ``(steps done, batch) -> named losses``; torch's global generators are
        seeded from (seed, step) just before, so dropout after a resume is what it would have been.
    :param begin_epoch: called before an epoch's first batch; what it changes must be in ``state``.
    :raises DivergedError: a loss that is not finite.
    """
    rank = distributed.current().rank
    others = (
        (rank,) if rank else ()
    )  # each rank's dropout has masks of its own; rank 0's are a lone process's
    done = run.resume(state)
    while done < total:
        done = _next(run, done, total)
        epoch, first = divmod(done, per_epoch)
        if begin_epoch and first == 0:
            begin_epoch(epoch)
        for batch in batches(epoch, first):
            _seed(run.device, seed_of(run.seed, _STEP, done, *others))
            losses = update(done, batch)
            done += 1
            if run.steps or done % LOG_EVERY == 0 or done == total:
                _report(run, done, losses)
            run.progress(done, total)
            ended = done % per_epoch == 0
            if end_epoch and ended:
                end_epoch(epoch)
            if model is not None:
                run.snapshot(done, total, model)
            run.checkpoint(done, state, force=done == total)
            if ended or done == total or _next(run, done, total) != done:
                break


def _next(run: Run, done: int, total: int) -> int:
    """The step after ``done``: a rehearsal goes from its first ones to the last."""
    return total - 1 if run.steps and run.steps <= done + 1 < total else done


def _seed(device: torch.device, seed: int) -> None:
    """Seed torch's global generators; on a CPU only its own: asking for all formats a stack trace each time."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _report(run: Run, done: int, losses: Mapping[str, Tensor]) -> None:
    values = {name: float(distributed.averaged(value.detach())) for name, value in losses.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergedError(f"{name} is {value} at step {done}: the training diverged (try a smaller lr)")
    run.log(done, values)


def sgd(
    modules: nn.Module, lr: float, momentum: float, weight_decay: float, *, nesterov: bool
) -> torch.optim.SGD:
    """Stochastic gradient descent over the parameters that require gradients."""
    trainable = [p for p in modules.parameters() if p.requires_grad]
    return torch.optim.SGD(trainable, lr, momentum, weight_decay=weight_decay, nesterov=nesterov)


@torch.no_grad()
def estimate_batch_norm(
    module: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> None:
    """Set BN's running statistics to their plain average over ``batches`` (one pass, train mode)."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - all batch norms
    momenta = [m.momentum for m in norms]
    was_training = module.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's name for a cumulative average
    module.train()
    for batch in batches:
        forward(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.train(was_training)
