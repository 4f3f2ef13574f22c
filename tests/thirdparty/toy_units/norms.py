"""Mean feature norms: numbers that show any change of the weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.contracts import Evaluation, Measurement


@dataclass(frozen=True)
class Norms(Evaluation):
    """The mean norm of the features."""

    paper: ClassVar[str] = "ours"

    factor: float = 1.0
    trouble: str = ""  # raise

    @torch.no_grad()
    def evaluate(self, model, target, run):
        for split, samples in (("validation", target.validation), ("test", target.test)):
            if self.trouble and split == "test":
                raise RuntimeError("cannot judge")
            norm = model.encoder(samples.images.pixels).norm(dim=1).mean()
            yield Measurement("norm", float(norm) * self.factor, "conv1", split)
