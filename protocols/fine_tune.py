"""Training the encoder, or what lies above one of its layers, on a labeled target."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import (
    BenchError,
    Encoder,
    Evaluation,
    Measurement,
    Model,
    Run,
    Samples,
    Target,
    TargetNeeds,
    initialize,
)
from bench.records import later
from bench.training import DivergedError, Schedule, descend, epoch_batches, set_rate, sgd
from protocols._dense import NORMS, learned, parts_above
from protocols._features import frozen, in_order
from protocols._scores import accuracies, best, labeled
from protocols._views import AUGMENTS, PADDINGS, center_view, random_view

GRID = 6  # pool5's side
Batch: TypeAlias = "tuple[Tensor, Tensor]"  # images (N, 3, h, w), labels (N,)


@dataclass(frozen=True)
class FineTune(Evaluation):
    """A new linear classifier on the encoder, both trained on the target's labels.

    Defaults are Instance Discrimination's for few labels (section 4.3).

    :param learning_rates: each is a training of its own; validation chooses.
    :param from_layer: what lies above this layer is made anew (as RotNet's non-linear classifiers); "":
        nothing is. ``hidden``: where no fully connected layers are among it, two of so many units are put on the
        last maps, averaged to 6x6, as AlexNet's fc6 and fc7; 0: none.
    :param freeze: what lies up to ``from_layer`` ("": the whole encoder) keeps its weights and statistics.
    :param augment: the views of training, see :func:`protocols._views.random_view`.
    :param side: of the crop (0: the images as they are, padded by ``pad`` pixels when they are cropped, by
        reflection or, with ``padding`` ``zeros``, by black).
    :param batch_norm: ``frozen``: the pretrained layers normalize by the statistics that they came with.
    """

    shrinks: ClassVar[dict[str, str]] = {"batch_size": "batch"}
    paper: ClassVar[str] = (
        "Wu, Xiong, Yu & Lin, Unsupervised Feature Learning via Non-Parametric Instance Discrimination, "
        "CVPR 2018"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(trainable=True)

    learning_rates: tuple[float, ...] = (0.01,)
    epochs: int = 70
    batch_size: int = 256
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "step"
    drops: tuple[float, ...] = (30 / 70, 60 / 70)
    gamma: float = 0.1
    from_layer: str = ""
    freeze: bool = False
    augment: str = "crop_flip"
    side: int = 0
    pad: int = 4
    batch_norm: str = "train"
    padding: str = later("reflect")
    hidden: int = later(0)

    def __post_init__(self) -> None:
        choices = {"augment": AUGMENTS, "batch_norm": ("train", "frozen"), "padding": PADDINGS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise BenchError(f"fine_tune.{name} is {getattr(self, name)!r}; write {' or '.join(known)}")

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        parts = {"test": target.test, "validation": target.validation}
        if not len(target.validation):
            del parts["validation"]
            if len(self.learning_rates) > 1:
                raise BenchError(
                    "fine_tune chooses on validation, and there is none: write validation = 1000"
                )
        scores = _Tuning(self, model.encoder, target, parts, run).descend()
        found = {split: list(self._accuracies(scores[split], part, split)) for split, part in parts.items()}
        chosen = 0
        if len(self.learning_rates) > 1:
            chosen = best(torch.tensor([measured[1].value for measured in found["validation"]]))
        if not scores["test"][chosen].isfinite().all():
            raise DivergedError("every learning rate of fine_tune diverged (try smaller ones)")
        yield Measurement("lr", self.learning_rates[chosen], split="validation")
        for by_rate in found.values():
            yield from by_rate[chosen]

    def _accuracies(self, scores: Tensor, samples: Samples, split: str) -> Iterator[list[Measurement]]:
        """For each rate's scores (N, C): error, top1, and top5 where there are classes enough."""
        rows, labels = labeled(samples)
        for one in scores:
            found = list(accuracies(one[rows], labels, split=split))
            yield [Measurement("error", 100.0 - found[0].value, split=split), *found]


class _Tuning:
    """The trainings of one evaluation, one after the other by learning rate."""

    def __init__(
        self, protocol: FineTune, encoder: Encoder, target: Target, parts: Mapping[str, Samples], run: Run
    ) -> None:
        self.protocol, self.run, self.parts, self.images = protocol, run, parts, target.train.images
        self.net = self._build(encoder, target.classes)
        self.first = copy.deepcopy(self.net.state_dict())
        self.optimizer = sgd(
            self.net, 0.0, protocol.momentum, protocol.weight_decay, nesterov=protocol.nesterov
        )
        self.rows, labels = labeled(target.train)
        self.labels = labels.to(run.device)
        self.per_epoch = len(epoch_batches(len(self.rows), protocol.batch_size, 0, 0))
        self.once = protocol.epochs * self.per_epoch  # steps of one training
        self.schedule = Schedule(protocol.schedule, protocol.drops, protocol.gamma)
        view = (protocol.augment, protocol.side, protocol.pad)
        self.frame = random_view(self.images, *view, flip=target.flip, padding=protocol.padding)
        count = len(protocol.learning_rates)
        self.scores = {split: torch.zeros(count, len(p), target.classes) for split, p in parts.items()}

    def _build(self, encoder: Encoder, classes: int) -> _Tuned:
        """On a copy: other protocols judge the model after this one."""
        protocol, generator = self.protocol, self.run.generator("fine_tune")
        settled = protocol.batch_norm == "frozen" or protocol.freeze
        anew = protocol.from_layer, protocol.hidden
        net = _Tuned(copy.deepcopy(encoder), *anew, classes, settled, generator)
        net.encoder.requires_grad_(not protocol.freeze)
        return net.to(self.run.device)

    def descend(self) -> dict[str, Tensor]:
        """Train; returns the class scores (R, N, C) of each judged split."""
        scores = {f"scores.{split}": value for split, value in self.scores.items()}
        descend(
            self.run,
            total=self.once * len(self.protocol.learning_rates),
            per_epoch=self.per_epoch,
            state={"net": self.net, "optimizer": self.optimizer, **scores},
            batches=self._batches,
            update=self._update,
            begin_epoch=self._begin_epoch,
            end_epoch=self._end_epoch,
        )
        return self.scores

    def _begin_epoch(self, epoch: int) -> None:
        if epoch % self.protocol.epochs == 0:
            self.net.load_state_dict(self.first)
            self.optimizer.state.clear()

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        epoch %= self.protocol.epochs
        picks = epoch_batches(len(self.rows), self.protocol.batch_size, self.run.seed, epoch, start)
        views = self.images.views([self.rows[p] for p in picks], [self.frame], self.run.seed, epoch)
        for pick, (view,) in zip(picks, views, strict=True):
            yield view, self.labels[pick.to(self.labels.device)]

    def _update(self, done: int, batch: Batch) -> dict[str, Tensor]:
        which, step = divmod(done, self.once)
        set_rate(self.optimizer, self.protocol.learning_rates[which] * self.schedule(step, self.once))
        self.net.train()
        with self.run.autocast():
            logits = self.net(batch[0])
        loss = F.cross_entropy(logits.float(), batch[1])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        self.optimizer.step()
        # Where validation chooses, one rate may diverge: it scores nothing and loses.
        several = len(self.protocol.learning_rates) > 1
        return {"loss": loss.detach().nan_to_num(nan=1e9, posinf=1e9) if several else loss.detach()}

    def _end_epoch(self, epoch: int) -> None:
        which, left = divmod(epoch + 1, self.protocol.epochs)
        if left == 0:
            for split, samples in self.parts.items():
                self.scores[split][which - 1] = self._judge(samples)

    def _judge(self, samples: Samples) -> Tensor:
        """Class scores (N, C) of all images, float32 on the CPU."""
        views = samples.images.views(in_order(len(samples)), [center_view(self.protocol.side)], 0, 0)
        with frozen(self.net), self.run.autocast():
            return torch.cat([self.net(view).float().cpu() for (view,) in views])


def _above(encoder: Encoder, layer: str, hidden: int, generator: torch.Generator) -> tuple[nn.Module, int]:
    """What is made anew above a layer, and its width."""
    above, parts = encoder.above(layer, generator), parts_above(encoder, layer)
    if not hidden or parts is None or learned(encoder.top):
        return above.requires_grad_(), encoder.dim
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(GRID), nn.Flatten()]
    for fan_in in (encoder.channels[encoder.layers[-1]] * GRID**2, hidden):
        layers += [nn.Linear(fan_in, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    connected = nn.Sequential(*layers)
    initialize(connected, generator)
    return nn.Sequential(*list(above.children())[: len(parts)], connected).requires_grad_(), hidden


class _Tuned(nn.Module):
    """An encoder, what was made anew above one of its layers (if any), and a linear classifier."""

    def __init__(
        self,
        encoder: Encoder,
        layer: str,
        hidden: int,
        classes: int,
        frozen_norm: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder, self.layer, self.frozen_norm = encoder, layer, frozen_norm
        self.above: nn.Module | None = None
        width = encoder.dim
        if layer:
            self.above, width = _above(encoder, layer, hidden, generator)
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator) * 0.01)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        if self.above is None:
            features = self.encoder(images)
        else:
            features = self.above(self.encoder.activations(images, (self.layer,))[self.layer])
        scores: Tensor = self.head(features)
        return scores

    def train(self, mode: bool = True) -> _Tuned:
        """Frozen normalization layers stay in evaluation mode."""
        super().train(mode)
        for part in self.encoder.modules():
            if self.frozen_norm and isinstance(part, NORMS):
                part.eval()
        return self
