"""Naps at every step, saves every few, and can be told to hang or to fill the memory."""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.contracts import Method, Model
from bench.training import descend, epoch_batches, sgd, steps_of


@dataclass(frozen=True)
class Napper(Method):
    """Walks slowly, one nap a step."""

    paper: ClassVar[str] = "ours"

    nap: float = 0.05  # seconds
    hang: int = -1  # for this seed: forever, without a sign of life
    hog: int = -1  # for this seed: takes megabytes until somebody ends it
    megabytes: int = 4000

    def build(self, backbone, shape, generator):
        return Model(backbone.build(generator=generator))

    def train(self, model, data, run):
        optimizer = sgd(model, 0.01, 0.9, 0.0, nesterov=False)
        filled = []

        def update(done, batch):
            time.sleep(3600 if run.seed == self.hang else self.nap)
            while run.seed == self.hog and len(filled) < self.megabytes // 100:
                filled.append(torch.ones(100 * 2**18))
                time.sleep(0.1)
            loss = (model.encoder(data.images.pixels[batch]).mean() - 1 + 0.1 * torch.rand(())) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.saw(len(batch))
            return {"distance": loss.detach()}

        descend(
            run,
            total=steps_of(run.budget, 3, 12),
            per_epoch=3,
            state={"model": model, "optimizer": optimizer},
            batches=lambda epoch, first: epoch_batches(len(data), 12, run.seed, epoch, first),
            update=update,
            model=model,
        )
        return model
