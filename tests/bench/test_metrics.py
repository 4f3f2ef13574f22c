"""Metrics against hand-worked cases, scikit-learn, torchmetrics and plain loops."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from bench.metrics import (
    ap_11pt,
    ap_envelope,
    ap_sklearn,
    confusion_matrix,
    hits,
    mean_ap,
    mean_iou,
    nmi,
    topk_accuracy,
)
from bench.records import BenchError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- top-k


def test_topk_by_hand():
    scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]]
    assert topk_accuracy(scores, [1, 1, 0]) == pytest.approx(1 / 3)
    assert topk_accuracy(scores, [1, 1, 2], k=2) == pytest.approx(1.0)
    assert topk_accuracy(scores, [1, 1, 1], k=2) == pytest.approx(2.5 / 3)  # 0 and 1 are equal second
    assert topk_accuracy(scores, [2, 2, 1], k=3) == 1.0


@pytest.mark.parametrize("k", [1, 2, 5])
def test_ties_count_as_they_do_on_average_over_all_orders_of_the_classes(k):
    scores, labels = RNG.integers(0, 3, (40, 6)), RNG.integers(0, 6, 40)
    right = []
    for order in itertools.permutations(range(6)):
        ranked = sorted(order, key=order.index)
        first = [sorted(ranked, key=lambda c, row=row: -row[c])[:k] for row in scores]  # stable
        right.append(np.mean([label in found for label, found in zip(labels, first, strict=True)]))
    assert topk_accuracy(scores, labels, k) == pytest.approx(np.mean(right))


def test_what_is_no_guess_is_never_right():
    scores = np.array([[-np.inf, 1.0, -np.inf], [2.0, 1.0, -np.inf]])
    assert hits(scores, [0, 2], k=3).tolist() == [0, 0]
    assert hits(scores, [1, 1], k=2).tolist() == [1, 1]


def test_a_constant_classifier_is_at_chance():
    assert topk_accuracy(np.zeros((4, 4)), [0, 1, 2, 3]) == 0.25
    assert topk_accuracy(np.full((4, 4), np.nan), [0, 1, 2, 3]) == 0.0


@pytest.mark.parametrize("k", [1, 3, 5])
def test_topk_agrees_with_torchmetrics(k):
    scores, labels = torch.rand(200, 10), torch.randint(0, 10, (200,))
    expected = multiclass_accuracy(scores, labels, 10, top_k=k, average="micro")
    assert topk_accuracy(scores, labels, k) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("scores", "labels", "k"), [([[1.0]], [1], 1), ([[1.0]], [-1], 1), ([], [], 1), ([[1.0]], [0], 0)]
)
def test_topk_refuses_nonsense(scores, labels, k):
    with pytest.raises(BenchError):
        topk_accuracy(scores, labels, k)


# ---- average precision

# Ranking + - + - : precision 1, 1/2, 2/3, 1/2 at recall 1/2, 1/2, 1, 1.
SCORES, LABELS = [0.9, 0.8, 0.7, 0.6], [1, -1, 1, -1]


def test_ap_by_hand():
    assert ap_sklearn(SCORES, LABELS) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert ap_envelope(SCORES, LABELS) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # Recalls 0 ... .5 see precision 1, the five above see 2/3.
    assert ap_11pt(SCORES, LABELS) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_envelope_lifts_a_dip_that_sklearn_counts():
    # Ranking - + + : precision 0, 1/2, 2/3; the envelope is 2/3 throughout.
    scores, labels = [3.0, 2.0, 1.0], [-1, 1, 1]
    assert ap_sklearn(scores, labels) == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3)
    assert ap_envelope(scores, labels) == pytest.approx(2 / 3)
    assert ap_11pt(scores, labels) == pytest.approx(2 / 3)


def test_ignored_images_change_nothing():
    scores, labels = [0.95, *SCORES, 0.65], [0, *LABELS, 0]
    for ap in (ap_11pt, ap_envelope, ap_sklearn):
        assert ap(scores, labels) == ap(SCORES, LABELS)


def test_ties_are_one_threshold_or_bury_the_positives():
    scores, labels = [1.0, 1.0, 1.0, 0.0], [1, -1, 1, -1]
    assert ap_sklearn(scores, labels) == pytest.approx(2 / 3)
    # Alone at its score, the negative adds no recall: in an exact tie the rule changes nothing.
    assert ap_sklearn(scores, labels, tie_rule=True) == pytest.approx(2 / 3)
    # A lead of less than 1e-5 is a tie by the rule, and lost.
    assert ap_sklearn([0.500005, 0.5], [1, -1]) == 1.0
    assert ap_sklearn([0.500005, 0.5], [1, -1], tie_rule=True) == 0.5
    flipped = [labels[i] for i in (2, 1, 0, 3)]
    assert ap_sklearn(scores, flipped) == ap_sklearn(scores, labels)


@pytest.mark.parametrize("levels", [5, 10_000])
@pytest.mark.parametrize("tie_rule", [False, True])
def test_ap_sklearn_is_sklearns(levels, tie_rule):
    scores, labels = RNG.integers(0, levels, 300) / levels, RNG.integers(0, 2, 300)
    lowered = scores - 1e-5 * labels if tie_rule else scores
    expected = average_precision_score(labels, lowered)
    assert ap_sklearn(scores, labels * 2 - 1, tie_rule) == pytest.approx(expected)


def test_ap_sklearn_is_sklearns_in_two_hundred_cases():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(2, 40))
        labels = rng.integers(-1, 2, count)
        labels[:2] = 1, -1
        scores = rng.integers(0, 20, count) / 20 if seed % 2 else rng.normal(size=count)
        told = labels != 0
        expected = average_precision_score(labels[told] > 0, scores[told])
        assert ap_sklearn(scores, labels) == pytest.approx(expected, abs=1e-12), seed


def test_interpolated_aps_by_loops_in_two_hundred_cases():
    """In fractions: that 3 of 10 are a recall of 0.3 is not for rounding to decide."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scores, labels = rng.permutation(40) / 40, rng.integers(0, 2, 40) * 2 - 1
        positives, hits, curve = int((labels > 0).sum()), 0, []
        for rank, index in enumerate(np.argsort(-scores), 1):
            hits += int(labels[index] > 0)
            curve.append((Fraction(hits, positives), Fraction(hits, rank)))
        eleven = [max([p for r, p in curve if r >= Fraction(t, 10)], default=0) for t in range(11)]
        area, before = Fraction(0), Fraction(0)
        for r, _ in curve:
            area += (r - before) * max(p for q, p in curve if q >= r)
            before = r
        assert ap_11pt(scores, labels) == pytest.approx(float(sum(eleven) / 11)), seed
        assert ap_envelope(scores, labels) == pytest.approx(float(area)), seed


