"""The descent of a net that is made of the encoder: what all of VOC's protocols share."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from bench.contracts import Evaluation, Run, Samples, Target
from bench.training import Schedule, descend, epoch_batches, set_rate
from protocols._dense import Caffe

Net = TypeVar("Net", bound=nn.Module)
Batch = TypeVar("Batch")


class Descending(Evaluation):
    """A protocol that trains a net, with the settings that all of them name alike."""

    steps: int
    lr: float
    momentum: float
    weight_decay: float
    bias_rate: float
    schedule: str
    drops: tuple[float, ...]
    gamma: float


class Descent(abc.ABC, Generic[Net, Batch]):
    """One descent of ``net``, ``size`` of ``count`` samples a step, that goes on where it was interrupted."""

    def __init__(
        self, protocol: Descending, net: Net, run: Run, *, count: int, size: int, bias_decay: float
    ) -> None:
        self.net, self.run, self.count, self.size = net.to(run.device), run, count, size
        self.steps, self.lr = protocol.steps, protocol.lr
        rule = Caffe(protocol.momentum, protocol.weight_decay, protocol.bias_rate, bias_decay)
        self.optimizer = rule.over(self.net)
        self.schedule = Schedule(protocol.schedule, protocol.drops, protocol.gamma)

    @abc.abstractmethod
    def batches(self, epoch: int, picks: list[Tensor]) -> Iterator[Batch]:
        """What is learned from in the steps of ``picks``: the numbers of their samples, below ``count``."""

    @abc.abstractmethod
    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """One step's losses by name, detached, after their gradients were added to the net's."""

    def descend(self) -> None:
        """Train; a run that was interrupted goes on."""
        descend(
            self.run,
            total=self.steps,
            per_epoch=len(epoch_batches(self.count, self.size, 0, 0)),
            state={"net": self.net, "optimizer": self.optimizer},
            batches=self._batches,
            update=self._update,
        )

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        return self.batches(epoch, epoch_batches(self.count, self.size, self.run.seed, epoch, start))

    def _update(self, done: int, batch: Batch) -> dict[str, Tensor]:
        set_rate(self.optimizer, self.lr * self.schedule(done, self.steps))
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.gradients(batch)
        self.optimizer.step()
        return losses


def backward(loss: Tensor) -> Tensor:
    """Add the loss's gradients to the net's; the loss, detached."""
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    return loss.detach()


def in_batches(count: int, size: int) -> list[Tensor]:
    """The numbers below ``count`` in order, ``size`` at once."""
    return list(torch.arange(count).split(size))  # type: ignore[no-untyped-call]  # torch's own


def judged(target: Target) -> list[tuple[str, Samples]]:
    """The splits that have images to be judged on, by name."""
    splits = (("test", target.test), ("validation", target.validation))
    return [(name, samples) for name, samples in splits if len(samples)]
