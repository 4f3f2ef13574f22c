"""The map and the two numbers beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from bench.contracts import Measurement, Picture
from bench.records import BenchError
from protocols.embedding import Embedding

TINY = {"images": 80, "iterations": 250, "perplexity": 10.0, "picture_side": 200}


def judged(model, target, run, **settings):
    found = list(Embedding(**{**TINY, **settings}).evaluate(model, target, run))
    (picture,) = (p for p in found if isinstance(p, Picture))
    return {m.metric: m.value for m in found if isinstance(m, Measurement)}, picture.image


def test_the_same_seed_draws_the_same_map(model, target, make_run):
    one, picture = judged(model, target, make_run())
    other, again = judged(model, target, make_run())
    assert one == other
    assert torch.equal(picture, again)
    assert picture.shape == (3, 200, 250)
    assert picture.min() >= 0
    assert len(picture.flatten(1).unique(dim=1).T) > 3  # points of several colors on white


def test_trustworthiness_and_accuracy_by_their_definitions(model, target, make_run, monkeypatch):
    kept = {}
    real = Embedding._map

    def keep(self, x, seed):
        kept["x"], kept["y"] = x, real(self, x, seed)
        return kept["y"]

    monkeypatch.setattr(Embedding, "_map", keep)
    found, _ = judged(model, target, make_run(), neighbors=3)
    x, y, n, k = kept["x"].astype(float), kept["y"].astype(float), 80, 3
    above, below = cdist(x, x), cdist(y, y)
    np.fill_diagonal(above, np.inf)
    np.fill_diagonal(below, np.inf)
    rank = above.argsort(1).argsort(1) + 1
    penalty = sum(max(0, rank[i, j] - k) for i in range(n) for j in below[i].argsort()[:k])
    assert found["trustworthiness"] == pytest.approx(
        1 - 2 / (n * k * (2 * n - 3 * k - 1)) * penalty, abs=1e-9
    )
    order = torch.randperm(150, generator=make_run().generator("embedding"))[:40].sort().values
    names = target.train.labels[order]
    order = torch.randperm(90, generator=make_run().generator("embedding"))[:40].sort().values
    right = 0
    for i, label in enumerate(target.test.labels[order], 40):
        near = names[below[i, :40].argsort()[:3].tolist()]
        votes = torch.bincount(near, minlength=3)
        first = (votes == votes.max()).nonzero().flatten().tolist()  # of several, each has the same chance
        right += first.count(int(label)) / len(first)
    assert found["top1_map"] == pytest.approx(100 * right / 40)


def test_too_few_iterations_are_told():
    with pytest.raises(BenchError, match="250 or more"):
        Embedding(iterations=100)
