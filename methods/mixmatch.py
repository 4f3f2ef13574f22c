"""MixMatch: guess labels from several views, sharpen them, and mix everything with everything."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import Backbone, BenchError, DataShape, Frame, Model, Run, TrainingSet
from methods._apart import ApartLoop
from methods._loop import Batch, State
from methods.parts import teacher
from methods.parts.decay import shrink
from methods.parts.mixing import mix, partners, shares
from methods.parts.network import classify, inputs, one_hot
from methods.parts.normalization import unrecorded
from methods.parts.ramps import warm_up

_MIXED = ("all", "none", "labeled", "unlabeled", "separate")


@dataclass(frozen=True)
class MixMatch(ApartLoop):
    """Cross-entropy on mixed labeled images plus the squared distance to sharpened guesses on mixed unlabeled ones.

    Defaults of CIFAR-10 (CIFAR-100: weight 150, decay 8e-4 by the paper; SVHN: weight 250; STL-10: 50). The
    ablation's rows: ``guesses`` 1, 3, 4; ``temperature`` 1; ``guess_by_average``; ``mixed`` none, labeled,
    unlabeled, separate. The model handed back is the average of the student's weights, with its running
    statistics; in its first steps a true average, where the release keeps .999 from the start.

    :param guesses: K, views whose predictions are averaged; ``temperature``: T of the sharpening.
    :param mixed: ``all`` with all, ``none``, ``labeled`` or ``unlabeled`` alone among themselves, or both so.
    :param alpha: of Beta(alpha, alpha); ``per_sample``: a lambda for each row, as released, or (a port of
        others) one for all.
    :param weight: lambda_U; ``ramp``: part of the training over which it rises linearly.
    :param decay: the part of itself that every kernel loses in a step: 4e-4 in the paper, 4e-5 as released
        (.02 times the rate of .002).
    :param interleaved: each forward pass holds its part of all rows and the first one moves batch norm's running
        statistics, as released (the paper does not say); else labeled rows first, then one view after another.
    :param average: the highest weight of the past in the model; ``guess_by_average``: it guesses the labels.
    """

    paper: ClassVar[str] = (
        "Berthelot, Carlini, Goodfellow, Papernot, Oliver & Raffel, MixMatch: A Holistic Approach to"
        " Semi-Supervised Learning, NeurIPS 2019"
    )
    variants: ClassVar[tuple[str, ...]] = ("student",)

    lr: float = 0.002
    weight_decay: float = 0.0
    batch_size: int = 128
    labeled_batch: int = 64
    optimizer: str = "adam"
    augment: str = "pad_crop_flip"
    guesses: int = 2
    temperature: float = 0.5
    mixed: str = "all"
    alpha: float = 0.75
    per_sample: bool = True
    weight: float = 75.0
    ramp: float = 16_000 / 2**20
    decay: float = 4e-4
    interleaved: bool = True
    average: float = 0.999
    guess_by_average: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixed not in _MIXED:
            raise BenchError(f"mixmatch.mixed must be one of {', '.join(_MIXED)}, not {self.mixed!r}")
        if self.guesses < 1 or self.temperature <= 0:
            raise BenchError("mixmatch.guesses must be at least 1, and temperature more than 0")

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The average, and its like as the variant ``student``."""
        return teacher.with_student(backbone, shape, generator)

    def learner(self, model: Model) -> nn.Module:
        """Gradients reach the student alone."""
        return teacher.student_of(model)

    def frames(self, shape: DataShape) -> tuple[Frame, ...]:
        """K views; of labeled images the first one is used."""
        return (self.view(shape),) * self.guesses

    def passes(self, shape: DataShape) -> float:
        """Each view is guessed, without gradient, then learned."""
        return self.cost(shape, 1, self.guesses * 4 / 3)

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """Nothing but the student's start."""
        teacher.start(model)
        return {}

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 2 to 5: H(p, f(X')) plus lambda_U 1/(L |U'|) |q - f(U')|^2, with X', U' of algorithm 1."""
        student, n = teacher.student_of(model), self.rows
        views = [inputs(student, view) for view in batch.views]
        hidden = [view[n:] for view in views]
        q = self.guess(model if self.guess_by_average else student, hidden)
        rows = torch.cat([views[0][:n], *hidden])
        labels = torch.cat([one_hot(batch.targets[:n], student), *[q] * self.guesses])
        rows, labels = self.mix(rows, labels, n)
        scores = self.scores(student, rows, n).float()
        weight = self.weight * warm_up(done / total, self.ramp)
        return {
            "class": F.cross_entropy(scores[:n], labels[:n]),
            "guess": weight * F.mse_loss(scores[n:].softmax(1), labels[n:]),
        }

    @torch.no_grad()
    def guess(self, guesser: Model, views: list[Tensor]) -> Tensor:
        """Eq. 6 and 7: the mean prediction over the views, sharpened; each view is a batch of its own."""
        with unrecorded(guesser):
            mean = torch.stack([classify(guesser, view).float().softmax(1) for view in views]).mean(0)
        torch.clear_autocast_cache()  # weights that were cast here have no gradient
        return sharpen(mean, self.temperature)

    def mix(self, rows: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Algorithm 1, lines 12 to 14: each row, which keeps the larger share, with one of the shuffled rows."""
        other, own = torch.arange(len(rows), device=rows.device), torch.arange(len(rows), device=rows.device)
        if self.mixed == "all":
            other = partners(rows)
        if self.mixed in {"labeled", "separate"}:
            other = torch.cat([partners(rows[:n]), own[n:]])
        if self.mixed in {"unlabeled", "separate"}:
            other = torch.cat([other[:n], n + partners(rows[n:])])
        share = shares(rows, self.alpha, per_sample=self.per_sample, dominant=True)
        return mix(rows, rows[other], share), mix(labels, labels[other], share)

    def scores(self, student: Model, rows: Tensor, n: int) -> Tensor:
        """K + 1 forward passes, of which the first one moves batch norm's running statistics."""
        at = torch.arange(len(rows), device=rows.device)
        size = (len(rows) - n) // self.guesses
        parts = [at[i :: self.guesses + 1] for i in range(self.guesses + 1)]
        if not self.interleaved:
            parts = [at[:n], *at[n:].split(size)]  # type: ignore[no-untyped-call]
        found = []
        for i, part in enumerate(parts):
            with unrecorded(student) if i else contextlib.nullcontext():
                found.append(classify(student, rows[part]))
        return torch.cat(found)[torch.argsort(torch.cat(parts))]

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """Decay apart from the gradient, then the average."""
        shrink(teacher.student_of(model), self.decay)
        teacher.follow(model, done, self.average)
        teacher.follow_statistics(model)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Eq. 7: p^(1/T), its rows summing to 1."""
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)
