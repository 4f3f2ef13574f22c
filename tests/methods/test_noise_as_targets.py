"""Noise as targets against brute force and the written formula."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from bench.contracts import BenchError
from methods._loop import Batch, _Feed
from methods.noise_as_targets import NoiseAsTargets, best_permutation, targets


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_the_assignment_is_the_best_of_all_permutations(count) -> None:
    generator = torch.Generator().manual_seed(count)
    embedded, found = (F.normalize(torch.randn(count, 3, generator=generator)) for _ in range(2))
    cost = {
        order: sum(float((embedded[i] - found[j]).square().sum()) for i, j in enumerate(order))
        for order in itertools.permutations(range(count))
    }
    assert tuple(best_permutation(embedded, found).tolist()) == min(cost, key=cost.__getitem__)


def test_targets_are_fixed_and_spread_over_the_sphere() -> None:
    ids = torch.randperm(20_000)
    found = targets(ids, 5, seed=3)
    assert torch.allclose(found.norm(dim=1), torch.ones(len(ids)))
    assert found.mean(0).abs().max() < 0.02
    assert torch.allclose(found.T @ found / len(found), torch.eye(5) / 5, atol=0.01)
    assert torch.equal(targets(ids[:7], 5, seed=3), found[:7])  # whatever the batch
    assert not torch.equal(targets(ids[:7], 5, seed=4), found[:7])


def _batch(count: int = 6) -> Batch:
    views = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8)
    return Batch(torch.arange(3, 3 + count), [views])


def test_a_batch_exchanges_its_own_targets_in_every_third_epoch(backbone, data, make_run) -> None:
    method, run, batch = NoiseAsTargets(dim=8), make_run(), _batch()
    model = method.build(backbone, data.shape, torch.Generator().manual_seed(0))
    state = method.state(model, data, run)
    before = state["assignment"].clone()
    assert torch.equal(before.sort().values, torch.arange(len(data)))
    for epoch in (1, 2):
        method.begin_epoch(epoch, model, state, data, run)
        method.losses(model, state, batch, 0, 1)
        method.after_step(model, state, batch, 1)
        assert torch.equal(state["assignment"], before)
    method.begin_epoch(3, model, state, data, run)
    loss = method.losses(model, state, batch, 0, 1)["distance"]
    method.after_step(model, state, batch, 1)
    now = state["assignment"]
    assert not torch.equal(now, before)
    assert torch.equal(now[batch.index].sort().values, before[batch.index].sort().values)
    others = torch.ones(len(data), dtype=torch.bool).index_fill_(0, batch.index, value=False)
    assert torch.equal(now[others], before[others])

    embedded = F.normalize(model.parts["embedding"](model.encoder(batch.views[0]))).detach()
    wanted = targets(now[batch.index], 8, 0)
    by_hand = sum(float((e - t).square().sum()) for e, t in zip(embedded, wanted, strict=True))
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    half = NoiseAsTargets(dim=8, reduction="half_mean").losses(model, state, batch, 0, 1)["distance"]
    assert half.item() == pytest.approx(by_hand / 12, rel=1e-5)


def test_reassigning_never_lengthens_the_way(plain_backbone, data, make_run) -> None:
    method, run = NoiseAsTargets(dim=8, batch_size=12), make_run()
    model = method.build(plain_backbone, data.shape, torch.Generator().manual_seed(0))
    state = method.state(model, data, run)
    for batch in _Feed(method, data, run).batches(state, 0, 0):
        state["epoch"].fill_(1)
        kept = method.losses(model, state, batch, 0, 1)["distance"]
        state["epoch"].fill_(0)
        assert method.losses(model, state, batch, 0, 1)["distance"] <= kept + 1e-6


def test_wrong_settings_are_told() -> None:
    with pytest.raises(BenchError, match=r"noise_as_targets.reduction must be sum or half_mean"):
        NoiseAsTargets(reduction="mean")
    with pytest.raises(BenchError, match=r"noise_as_targets.every must be 1 or more"):
        NoiseAsTargets(every=0)
