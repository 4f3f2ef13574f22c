"""One linear classifier on each layer of a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.contracts import (
    BenchError,
    Encoder,
    Evaluation,
    Measurement,
    Model,
    Run,
    Samples,
    Tap,
    Target,
    TargetNeeds,
)
from bench.features import Features, blocks, chosen
from bench.records import later
from bench.training import Schedule, descend, epoch_batches
from protocols._batches import Batch, check_batch_norm, source_of
from protocols._crops import Linear, ten_crop_scores
from protocols._features import chained, column, features, frozen
from protocols._heads import Descent, Heads
from protocols._scores import accuracies, best, labeled, top
from protocols._views import AUGMENTS, PADDINGS


@dataclass(frozen=True)
class LinearProbe(Evaluation):
    """A logistic regression per layer, all layers and learning rates in one training.

    Defaults are RotNet's recipe; others are called by name, as ``recipe = "zhang"`` (linear_probe.toml). What a layer's learning rate is, validation decides.

    :param layers: the taps; () is all of the encoder's.
    :param pooling: a name of ``bench.pooling``, ``size`` its parameter. At most 9,600 numbers of an
        adaptive maximum are RotNet's grids on AlexNet, and something as wide on any other backbone.
    :param feature_norm: ``batch`` (a map's places share its statistics; without scale and shift), ``standardize``
        (each number by the training set's statistics) or ``none``.
    :param drops: fractions of the training after which the rate is multiplied by ``gamma``.
    :param augment: the views of training, see :func:`protocols._views.random_view`: the frozen encoder runs in every
        step; ``none``: features are cached.
    :param side: of the crop (0: the images as they are, padded by ``pad`` pixels when they are cropped, by
        reflection or, with ``padding`` ``zeros``, by black). ``square``: images are resized to so many pixels a side
        before the crop, their aspect ignored; 0: their shorter side to ``side`` * 256 / 224.
    :param bias_rate: times the rate that biases learn with; they are not decayed.
    :param select: ``last`` epoch, or the epoch that was ``best`` on validation.
    :param test: what is judged: the ``center`` of an image, or ten crops of ``side``, whose probabilities
        (``ten_softmax``: DeepCluster's code) or scores (``ten_scores``: Asano et al.'s) are averaged. Choices rest
        on centers alone.
    """

    shrinks: ClassVar[dict[str, str]] = {"batch_size": "batch"}
    paper: ClassVar[str] = (
        "Zhang, Isola & Efros, Colorful Image Colorization, ECCV 2016; "
        "Gidaris, Singh & Komodakis, Unsupervised Representation Learning by Predicting Image Rotations, "
        "ICLR 2018"
    )
    from_description: ClassVar[str] = (
        "zhang_resize alone: bilinear by the text, the code of Caffe's layer was not found"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(spatial=True)

    layers: tuple[str, ...] = ()
    pooling: str = "dims_max"
    size: int = 9600
    feature_norm: str = "batch"
    learning_rates: tuple[float, ...] = (0.01,)
    epochs: int = 35
    batch_size: int = 192
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "step"
    drops: tuple[float, ...] = (5 / 35, 15 / 35, 25 / 35)
    gamma: float = 0.2
    augment: str = "crop_flip"
    side: int = 0
    pad: int = 4
    select: str = "last"
    test: str = later("center")
    square: int = later(0)
    padding: str = later("reflect")
    bias_rate: float = later(1.0)

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise BenchError(
                    f"linear_probe.{name} is {getattr(self, name)!r}; write {' or '.join(known)}"
                )
        if self.test != "center" and not self.side:
            raise BenchError(f"linear_probe.test is {self.test!r}, which needs a side, as in side = 224")

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        """All layers; none when each step sees a new crop."""
        return self._read(encoder) if self.augment == "none" else ()

    def _read(self, encoder: Encoder) -> list[Tap]:
        how = (self.pooling, self.size, self.side, self.square)
        return [Tap(layer, *how) for layer in self.layers or encoder.layers]

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        taps = self._read(model.encoder)
        if not len(target.validation) and (len(self.learning_rates) > 1 or self.select == "best"):
            raise BenchError(
                "linear_probe chooses on validation, and there is none: write target.validation = 1000"
            )
        if self.feature_norm == "batch":
            check_batch_norm(
                "linear_probe", target.train, self.batch_size, 'feature_norm = "standardize", or '
            )
        parts = {"test": target.test, "validation": target.validation}
        judged = {k: _Judged(features(model, s, taps, run), s) for k, s in parts.items() if len(s)}
        descent = Descent(
            self.learning_rates, self.momentum, self.nesterov, self.weight_decay, self.bias_rate
        )
        dims = {tap: judged["test"].features[tap].shape[1] for tap in taps}
        maps = model.encoder.channels
        heads = {
            tap: Heads(
                dims[tap], target.classes, descent, self.feature_norm, run.device, maps.get(tap.layer, 0)
            )
            for tap in taps
        }
        kept = self._train(heads, model, target, judged, run)
        chosen: dict[Tap, tuple[float, Linear]] = {}
        for tap in taps:
            weight, bias = (
                (kept[tap].weight, kept[tap].bias) if self.select == "best" else heads[tap].folded()
            )
            one = best(judged["validation"].top1(tap, weight, bias)) if len(weight) > 1 else 0
            chosen[tap] = self.learning_rates[one], (weight[one], bias[one])
        linear = {tap: head for tap, (_, head) in chosen.items()}
        crops = {split: self._crops(model.encoder, parts[split], linear, run) for split in judged}
        for tap, (rate, head) in chosen.items():
            yield Measurement("lr", rate, column(tap.layer), "validation")
            for split, part in judged.items():
                scores = crops[split][tap][part.rows] if crops[split] else part.scores(tap, *head)
                yield from accuracies(scores, part.labels, layer=column(tap.layer), split=split)

    def _crops(
        self, encoder: Encoder, samples: Samples, linear: Mapping[Tap, Linear], run: Run
    ) -> Mapping[Tap, Tensor]:
        """Class scores (N, C) by ten crops of each image, for each layer; nothing where centers are judged."""
        if self.test == "center":
            return {}
        softmax = self.test == "ten_softmax"
        return ten_crop_scores(encoder, samples.images, linear, run, softmax=softmax)

    def _train(
        self,
        heads: Mapping[Tap, Heads],
        model: Model,
        target: Target,
        judged: Mapping[str, _Judged],
        run: Run,
    ) -> dict[Tap, _Kept]:
        batches = source_of(self, model, target, list(heads), run)
        if self.feature_norm == "standardize":
            for tap, value in features(model, target.train, list(heads), run).items():
                heads[tap].fit(value)
        kept = {tap: _Kept(h) for tap, h in heads.items() if self.select == "best"}
        per_epoch = len(epoch_batches(batches.count, self.batch_size, 0, 0))
        total = self.epochs * per_epoch
        schedule = Schedule(self.schedule, self.drops, self.gamma)

        def update(done: int, batch: Batch) -> dict[str, Tensor]:
            labels, values = batch
            factor = schedule(done, total)
            losses = torch.stack([h.step(values[tap], labels, factor) for tap, h in heads.items()])
            if (done + 1) % per_epoch == 0:
                for tap, k in kept.items():
                    k.offer(judged["validation"], tap, heads[tap])
            # One rate of several may diverge; that the best of them does is an error.
            return {"loss": losses.nan_to_num(nan=torch.inf).amin(1).mean()}

        state: dict[str, nn.Module] = {f"{tap.layer}.heads": h for tap, h in heads.items()}
        state |= {f"{tap.layer}.kept": k for tap, k in kept.items()}
        with frozen(model.encoder):
            descend(
                run,
                total=total,
                per_epoch=total,
                state=state,
                batches=chained(batches, per_epoch, self.epochs),
                update=update,
            )
        return kept


_CHOICES = {
    "feature_norm": ("batch", "standardize", "none"),
    "augment": AUGMENTS,
    "padding": PADDINGS,
    "select": ("last", "best"),
    "test": ("center", "ten_softmax", "ten_scores"),
}


class _Judged:
    """A split's features and labels, to be scored."""

    def __init__(self, found: Mapping[Tap, Features], samples: Samples) -> None:
        self.features = found
        self.rows, self.labels = labeled(samples)

    def scores(self, tap: Tap, weight: Tensor, bias: Tensor) -> Tensor:
        """(M, C) of one head with weight (C, d)."""
        bias, weight = bias.cpu(), weight.cpu().t()
        parts = blocks(chosen(self.features[tap], self.rows))
        return torch.cat([torch.addmm(bias, part, weight) for part in parts])

    def top1(self, tap: Tap, weight: Tensor, bias: Tensor) -> Tensor:
        """Percent (R,) of heads with weights (R, C, d)."""
        return torch.tensor(
            [top(self.scores(tap, w, b), self.labels) for w, b in zip(weight, bias, strict=True)]
        )


class _Kept(nn.Module):
    """Each rate's weights at the epoch that was best on validation."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        weight, bias = heads.folded()
        self.weight = nn.Buffer(torch.zeros_like(weight))
        self.bias = nn.Buffer(torch.zeros_like(bias))
        self.top1 = nn.Buffer(torch.full((heads.count,), -1.0, device=weight.device))

    def offer(self, validation: _Judged, tap: Tap, heads: Heads) -> None:
        """Keep the rates' weights that are better on validation than any before."""
        weight, bias = heads.folded()
        top1 = validation.top1(tap, weight, bias).to(self.top1.device)
        better = top1 > self.top1
        self.top1.copy_(torch.where(better, top1, self.top1))
        self.weight[better], self.bias[better] = weight[better], bias[better]
