"""The error of the classifier that the method itself made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

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
from bench.features import blocks, chosen
from protocols._features import OUTPUT, features, frozen
from protocols._scores import accuracies, labeled


@dataclass(frozen=True)
class Error(Evaluation):
    """Percent of images that the method's own head puts into a wrong class.

    Each kept snapshot has one row: last, median of the last 20 and best on validation are chosen when
    a table is made.

    :param side: of the center crop (0: the images as they are).
    """

    paper: ClassVar[str] = (
        "Oliver, Odena, Raffel, Cubuk & Goodfellow, Realistic Evaluation of Deep Semi-Supervised Learning "
        "Algorithms, NeurIPS 2018"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(head=True)

    side: int = 0

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        return (Tap(OUTPUT, side=self.side),)

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        for split, samples in (("test", target.test), ("validation", target.validation)):
            if len(samples):
                yield from self._judge(model, samples, split, target.classes, run)

    def _judge(
        self, model: Model, samples: Samples, split: str, classes: int, run: Run
    ) -> Iterator[Measurement]:
        if model.head is None:
            raise BenchError("this model has no classifier of its own")
        rows, labels = labeled(samples)
        (tap,) = self.taps(model.encoder)
        outputs = chosen(features(model, samples, [tap], run)[tap], rows)
        with frozen(model.head), run.autocast():
            scores = torch.cat(
                [model.head(part.to(run.device)).float().cpu() for part in blocks(outputs, 1024)]
            )
        if scores.shape[1] != classes:
            raise BenchError(
                f"the model's classifier knows {scores.shape[1]} classes, {samples.name} has {classes}"
            )
        for found in accuracies(scores, labels, split=split):
            if found.metric == "top1":
                yield Measurement("error", 100.0 - found.value, split=split)
            yield found
