"""A small non-linear classifier on one layer's frozen features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import BenchError, Encoder, Evaluation, Measurement, Model, Run, Tap, Target, initialize
from bench.training import Schedule, descend, epoch_batches, set_rate
from protocols._features import chained, column, features, frozen
from protocols._scores import FEW, accuracies, labeled


@dataclass(frozen=True)
class MlpProbe(Evaluation):
    """Fully connected layers with batch normalization and dropout, on stored features.

    Defaults are Deep InfoMax's: one hidden layer of 200, Adam, the accuracy averaged over the last 100
    epochs. RotNet's three layers are ``hidden = (200, 200)``, ``dropout = 0``, ``optimizer = "sgd"``,
    ``learning_rate = 0.1``, ``weight_decay = 5e-4``, ``epochs = 50``, ``drops = (0.4, 0.8, 0.9)``,
    ``gamma = 0.2``, ``average_last = 1``.

    :param average_last: the accuracies reported are means over so many last epochs.
    """

    paper: ClassVar[str] = (
        "Hjelm et al., Learning Deep Representations by Mutual Information Estimation and Maximization, "
        "ICLR 2019; "
        "Gidaris, Singh & Komodakis, ICLR 2018"
    )

    layer: str = "output"
    pooling: str = "none"
    size: int = 0
    side: int = 0
    hidden: tuple[int, ...] = (200,)
    dropout: float = 0.1
    optimizer: str = "adam"
    learning_rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    epochs: int = 200
    batch_size: int = 128
    schedule: str = "step"
    drops: tuple[float, ...] = (0.25, 0.5)
    gamma: float = 0.1
    average_last: int = 100

    def __post_init__(self) -> None:
        if self.optimizer not in {"adam", "sgd"}:
            raise BenchError(f"mlp_probe.optimizer is {self.optimizer!r}; write adam or sgd")

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        return (Tap(self.layer, self.pooling, self.size, self.side),)

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        (tap,) = self.taps(model.encoder)
        parts = {"train": target.train, "test": target.test, "validation": target.validation}
        data: dict[str, tuple[Tensor, Tensor]] = {}
        for split, samples in parts.items():
            if len(samples):
                rows, labels = labeled(samples)
                x = features(model, samples, [tap], run)[tap][rows]
                data[split] = x.to(run.device), labels.to(run.device)
        dim = data["train"][0].shape[1]
        net = perceptron(dim, self.hidden, target.classes, self.dropout, run.generator("mlp_probe")).to(
            run.device
        )
        judged = [split for split in ("test", "validation") if split in data]
        tally = self._train(net, data, judged, run)
        metrics = ("top1", "top5") if target.classes > FEW else ("top1",)
        for row, split in enumerate(judged):
            for k, metric in enumerate(metrics):
                yield Measurement(metric, float(tally[row, k]), column(self.layer), split)

    def _train(
        self, net: nn.Module, data: dict[str, tuple[Tensor, Tensor]], judged: Sequence[str], run: Run
    ) -> Tensor:
        """Train in place; returns the mean top1 and top5 (splits, 2) over the last epochs."""
        x, y = data["train"]
        per_epoch = len(epoch_batches(len(x), self.batch_size, 0, 0))
        total, last = self.epochs * per_epoch, min(self.average_last, self.epochs)
        optimizer, schedule = self._optimizer(net), Schedule(self.schedule, self.drops, self.gamma)
        tally = torch.zeros(len(judged), 2, dtype=torch.float64)

        def update(done: int, index: Tensor) -> dict[str, Tensor]:
            set_rate(optimizer, self.learning_rate * schedule(done, total))
            rows = index.to(x.device)
            loss = F.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            epoch, step = divmod(done + 1, per_epoch)
            if step == 0 and epoch > self.epochs - last:
                tally.add_(torch.stack([_judge(net, *data[split]) for split in judged]) / last)
            return {"loss": loss.detach()}

        def batches(epoch: int, first: int) -> list[Tensor]:
            return epoch_batches(len(x), self.batch_size, run.seed, epoch, first)

        state = {"net": net, "optimizer": optimizer, "tally": tally}
        whole = chained(batches, per_epoch, self.epochs)
        descend(run, total=total, per_epoch=total, state=state, batches=whole, update=update)
        return tally

    def _optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(net.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            net.parameters(), self.learning_rate, self.momentum, weight_decay=self.weight_decay, nesterov=True
        )


def perceptron(
    dim: int, hidden: Sequence[int], classes: int, dropout: float, generator: torch.Generator
) -> nn.Sequential:
    """Linear, batch norm, ReLU and dropout for each hidden width, then a linear classifier."""
    parts: list[nn.Module] = []
    for width in hidden:
        parts += [nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        dim = width
    net = nn.Sequential(*parts, nn.Linear(dim, classes))
    initialize(net, generator)
    return net


def _judge(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """top1 and top5 in percent (2,), float64; top5 is 0 where there are five classes or fewer."""
    with frozen(net):
        found = [m.value for m in accuracies(net(x), labels)]
    return torch.tensor([*found, 0.0][:2], dtype=torch.float64)
