"""Random numbers without a state: right by an independent count, uniform, and free of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from bench.draws import Draws, combine, mix, order, seed_of

MASK = (1 << 64) - 1


def splitmix(x: int) -> int:
    """SplitMix64's finalizer over Python's own integers."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def unsigned(x) -> int:
    return int(x) & MASK


def test_mix_is_splitmix64s_finalizer():
    values = [0, 1, -1, 2**62, -(2**63), 2**63 - 1, 0x123456789ABCDEF]
    assert [unsigned(v) for v in mix(torch.tensor(values))] == [splitmix(v) for v in values]


def test_mix_of_weyl_steps_gives_the_published_sequence_of_seed_1234567():
    # The first outputs of the reference generator, as printed in Rosetta Code's "SplitMix64".
    steps = torch.tensor(
        [(1234567 + (i + 1) * 0x9E3779B97F4A7C15) & MASK for i in range(3)], dtype=torch.uint64
    )
    found = [unsigned(v) for v in mix(steps.view(torch.int64))]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_values_are_pinned():
    assert seed_of(0, 1, 2) == 6768782832058643234
    assert order(8, 3).tolist() == [4, 6, 3, 0, 5, 7, 1, 2]
    draws = Draws(7, 2, torch.arange(3), stream=1)
    assert draws.integers(1000, 2).tolist() == [[362, 829], [999, 11], [243, 488]]
    assert draws.uniform().tolist() == [0.44646310806274414, 0.746373176574707, 0.04600679874420166]


@pytest.mark.parametrize("bins", [2, 10, 64])
def test_integers_are_uniform_over_samples_and_over_lanes(bins):
    for drawn in (
        Draws(0, 0, torch.arange(20_000)).integers(bins),
        Draws(0, 0, torch.arange(4)).integers(bins, 50, 100),
        torch.cat([Draws(0, epoch, torch.arange(10)).integers(bins) for epoch in range(2000)]),
        torch.cat([Draws(seed, 0, torch.arange(10)).integers(bins) for seed in range(2000)]),
        torch.cat([Draws(0, 0, torch.arange(10), stream=s).integers(bins) for s in range(2000)]),
    ):
        counts = np.bincount(drawn.flatten().numpy(), minlength=bins)
        assert len(counts) == bins
        assert stats.chisquare(counts).pvalue > 1e-3


def test_successive_draws_of_one_sample_are_uniform_and_uncorrelated():
    draws = Draws(5, 0, torch.arange(8))
    series = torch.stack([draws.uniform() for _ in range(4000)])  # (draw, sample)
    for column in series.T.numpy():
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(series.T.numpy()) - np.eye(8)
    assert np.abs(correlation).max() < 0.06
    lag = np.corrcoef(series[1:].flatten().numpy(), series[:-1].flatten().numpy())[0, 1]
    assert abs(lag) < 0.02


def test_uniform_stays_below_one_and_normal_is_normal():
    drawn = Draws(1, 1, torch.arange(50_000))
    unit = drawn.uniform()
    assert unit.min() >= 0
    assert unit.max() < 1
    assert unit.dtype == torch.float32
    assert stats.kstest(drawn.normal().numpy(), "norm").pvalue > 1e-3
    wide = drawn.uniform(low=-3, high=5)
    assert -3 <= wide.min() < -2.99
    assert 4.99 < wide.max() < 5


def test_a_coin_falls_as_often_as_asked():
    heads = Draws(2, 0, torch.arange(10_000)).coin(0.2).sum().item()
    assert stats.binomtest(heads, 10_000, 0.2).pvalue > 1e-3
    assert not Draws(2, 0, torch.arange(100)).coin(0.0).any()
    assert Draws(2, 0, torch.arange(100)).coin(1.0).all()


def test_a_sample_draws_the_same_in_any_batch():
    index = torch.tensor([5, 900, 17, 3])

    def program(draws):
        return [draws.uniform(), draws.integers(9, 2), draws.coin(0.5), draws.normal(3), draws.bits()]

    together = program(Draws(1, 4, index))
    for place, one in enumerate(index):
        alone = program(Draws(1, 4, one[None]))
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[place])


def test_seed_epoch_stream_index_and_counter_each_matter():
    index = torch.arange(64)
    first = Draws(0, 0, index)
    draws = [first.bits(), first.bits()]
    draws += [Draws(1, 0, index).bits(), Draws(0, 1, index).bits(), Draws(0, 0, index, 1).bits()]
    draws += [Draws(0, 0, index + 64).bits()]
    values = torch.cat(draws)
    assert len(values.unique()) == len(values)


def test_combine_heeds_order_and_zero():
    keys = {int(combine(*parts)) for parts in ([1, 2], [2, 1], [1, 2, 0], [0, 1, 2], [1], [1, 0])}
    assert len(keys) == 6
    assert torch.equal(combine(3, torch.tensor([4, 5])), torch.stack([combine(3, 4), combine(3, 5)]))


def test_seeds_suit_torchs_generators():
    seeds = [seed_of(i, 3) for i in range(1000)]
    assert all(0 <= s < 2**63 for s in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_order_is_a_permutation_and_every_position_is_equally_likely():
    assert torch.equal(order(1000, 3, 4).sort().values, torch.arange(1000))
    assert not torch.equal(order(1000, 3, 4), order(1000, 3, 5))
    places = np.zeros((5, 5))
    for key in range(4000):
        places[np.arange(5), order(5, key).numpy()] += 1
    assert stats.chisquare(places.flatten()).pvalue > 1e-3
