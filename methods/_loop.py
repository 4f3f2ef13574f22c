"""The base class of methods that are gradient descent: a method fills in its networks and its losses."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from bench import distributed
from bench.augment import Chain, ColorJitter, Gray
from bench.contracts import BenchError, DataShape, Draws, Frame, Method, Model, Needs, Run, TrainingSet
from bench.draws import order
from bench.records import later
from bench.training import Schedule, descend, set_rate, steps_of
from methods.parts import views
from methods.parts.ramps import ramp_down, ramp_up

State: TypeAlias = dict[str, Any]
_Losses: TypeAlias = "Callable[[Batch, int], dict[str, Tensor]]"

_ORDER, _LABELED = 0x0DE5, 0x1ABE  # tell the orders of a run apart
_OWN_STREAM = 64  # draws of the losses themselves: no view has this number


@dataclass(frozen=True)
class Batch:
    """What one step is handed: N samples, each seen once by every frame.

    :param index: int64 (N,), the samples; ``views``: one channels-last tensor (N, 3, h, w) per frame.
    :param labels: int64 (N,), -1 where hidden; None for a method that may see none.
    :param flip: a mirrored image keeps its class.
    :param kept: what ``losses`` leaves for ``after_step``: a row for each sample, or one number.

    Where several processes train the model, ``losses`` sees this one's part of the batch and ``after_step``
    the whole, without its views.
    """

    index: Tensor
    views: list[Tensor]
    labels: Tensor | None = None
    flip: bool = True
    seed: int = 0
    step: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def targets(self) -> Tensor:
        """The labels, of a method that sees some."""
        if self.labels is None:
            raise BenchError("this method needs labels, and its data show none (labels = 0)")
        return self.labels

    def draws(self) -> Draws:
        """Random numbers for the losses, one stream per sample."""
        return Draws(self.seed, self.step, self.index, stream=_OWN_STREAM)

    def averaged(self, value: Tensor) -> Tensor:
        """A mean over these samples as the mean over the whole batch, without gradient."""
        return distributed.averaged(value)


@dataclass(frozen=True)
class Loop(Method):
    """Gradient descent on named loss terms over views of the images. Subclasses give the paper's defaults.

    :param schedule: of ``lr``, see :class:`bench.training.Schedule`; or ``ramps``: up by
        exp(-5 (1 - t)^2) until ``drops[0]`` of the training, down by exp(-12.5 t^2)
        from ``drops[1]`` on (Laine & Aila).
    :param warmup: steps; ``drops``: fractions of the training.
    :param last_beta1: Adam's first beta falls to it with ``ramps``' fall; 0: it stays.
    :param crop: side of a view in pixels; 0: the whole image.
    :param augment: geometric frame, one of :data:`methods.parts.views.NAMES`; ``scale``: area fractions of
        ``resized_crop``; ``jitter``: brightness, contrast, saturation, hue, () for none;
        ``gray``: probability.
    :param mirror: half of the views are mirrored, where the images allow it; ``padding``: ``reflect`` or ``zeros``.
    """

    # ``distributed``, of a subclass: its losses are means over the batch, and what it keeps goes by ``kept``.
    repeats: ClassVar[bool] = False  # an epoch may hold an image twice: each time gets draws of its own
    shrinks: ClassVar[dict[str, str]] = {"batch_size": "batch", "labeled_batch": "batch"}

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    batch_size: int = 128
    optimizer: str = "sgd"  # sgd, adam
    betas: tuple[float, float] = (0.9, 0.999)
    last_beta1: float = 0.0
    schedule: str = "constant"
    drops: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: int = 0
    crop: int = 0
    augment: str = "crop_flip"
    scale: tuple[float, float] = (0.08, 1.0)
    jitter: tuple[float, ...] = ()
    gray: float = 0.0
    mirror: bool = later(True)
    padding: str = later("reflect")

    # ---- what a method fills in ----------------------------------------------------------------

    @abc.abstractmethod
    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Named terms, already weighted: their sum is minimized.

        A function of its arguments and of torch's global generators (dropout), but for batch-norm's running
        statistics and ``batch.kept``.
        """

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """Tensors and modules beyond the model that a step needs: checkpointed, changed in place only."""
        return {}

    def learner(self, model: Model) -> nn.Module:
        """The module whose weights are descended on."""
        return model

    def groups(self, model: Model) -> list[dict[str, Any]]:
        """The optimizer's parameter groups; a group's ``scale`` multiplies its rate."""
        return [{"params": [p for p in self.learner(model).parameters() if p.requires_grad]}]

    def frames(self, shape: DataShape) -> Sequence[Frame]:
        """The views of an image."""
        return (self.view(shape),)

    def passes(self, shape: DataShape) -> float:
        """Encoder passes per image and step: a view counts by its area, a forward pass alone by a third."""
        return views.area(shape, self.crop)

    def samples(self, data: TrainingSet) -> Tensor:
        """The indices that an epoch passes over."""
        return torch.arange(len(data))

    def labeled_per_batch(self, data: TrainingSet) -> int:
        """How many images of every batch come from the labeled ones, on top of the epoch's pass."""
        return 0

    def epoch_order(self, samples: Tensor, state: State, seed: int, epoch: int) -> Tensor:
        """The order of an epoch, as long as ``samples``."""
        return samples[order(len(samples), seed, _ORDER, epoch)]

    def begin_epoch(self, epoch: int, model: Model, state: State, data: TrainingSet, run: Run) -> None:
        """Before an epoch's first batch."""

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """After the ``done``-th step (from 1 on): averages and memories."""

    # ---- the loop ------------------------------------------------------------------------------

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Descend for as long as the budget lasts; trains ``model`` in place."""
        model.to(run.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stub
        state = self.state(model, data, run)
        optimizer = self.new_optimizer(model)
        feed = _Feed(self, data, run)
        total = steps_of(run.budget, feed.per_epoch, feed.size * self.passes(data.shape))

        def losses(batch: Batch, done: int) -> dict[str, Tensor]:
            return self.losses(model, state, batch, done, total)

        forward = _together(self.learner(model), losses)

        def update(done: int, batch: Batch) -> dict[str, Tensor]:
            with run.autocast():
                terms = forward(batch, done)
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            self.adjust(optimizer, done, total)
            optimizer.step()
            self.after_step(model, state, feed.whole(batch), done + 1)
            run.saw(feed.size)
            return {name: term.detach() for name, term in terms.items()}

        descend(
            run,
            total=total,
            per_epoch=feed.per_epoch,
            state={"model": model, "optimizer": optimizer, **state},
            batches=lambda epoch, first: feed.batches(state, epoch, first),
            update=update,
            model=model,
            begin_epoch=lambda epoch: self.begin_epoch(epoch, model, state, data, run),
        )
        return model

    def new_optimizer(self, model: Model) -> torch.optim.Optimizer:
        """SGD or Adam over :meth:`groups`."""
        # Not fused: that kernel ignores strides, and a checkpoint gives momentum back without channels-last ones.
        groups = self.groups(model)
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, self.lr, self.betas, weight_decay=self.weight_decay)
        if self.optimizer != "sgd":
            raise BenchError(f"optimizer {self.optimizer!r} is not known: write sgd or adam")
        return torch.optim.SGD(
            groups, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )

    def adjust(self, optimizer: torch.optim.Optimizer, done: int, total: int) -> None:
        """Set the learning rate (and Adam's first beta) of the step after ``done`` of ``total``."""
        if self.schedule != "ramps":
            schedule = Schedule(self.schedule, self.drops, self.gamma, self.warmup)
            set_rate(optimizer, self.lr * schedule(done, total))
            return
        rise, fall = self.drops
        falling = ramp_down(1 - done / total, 1 - fall)
        set_rate(optimizer, self.lr * ramp_up(done / total, rise) * falling)
        if self.last_beta1:
            beta1 = self.betas[0] * falling + self.last_beta1 * (1 - falling)
            for group in optimizer.param_groups:
                group["betas"] = (beta1, self.betas[1])

    def view(self, shape: DataShape, *, flip: bool = True) -> Frame:
        """One random view by ``augment``, ``jitter`` and ``gray``."""
        frame, mirrored = (self.augment, shape, self.crop, self.scale), flip and self.mirror
        pieces = list(views.geometry(*frame, flip=mirrored, padding=self.padding))
        if self.jitter:
            pieces.append(ColorJitter(*self.jitter))
        if self.gray and shape.color:
            pieces.append(Gray(self.gray))
        return Chain(tuple(pieces))


@dataclass(frozen=True)
class SemiLoop(Loop):
    """A loop over images of which some show their labels.

    :param labeled_batch: 0: an epoch passes over all images, labels where they are shown; n: every batch
        holds n labeled images, drawn in a cycle of their own, and an epoch passes over the others.
    """

    sees_labels: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(labels=True)

    labeled_batch: int = 0

    def samples(self, data: TrainingSet) -> Tensor:
        """All images, or those that are not drawn apart."""
        hidden = (
            torch.arange(len(data)) if data.labels is None else (data.labels < 0).nonzero().flatten().cpu()
        )
        return hidden if self.labeled_batch and len(hidden) else torch.arange(len(data))

    def labeled_per_batch(self, data: TrainingSet) -> int:
        """At most as many as there are."""
        return min(self.labeled_batch, int((data.labels >= 0).sum()) if data.labels is not None else 0)


class _Step(nn.Module):
    """A step's losses as the forward pass of a module, whose only part is the learner: that is what DDP wraps."""

    def __init__(self, learner: nn.Module, losses: _Losses) -> None:
        super().__init__()
        self.learner, self.losses = learner, losses
        self.unused = nn.Parameter(torch.zeros(()))  # else torch advises, loudly, not to look for unused ones

    def forward(self, batch: Batch, done: int) -> dict[str, Tensor]:
        return self.losses(batch, done)


def _together(learner: nn.Module, losses: _Losses) -> _Losses:
    """``losses``, whose gradients are averaged over the processes that train the learner."""
    if distributed.current().size == 1:
        return losses
    step = _Step(learner, losses).to(next(learner.parameters()).device)
    # Looking for unused ones also keeps the buckets as they are: after a resume, sums have the same order.
    wrapped: _Losses = nn.parallel.DistributedDataParallel(step, find_unused_parameters=True)
    return wrapped


class _Feed:
    """The batches of a run: which samples, in which views, from any step on.

    Where several processes train, each is handed its equal part of the labeled and of the other images.
    """

    def __init__(self, loop: Loop, data: TrainingSet, run: Run) -> None:
        self.loop, self.images, self.run, self.flip = loop, data.images, run, data.flip
        self.frames = loop.frames(data.shape)
        self.labels = data.labels.to(run.device) if data.labels is not None else None
        self.samples = loop.samples(data)
        if not len(self.samples):
            raise BenchError("there is no image to train on: the method needs labels, and none are shown")
        self.extra = loop.labeled_per_batch(data)
        self.share = max(
            1, min(loop.batch_size - self.extra, len(self.samples))
        )  # of a batch, from the epoch
        self.size = self.share + self.extra
        self.per_epoch = len(self.samples) // self.share
        world = distributed.current().size
        for part in (self.share, self.extra):
            if part % world:
                raise BenchError(
                    f"{part} images of a batch do not divide among {world} processes: change batch_size"
                )
        self.parts = [part // world for part in (self.extra, self.share) if part]
        self.labeled: Iterator[tuple[Tensor, list[Tensor]]] | None = None  # read ahead across epochs
        self.cycled = 0  # the step that it has come to

    def whole(self, batch: Batch) -> Batch:
        """The batch of all processes, without its views."""
        if distributed.current().size == 1:
            return batch
        index = distributed.gathered(batch.index, self.parts)
        labels = self.labels[index] if self.labels is not None else None
        kept = {name: self._whole(name, value, len(batch)) for name, value in batch.kept.items()}
        return replace(batch, index=index, views=[], labels=labels, kept=kept)

    def _whole(self, name: str, value: Tensor, rows: int) -> Tensor:
        if not value.ndim:
            return distributed.averaged(value)
        if len(value) != rows:
            raise BenchError(f"kept {name!r} has {len(value)} rows: keep one for each of the {rows} images")
        return distributed.gathered(value, self.parts)

    def batches(self, state: State, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from the ``first``-th on; the incomplete last one is dropped."""
        done = epoch * self.per_epoch + first
        source = self._epoch(state, epoch, first)
        if self.extra:
            joined = zip(source, self._labeled_from(done), strict=False)
            source = (
                (torch.cat([a, b]), [torch.cat(pair) for pair in zip(v, w, strict=True)])
                for (b, w), (a, v) in joined
            )
        for step, (chosen, seen) in enumerate(source, done):
            index = chosen.to(self.run.device)
            labels = self.labels[index] if self.labels is not None else None
            self.cycled = step + 1
            yield Batch(index, [views.channels_last(v) for v in seen], labels, self.flip, self.run.seed, step)

    def _epoch(self, state: State, epoch: int, first: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        indices = self.loop.epoch_order(self.samples, state, self.run.seed, epoch)
        chunks = _chunks(indices[: self.per_epoch * self.share], self.share)[first:]
        draws = itertools.count(epoch * self.per_epoch + first) if self.loop.repeats else epoch
        return zip(chunks, self._views(chunks, draws), strict=True)

    def _labeled_from(self, done: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The labeled batches of the steps after ``done``; where they just stopped there, they go on."""
        if self.labeled is None or self.cycled != done:
            chosen, read, drawn = itertools.tee(self._cycles(done), 3)
            seen = self._views((chunk for chunk, _ in read), (cycle for _, cycle in drawn))
            self.labeled = zip((chunk for chunk, _ in chosen), seen, strict=True)
        return self.labeled

    def _cycles(self, done: int) -> Iterator[tuple[Tensor, int]]:
        """Labeled batches for ever, from the ``done``-th on: each cycle has an order and draws of its own."""
        assert self.labels is not None
        labeled = (self.labels >= 0).nonzero().flatten().cpu()
        per_cycle = len(labeled) // self.extra
        cycle, first = divmod(done, per_cycle)
        while True:
            indices = labeled[order(len(labeled), self.run.seed, _LABELED, cycle)]
            for chunk in _chunks(indices[: per_cycle * self.extra], self.extra)[first:]:
                yield chunk, -1 - cycle
            cycle, first = cycle + 1, 0

    def _views(self, chunks: Iterable[Tensor], epoch: int | Iterable[int]) -> Iterator[list[Tensor]]:
        return iter(self.images.views(chunks, self.frames, self.run.seed, epoch))


def _chunks(indices: Tensor, size: int) -> list[Tensor]:
    """This process's parts of consecutive batches of ``size``."""
    return [distributed.share(chunk) for chunk in indices.split(size)]  # type: ignore[no-untyped-call]