def test_mean_ap_leaves_out_classes_without_positives():
    scores = np.stack([SCORES, SCORES, SCORES], 1)
    labels = np.stack([LABELS, [-1, -1, -1, -1], [1, 1, -1, -1]], 1)
    assert mean_ap(scores, labels, "ap_sklearn") == pytest.approx((5 / 6 + 1) / 2)
    assert math.isnan(mean_ap(scores[:, 1:2], labels[:, 1:2]))
    assert math.isnan(ap_envelope([0.1, 0.2], [-1, -1]))
    assert math.isnan(ap_11pt([0.1], [-1]))


def test_ap_refuses_nonsense():
    with pytest.raises(BenchError, match="no -1 here"):
        ap_sklearn([0.1, 0.2], [0, 1])
    with pytest.raises(BenchError, match="nan"):
        ap_sklearn([math.nan, 0.2], [-1, 1])
    with pytest.raises(BenchError, match=r"\(N,\)"):
        ap_11pt([0.1, 0.2], [1])
    with pytest.raises(BenchError, match="no average precision 'ap'"):
        mean_ap([[0.1]], [[1]], "ap")


# ---- mean IoU


def test_mean_iou_by_hand():
    target = torch.tensor([[0, 0, 1], [1, 255, 2]])
    guess = torch.tensor([[0, 1, 1], [1, 2, 0]])
    matrix = confusion_matrix(guess, target, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    # Class 0: 1 / (1 + 1 + 1); class 1: 2 / 3; class 2: 0 / 1.
    assert mean_iou(matrix) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)


def test_absent_classes_do_not_count_and_nothing_is_nan():
    assert mean_iou(confusion_matrix([0, 1], [0, 1], 5)) == 1.0
    assert math.isnan(mean_iou(confusion_matrix([0], [255], 5)))


def test_mean_iou_of_summed_images_agrees_with_torchmetrics():
    pairs = [(torch.randint(0, 4, (9, 7)), torch.randint(0, 4, (9, 7))) for _ in range(3)]
    for _, target in pairs:
        target[0] = 255
    matrix = sum(confusion_matrix(guess, target, 4) for guess, target in pairs)
    guesses, targets = (torch.cat([p[i].flatten() for p in pairs]) for i in (0, 1))
    expected = multiclass_jaccard_index(guesses, targets, 4, ignore_index=255, average="macro")
    assert mean_iou(matrix) == pytest.approx(float(expected))


def test_mean_iou_agrees_with_torchmetrics_in_two_hundred_cases():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        target, guess = rng.integers(0, 5, (2, 40))
        target[rng.random(40) < 0.2] = 255
        expected = multiclass_jaccard_index(
            torch.from_numpy(guess), torch.from_numpy(target), 5, ignore_index=255, average="macro"
        )
        assert mean_iou(confusion_matrix(guess, target, 5)) == pytest.approx(float(expected), abs=1e-6), seed


def test_confusion_refuses_what_is_no_class():
    with pytest.raises(BenchError, match=r"prediction must be in 0\.\.2"):
        confusion_matrix([3], [0], 3)
    with pytest.raises(BenchError, match=r"target must be in 0\.\.2"):
        confusion_matrix([0], [-1], 3)
    with pytest.raises(BenchError, match="differ in size"):
        confusion_matrix([0, 1], [0], 3)


# ---- NMI


def entropy(*columns) -> float:
    _, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def test_nmi_is_geometric():
    one, other = RNG.integers(0, 3, 100), RNG.integers(0, 10, 100)
    mutual = entropy(one) + entropy(other) - entropy(one, other)
    assert nmi(torch.tensor(one), other) == pytest.approx(mutual / math.sqrt(entropy(one) * entropy(other)))


def test_nmi_of_renamed_and_of_constant_labels():
    assert nmi([0, 0, 1, 1], [7, 7, 3, 3]) == pytest.approx(1.0)
    assert nmi([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0.0)
    # A collapsed clustering says nothing about the labels.
    assert nmi([0, 0, 0, 0], [0, 1, 0, 1]) == pytest.approx(0.0)
