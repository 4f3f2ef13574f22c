"""Means with intervals over runs, paired differences between methods, and Holm over a family.

A run is one seed and label split. A single run has no interval; a claim needs at least five pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

LEVEL = 0.95
CLAIM_PAIRS = 5  # with 3 pairs a nominal 95% bootstrap covers 75%
BCA_RUNS = 20
_RESAMPLES = 2000

Run = TypeVar("Run", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean over n runs; ``low`` and ``high`` are None where there is no interval (n < 2)."""

    mean: float
    low: float | None
    high: float | None
    n: int
    kind: str  # "one run", "t", "bca"

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """The mean paired difference a - b, its Student-t interval and its two-sided p-value."""

    mean: float
    low: float | None
    high: float | None
    pairs: int
    p: float | None

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def differs(self) -> bool:
        """The interval excludes 0 (with at least two pairs)."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def claim(self) -> bool:
        """Enough pairs, and an interval that excludes 0: one may be said to beat the other."""
        return self.pairs >= CLAIM_PAIRS and self.differs

    def beats(self, *, lower_is_better: bool = False) -> bool:
        """The claim "a beats b"."""
        return self.claim and (self.mean < 0 if lower_is_better else self.mean > 0)


def interval(values: Sequence[float] | NDArray[np.float64], level: float = LEVEL) -> Interval:
    """The mean and its interval: none for one run, Student-t, BCa from 20 runs up."""
    x = _finite(values)
    if len(x) == 0:
        raise ValueError("no values")
    if len(x) == 1:
        return Interval(float(x[0]), None, None, 1, "one run")
    if len(x) >= BCA_RUNS and np.ptp(x) > 0:
        low, high = _bca(x, level)
        return Interval(float(x.mean()), low, high, len(x), "bca")
    half = _half(x, level)
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x), "t")


def paired(a: Mapping[Run, float], b: Mapping[Run, float], level: float = LEVEL) -> Difference:
    """Over the runs that both have, a - b; no interval below two pairs, NaN mean without any."""
    shared = [run for run in a if run in b]
    d = np.array([a[run] - b[run] for run in shared], dtype=float)
    d = d[np.isfinite(d)]
    if len(d) <= 1:
        return Difference(float(d.mean()) if len(d) else float("nan"), None, None, len(d), None)
    mean, half = float(d.mean()), _half(d, level)
    return Difference(mean, mean - half, mean + half, len(d), _p(d))


def holm(p: Sequence[float | None]) -> list[float]:
    """Holm's adjusted p-values; None (not testable yet) counts in the family as 1."""
    known = np.array([1.0 if v is None else v for v in p], dtype=float)
    order = np.argsort(known, kind="stable")
    steps = known[order] * np.arange(len(known), 0, -1)
    adjusted = np.empty_like(known)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(v) for v in adjusted]


RANK_PAIRS = 3  # below, an order says nothing


@dataclass(frozen=True)
class RankCorrelation:
    """How alike two orders of the same k things are, in [-1, 1]."""

    spearman: float
    kendall: float  # tau-b: ties are counted
    pairs: int


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> RankCorrelation | None:
    """Of values in the same order of things; None below three, and where all of one side are equal."""
    if len(a) < RANK_PAIRS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy import stats  # half a second that most tables do not need

    return RankCorrelation(
        float(stats.spearmanr(a, b).statistic), float(stats.kendalltau(a, b).statistic), len(a)
    )


def _finite(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    if not np.isfinite(x).all():
        raise ValueError("values must be finite numbers")
    return x


def _half(x: NDArray[np.float64], level: float) -> float:
    error = float(x.std(ddof=1)) / float(np.sqrt(len(x)))
    return float(special.stdtrit(len(x) - 1, (1 + level) / 2)) * error


def _p(d: NDArray[np.float64]) -> float:
    error = float(d.std(ddof=1)) / float(np.sqrt(len(d)))
    if error == 0:
        return 1.0 if d.mean() == 0 else 0.0
    return float(2 * special.stdtr(len(d) - 1, -abs(float(d.mean())) / error))


def _bca(x: NDArray[np.float64], level: float) -> tuple[float, float]:
    from scipy import stats  # half a second that only many runs need

    # The seed is fixed so that the same rows give the same bytes.
    found = stats.bootstrap(
        (x,),
        np.mean,
        confidence_level=level,
        n_resamples=_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
