"""Percent of wrong classes by the method's own head."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.contracts import Evaluation, Measurement, TargetNeeds


@dataclass(frozen=True)
class Votes(Evaluation):
    """Needs a classifier."""

    paper: ClassVar[str] = "ours"
    needs: ClassVar[TargetNeeds] = TargetNeeds(head=True)

    @torch.no_grad()
    def evaluate(self, model, target, run):
        wrong = model(target.test.images.pixels).argmax(1) != target.test.labels
        yield Measurement("error", 100 * float(wrong.float().mean()))
