from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.reporting.statistics import holm, interval, paired, rank_correlation

numbers = st.floats(-1e3, 1e3, allow_nan=False)


def test_one_run_is_a_number_without_an_interval():
    found = interval([71.5])
    assert (found.mean, found.low, found.high, found.n, found.half) == (71.5, None, None, 1, None)


def test_t_interval_by_hand():
    found = interval([1.0, 2.0, 3.0])
    half = 4.302652729696142 * 1.0 / math.sqrt(3)  # t(0.975, 2), standard deviation 1
    assert found.kind == "t"
    assert found.low == pytest.approx(2 - half)
    assert found.half == pytest.approx(half)


@settings(deadline=None, max_examples=50)
@given(st.lists(numbers, min_size=2, max_size=19).filter(lambda x: np.ptp(x) > 1e-3))
def test_t_interval_is_scipys(values):
    found = interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_bca_from_twenty_runs_up_and_the_same_twice():
    x = np.random.default_rng(3).exponential(size=20)
    found = interval(x)
    assert found.kind == "bca"
    assert interval(x) == found
    rng = np.random.default_rng(0)
    told = stats.bootstrap((x,), np.mean, n_resamples=2000, method="BCa", rng=rng).confidence_interval
    assert (found.low, found.high) == (told.low, told.high)
    assert interval(x[:19]).kind == "t"
    assert interval([2.0] * 25).half == 0


def test_no_values_and_nan_are_refused():
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="values"):
            interval(bad)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12).filter(
        lambda p: np.ptp([a - b for a, b in p]) > 1e-3
    )
)
def test_paired_difference_is_scipys(pairs):
    a = {(i, 0): p[0] for i, p in enumerate(pairs)}
    b = {(i, 0): p[1] for i, p in enumerate(pairs)}
    found = paired(a, b)
    told = stats.ttest_rel(list(a.values()), list(b.values()))
    assert found.p == pytest.approx(told.pvalue, rel=1e-6, abs=1e-12)
    between = told.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((between.low, between.high), rel=1e-6, abs=1e-6)


def test_only_shared_runs_are_paired():
    found = paired({(0, 0): 3.0, (1, 0): 5.0, (2, 0): 9.0}, {(1, 0): 1.0, (2, 0): 3.0, (7, 0): 0.0})
    assert (found.pairs, found.mean) == (2, 5.0)
    single = paired({0: 1.0}, {0: 0.0})
    assert (single.mean, single.low, single.p, single.differs) == (1.0, None, None, False)
    assert math.isnan(paired({0: 1.0}, {1: 1.0}).mean)


def test_a_claim_needs_five_pairs_and_an_interval_without_zero():
    gain = [1.0, 1.1, 0.9, 1.05, 0.95]
    five = paired(dict(enumerate(gain)), dict.fromkeys(range(5), 0.0))
    four = paired(dict(enumerate(gain[:4])), dict.fromkeys(range(4), 0.0))
    assert five.beats()
    assert not five.beats(lower_is_better=True)
    assert four.differs
    assert not four.claim
    noisy = paired(dict(enumerate([3.0, -2.0, 1.0, -1.0, 2.0])), dict.fromkeys(range(5), 0.0))
    assert not noisy.claim


def test_equal_differences_have_an_interval_of_no_width():
    assert paired(dict.fromkeys(range(5), 1.0), dict.fromkeys(range(5), 0.0)).claim
    same = paired(dict.fromkeys(range(5), 1.0), dict.fromkeys(range(5), 1.0))
    assert (same.p, same.claim) == (1.0, False)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, None]) == pytest.approx([0.04, 1.0])
    assert holm([]) == []


def test_rank_correlation_by_hand():
    # Orders 1 2 3 4 and 2 1 3 4: one of six pairs is turned, sum of squared differences 2.
    found = rank_correlation([1.0, 2.0, 3.0, 4.0], [20.0, 10.0, 30.0, 40.0])
    assert found.kendall == pytest.approx((5 - 1) / 6)
    assert found.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found.pairs == 4
    assert rank_correlation([1.0, 2.0], [2.0, 1.0]) is None
    assert rank_correlation([1.0, 1.0, 1.0], [2.0, 1.0, 3.0]) is None
