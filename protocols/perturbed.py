"""What the worst small step does to images: the error after it, and a picture of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.augment import unit
from bench.contracts import BenchError, Evaluation, Measurement, Model, Picture, Run, Target, TargetNeeds
from bench.metrics import hits
from protocols._adversary import worst_direction
from protocols._features import frozen, in_order
from protocols._own import head_of
from protocols._scores import labeled
from protocols._views import center_view


@dataclass(frozen=True)
class Perturbed(Evaluation):
    """Percent wrong of test images that have made a step of each length in their virtual adversarial direction.

    Rows are ``error`` (no step) and ``error_e1`` for a step of 1. Steps are of pixels in [0, 1], whatever the
    network does with them, in single precision, and may leave that range but in the picture. From top to bottom it shows the
    images, then for every length the images after the step and the step itself on gray.

    :param epsilons: lengths of the step; ``xi``: of the finite difference; ``iterations`` of the power method.
    :param images: of how many test images, the first ones; 0: of all; ``shown``: of how many in the picture.
    :param side: of the center crop (0: the images as they are).
    """

    paper: ClassVar[str] = (
        "Miyato, Maeda, Koyama & Ishii, Virtual Adversarial Training: A Regularization Method for Supervised and"
        " Semi-Supervised Learning, TPAMI 2018"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(head=True)

    epsilons: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    xi: float = 1e-2
    iterations: int = 1
    images: int = 0
    shown: int = 8
    side: int = 0

    def __post_init__(self) -> None:
        if not self.epsilons or min(self.epsilons) <= 0 or self.iterations < 1 or self.xi <= 0:
            raise BenchError("perturbed needs epsilons and xi above 0, and at least one iteration")

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement | Picture]:
        rows, labels = labeled(target.test)
        if self.images:
            rows, labels = rows[: self.images], labels[: self.images]
        lengths = (0.0, *self.epsilons)
        wrong = torch.zeros(len(lengths), dtype=torch.float64)
        generator = run.generator("perturbed")
        places = in_order(len(rows))
        views = target.test.images.views([rows[p] for p in places], [center_view(self.side)], 0, 0)
        for place, (view,) in zip(places, views, strict=True):
            x = unit(view)
            start = torch.randn(x.shape, generator=generator).to(x)
            direction, scores = self._step(model, x, start, lengths)
            wrong += torch.tensor([(1 - hits(one, labels[place])).sum() for one in scores])
            if self.shown and not place[0]:
                yield Picture("perturbed", self.picture(x[: self.shown].cpu(), direction[: self.shown].cpu()))
        for length, count in zip(lengths, wrong.tolist(), strict=True):
            yield Measurement(f"error_e{length:g}" if length else "error", 100.0 * count / len(rows))

    def picture(self, x: Tensor, direction: Tensor) -> Tensor:
        """(3, H, W) in [0, 1] from images and unit directions (N, 3, h, w): a column an image."""
        bands = [x]
        for epsilon in self.epsilons:
            step = epsilon * direction
            bands += [x + step, 0.5 + step / 2]
        return torch.cat([torch.cat(list(band), 2) for band in bands], 1).float().clamp(0, 1)

    def _step(
        self, model: Model, x: Tensor, start: Tensor, lengths: tuple[float, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Unit directions, and the scores (N, C) after a step of each length."""
        head = head_of(model)

        def predict(x: Tensor) -> Tensor:
            return torch.as_tensor(head(model.encoder(x)))

        with frozen(model.encoder), frozen(head):
            direction = worst_direction(predict, x, start, xi=self.xi, iterations=self.iterations)
            return direction, [predict(x + length * direction) for length in lengths]
