from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data import splits
from bench.records import BenchError

LABELS = np.arange(3000) * 7 % 10


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_order_within_a_class_is_ascending_sha256():
    taken = splits.labeled(LABELS, 250, "cifar10", 3)
    for c in range(10):
        members = sorted(np.flatnonzero(c == LABELS).tolist(), key=lambda i: sha(f"cifar10:3:{i}"))
        assert set(taken[LABELS[taken] == c].tolist()) == set(members[:25])


def test_digests_are_pinned():
    labels = np.arange(50_000) % 10
    assert splits.split_digest([3, 1, 20]) == sha("1,3,20")
    assert splits.split_digest(splits.labeled(labels, 250, "cifar10", 0))[:16] == "8ce9b2b352ec2c43"
    assert splits.split_digest(splits.validation(labels, 500, "cifar10", 0))[:16] == "51d9e22a03712f68"


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(-1, 6), min_size=30, max_size=200),
    split=st.integers(0, 3),
    data=st.data(),
)
def test_labeled_is_balanced_and_nested(labels, split, data):
    table = np.array(labels)
    known = int((table >= 0).sum())
    n = data.draw(st.integers(0, known))
    taken = splits.labeled(table, n, "any", split)
    assert len(set(taken.tolist())) == n
    assert (table[taken] >= 0).all()
    more = splits.labeled(table, data.draw(st.integers(n, known)), "any", split)
    assert set(taken.tolist()) <= set(more.tolist())
    counts = np.bincount(table[taken], minlength=7)
    left = np.bincount(table[table >= 0], minlength=7) - counts
    open_classes = counts[left > 0]  # those that could give more must not lag behind
    if n and len(open_classes):
        assert counts.max() - open_classes.min() <= 1


def test_classes_restrict():
    taken = splits.labeled(LABELS, 61, "svhn", 0, classes=(2, 5))
    assert sorted(np.bincount(LABELS[taken])[[2, 5]].tolist()) == [30, 31]


def test_splits_differ_by_split_and_dataset():
    sets = {splits.split_digest(splits.labeled(LABELS, 100, d, s)) for d in ("a", "b") for s in range(5)}
    assert len(sets) == 10


@pytest.mark.parametrize("n", [3001, -1])
def test_too_many_labels_is_one_line_that_says_what_is_possible(n):
    with pytest.raises(BenchError, match="0 to 3000") as caught:
        splits.labeled(LABELS, n, "cifar10", 0)
    assert "\n" not in str(caught.value)


def test_noise_hits_the_fraction_uniformly_and_nests():
    labels = np.arange(20_000) % 10
    half, most = (splits.noisy(labels, f, "cifar10", 1, 10) for f in (0.5, 0.8))
    # A replaced label is the true one in a tenth of the cases: 0.5 * 0.9 differ, binomial deviation 0.0035.
    assert abs((half != labels).mean() - 0.45) < 0.015
    changed = half != labels
    assert (most[changed] == half[changed]).all()
    counts = np.bincount(most[most != labels], minlength=10)
    assert counts.min() > 0.9 * counts.mean()


def test_noise_leaves_hidden_labels_hidden():
    labels = np.where(np.arange(1000) % 2, -1, 3)
    noisy = splits.noisy(labels, 1.0, "x", 0, 5)
    assert ((noisy == -1) == (labels == -1)).all()
    assert (splits.noisy(labels, 0.0, "x", 0, 5) == labels).all()


def test_noise_outside_0_to_1_is_refused():
    with pytest.raises(BenchError, match="0 to 1"):
        splits.noisy(LABELS, 1.5, "x", 0, 10)


def test_fifty_thousand_take_well_under_a_second():
    labels = np.arange(50_000) % 100
    started = time.process_time()
    splits.labeled(labels, 4000, "speed", 0)
    assert time.process_time() - started < 0.8
