"""Pulls the features' mean to one; can be told to go wrong."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from bench.contracts import Method, Model
from bench.training import descend, epoch_batches, sgd, steps_of
from toy_units.part import STEP


@dataclass(frozen=True)
class Walker(Method):
    """Walks a few steps without labels."""

    paper: ClassVar[str] = "ours"

    lr: float = STEP
    batch_size: int = 12
    noise: float = 0.0
    groups: tuple[int, ...] = (1, 2)
    trouble: str = ""  # raise, kill, exit, oom, allocate, nan, slow
    trouble_seed: int = -1  # only for this seed; -1: for all
    trouble_file: str = ""  # only while this file does not exist: it is made just before

    def build(self, backbone, shape, generator):
        return Model(backbone.build(generator=generator))

    def train(self, model, data, run):
        optimizer = sgd(model, self.lr, 0.9, 0.0, nesterov=False)
        per_epoch = max(1, len(data) // self.batch_size)

        def update(done, batch):
            if done == 2 and self.trouble and self.trouble_seed in (-1, run.seed):
                self._go_wrong()
            scale = float("nan") if self.trouble == "nan" else 1.0
            noise = self.noise * torch.rand(())
            loss = ((model.encoder(data.images.pixels[batch]).mean() - 1 + noise) ** 2) * scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.saw(len(batch))
            return {"distance": loss.detach()}

        descend(
            run,
            total=steps_of(run.budget, per_epoch, self.batch_size),
            per_epoch=per_epoch,
            state={"model": model, "optimizer": optimizer},
            batches=lambda epoch, first: epoch_batches(len(data), self.batch_size, run.seed, epoch, first),
            update=update,
            model=model,
        )
        return model

    def _go_wrong(self):
        if self.trouble_file:
            if Path(self.trouble_file).exists():
                return
            Path(self.trouble_file).touch()
        if self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "exit":
            os._exit(7)
        if self.trouble == "oom":
            raise torch.OutOfMemoryError("no memory is left")
        if self.trouble == "allocate":
            torch.empty(10**15)
        if self.trouble == "slow":
            time.sleep(60)
        if self.trouble == "raise":
            raise RuntimeError("told to go wrong\nin two lines")
