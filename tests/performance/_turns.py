"""A training and its bare steps by turns, so that both meet the same machine."""

from __future__ import annotations

import time

import torch
from _ratio import middle, tell

from bench.cache import FileCache
from bench.session import Session

BAR = 0.9  # of the bare steps' images a second
CLEAR = BAR + 0.02  # where half of the turns are enough
WARM = 2  # turns that are not counted
CPU = torch.device("cpu")
COUNT = 3000


class Turns:
    """Called after every step of the training: after ``steps`` of them it takes as many bare ones."""

    def __init__(self, bare, steps):
        self.bare, self.steps, self.pairs, self.begin = bare, steps, [], 0.0

    def __call__(self, done, total):
        if done % self.steps:
            return
        begin, between = self.begin, time.process_time()
        for _ in range(self.steps):
            self.bare.step()
        self.begin = time.process_time()
        self.pairs.append((self.begin - between, between - begin))


def keeps_up(what, folder, method, build, bare, data, *, steps, turns, precision="fp32"):
    """Whether a training is as fast as its bare steps, by ``turns`` turns of ``steps`` steps.

    Half of them do where they are clear. A busy moment is measured again: what is really slower falls short twice.

    :param build: () -> a fresh model; ``bare``: (model, run) -> what has a ``step``.
    """

    def measure(place, turns):
        epochs = steps * (WARM + turns) / (COUNT // method.batch_size)
        run = Session(
            place,
            seed=0,
            device=CPU,
            cache=FileCache(place),
            precision=precision,
            budget=f"{epochs:.4f} epochs",
        )
        run.report = watch = Turns(bare(build(), run), steps)
        method.train(build(), data, run)
        return middle(watch.pairs[WARM:])

    for place, count, bar in (("half", turns // 2, CLEAR), ("first", turns, BAR), ("again", turns, BAR)):
        ratio = measure(folder / place, count)
        if ratio >= bar:
            break
    tell(f"training, {what}", ratio, f"at least {BAR}")
    return ratio >= bar
