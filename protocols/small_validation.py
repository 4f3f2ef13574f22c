"""How far a small validation set can be trusted: the error on many random draws of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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
from bench.metrics import hits
from protocols._features import OUTPUT
from protocols._own import scores
from protocols._scores import labeled


@dataclass(frozen=True)
class SmallValidation(Evaluation):
    """Percent wrong of n validation images: mean and standard deviation over random draws, for several n.

    Rows are ``error_n100`` and ``deviation_n100`` (over the draws, divided by their number less one) on
    "validation"; beside them ``error`` on "test" and on all validation images. A draw is without replacement
    and need not be balanced; of one draw, the smaller sets are parts of the larger ones.

    :param sizes: n; ``resamples``: draws of each (section 4.6: 10).
    :param side: of the center crop (0: the images as they are).
    """

    shrinks: ClassVar[dict[str, str]] = {"sizes": "validation"}
    paper: ClassVar[str] = (
        "Oliver, Odena, Raffel, Cubuk & Goodfellow, Realistic Evaluation of Deep Semi-Supervised Learning "
        "Algorithms, NeurIPS 2018"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(head=True)

    sizes: tuple[int, ...] = (50, 100, 200, 400, 1000)
    resamples: int = 10
    side: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or self.resamples < 2:
            raise BenchError(
                "small_validation needs sizes of at least 1 and at least 2 resamples,"
                f" not {self.sizes} and {self.resamples}"
            )

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        return (Tap(OUTPUT, side=self.side),)

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        """:raises BenchError: fewer validation images than the largest of ``sizes``."""
        yield Measurement("error", _percent(self._wrong(model, target.test, target.classes, run)))
        if len(target.validation) < max(self.sizes):
            raise BenchError(
                f"small_validation.sizes asks for {max(self.sizes)} validation images, but there are"
                f" {len(target.validation)}: write smaller sizes, or a larger target.validation"
            )
        wrong = self._wrong(model, target.validation, target.classes, run)
        yield Measurement("error", _percent(wrong), split="validation")
        generator = run.generator("small_validation")
        draws = torch.stack([torch.randperm(len(wrong), generator=generator) for _ in range(self.resamples)])
        for n in self.sizes:
            errors = 100.0 * wrong[draws[:, :n]].double().mean(1)
            yield Measurement(f"error_n{n}", float(errors.mean()), split="validation")
            yield Measurement(f"deviation_n{n}", float(errors.std()), split="validation")

    def _wrong(self, model: Model, samples: Samples, classes: int, run: Run) -> Tensor:
        """How surely each labeled image is put into a wrong class, (M,): 1 where scores are no numbers."""
        rows, labels = labeled(samples)
        (tap,) = self.taps(model.encoder)
        found = scores(model, samples, tap, classes, run)[rows]
        return 1 - torch.from_numpy(hits(found, labels))


def _percent(wrong: Tensor) -> float:
    return 100.0 * float(wrong.double().mean())
