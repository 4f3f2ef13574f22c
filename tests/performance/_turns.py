"""A training and its bare steps by turns, so that both meet the same machine."""

from __future__ import annotations

import time

import torch

BAR = 0.9  # of the bare steps' images a second
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
