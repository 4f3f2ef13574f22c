"""A small non-linear classifier on one layer's frozen features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import BenchError, Encoder, Evaluation, Measurement, Model, Run, Tap, Target, initialize
from bench.features import Features, blocks, chosen
from bench.records import later
from bench.training import Schedule, descend, epoch_batches, set_rate
from protocols._batches import Batch, Cached, Cropped, check_batch_norm, source_of
from protocols._features import chained, column, features, frozen
from protocols._scores import FEW, accuracies, labeled
from protocols._views import AUGMENTS, PADDINGS


@dataclass(frozen=True)
class MlpProbe(Evaluation):
    """Fully connected layers with batch normalization and dropout, on features of stored or of random views.

    Defaults are Deep InfoMax's: one hidden layer of 200, Adam, the accuracy averaged over the last 100
    epochs. RotNet's three layers are ``recipe = "rotnet"`` (mlp_probe.toml).

    :param average_last: the accuracies reported are means over so many last epochs.
    :param augment: the views of training, see :func:`protocols._views.random_view`: the frozen encoder runs in every
        step; ``none``: features are cached. ``side``, ``square``, ``pad`` and ``padding`` as in ``linear_probe``.
    """

    shrinks: ClassVar[dict[str, str]] = {"batch_size": "batch"}
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
    augment: str = later("none")
    square: int = later(0)
    pad: int = later(4)
    padding: str = later("reflect")

    def __post_init__(self) -> None:
        choices = {"optimizer": ("adam", "sgd"), "augment": AUGMENTS, "padding": PADDINGS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise BenchError(f"mlp_probe.{name} is {getattr(self, name)!r}; write {' or '.join(known)}")

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        """What is read; nothing when each step sees a new crop."""
        return (self._tap,) if self.augment == "none" else ()

    @property
    def _tap(self) -> Tap:
        return Tap(self.layer, self.pooling, self.size, self.side, self.square)

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        if self.hidden:
            check_batch_norm("mlp_probe", target.train, self.batch_size, "hidden = [], or ")
        parts = {"test": target.test, "validation": target.validation}
        data: dict[str, tuple[Features, Tensor]] = {}
        for split, samples in parts.items():
            if len(samples):
                rows, labels = labeled(samples)
                x = chosen(features(model, samples, [self._tap], run)[self._tap], rows)
                data[split] = x.to(run.device) if isinstance(x, Tensor) else x, labels.to(run.device)
        dim = data["test"][0].shape[1]
        net = perceptron(dim, self.hidden, target.classes, self.dropout, run.generator("mlp_probe")).to(
            run.device
        )
        judged = list(data)
        with frozen(model.encoder):
            tally = self._train(net, source_of(self, model, target, [self._tap], run), data, run)
        metrics = ("top1", "top5") if target.classes > FEW else ("top1",)
        for row, split in enumerate(judged):
            for k, metric in enumerate(metrics):
                yield Measurement(metric, float(tally[row, k]), column(self.layer), split)

    def _train(
        self, net: nn.Module, source: Cached | Cropped, data: dict[str, tuple[Features, Tensor]], run: Run
    ) -> Tensor:
        """Train in place; returns the mean top1 and top5 (splits, 2) over the last epochs."""
        per_epoch = len(epoch_batches(source.count, self.batch_size, 0, 0))
        total, last = self.epochs * per_epoch, min(self.average_last, self.epochs)
        optimizer, schedule = self._optimizer(net), Schedule(self.schedule, self.drops, self.gamma)
        tally = torch.zeros(len(data), 2, dtype=torch.float64)

        def update(done: int, batch: Batch) -> dict[str, Tensor]:
            labels, values = batch
            set_rate(optimizer, self.learning_rate * schedule(done, total))
            with torch.enable_grad():  # the encoder is frozen, this is not
                loss = F.cross_entropy(net(values[self._tap]), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            epoch, step = divmod(done + 1, per_epoch)
            if step == 0 and epoch > self.epochs - last:
                tally.add_(torch.stack([_judge(net, *one) for one in data.values()]) / last)
            return {"loss": loss.detach()}

        state = {"net": net, "optimizer": optimizer, "tally": tally}
        whole = chained(source, per_epoch, self.epochs)
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


def _judge(net: nn.Module, x: Features, labels: Tensor) -> Tensor:
    """top1 and top5 in percent (2,), float64; top5 is 0 where there are five classes or fewer."""
    with frozen(net):
        parts = [x] if isinstance(x, Tensor) else blocks(x)
        scores = torch.cat([net(part.to(labels.device)) for part in parts])
        found = [m.value for m in accuracies(scores, labels)]
    return torch.tensor([*found, 0.0][:2], dtype=torch.float64)
