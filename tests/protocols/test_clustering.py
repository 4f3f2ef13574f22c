"""Agreement of clusters and classes, by hand and by scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from protocols.clustering import Clustering, majority, stored


def judged(protocol, model, target, run):
    return {(m.metric, m.split, m.step): m.value for m in protocol.evaluate(model, target, run)}


def test_stored_assignments_by_hand(make_run):
    labels = torch.tensor([0, 0, 1, 1, -1])
    assigned = {0: torch.tensor([0, 0, 0, 1, 1]), 4: torch.tensor([5, 5, 7, 7, 9])}
    found = {(m.metric, m.step): m.value for m in stored(assigned, labels)}
    # The four known ones: H = ln 2; H' of (3, 1); I = H + H' - H(joint of 1/2, 1/4, 1/4).
    h, other = math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    joint = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert found["nmi_labels", 0] == pytest.approx((h + other - joint) / math.sqrt(h * other))
    assert found["nmi_labels", 0] != pytest.approx((h + other - joint) / ((h + other) / 2), abs=1e-4)
    assert found["nmi_labels", 4] == pytest.approx(1.0)  # names of clusters do not matter
    expected = normalized_mutual_info_score(assigned[0], assigned[4], average_method="geometric")
    assert found["nmi_previous", 4] == pytest.approx(expected)
    assert set(found) == {("nmi_labels", 0), ("nmi_labels", 4), ("nmi_previous", 4)}
    assert [m.metric for m in stored(assigned, None)] == ["nmi_previous"]
    assert list(stored({}, labels)) == []


def test_separate_clusters_are_found_as_scikit_learn_finds_them(target, make_run):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 16, generator=generator)

    def points(samples):
        labels = samples.labels.clone()
        labels[::7] = (labels[::7] + 1) % 3
        return centers[labels] + 0.05 * torch.randn(len(labels), 16, generator=generator)

    data = {
        "train": (points(target.train), target.train.labels),
        "test": (points(target.test), target.test.labels),
    }
    found = {(s, m): v for s, m, v in Clustering()._agreement(data, 3, 3, make_run())}
    engine = KMeans(3, n_init=5, random_state=0).fit(data["train"][0])
    for split, (x, truth) in data.items():
        ids = engine.predict(x)
        nmi = normalized_mutual_info_score(truth, ids, average_method="geometric")
        assert found[split, "nmi"] == pytest.approx(nmi)
        assert found[split, "ari"] == pytest.approx(adjusted_rand_score(truth, ids))
        moved = len(range(0, len(truth), 7))
        assert found[split, "top1"] == pytest.approx(100 * (1 - moved / len(truth)))


def test_a_cluster_is_named_after_most_of_it():
    ids, labels = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([2, 2, 1, 0, 1, 1])
    named = majority(ids, labels, 4, 3)
    torch.testing.assert_close(
        named.float(), torch.tensor([[0, 0, 1], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1, 0]])
    )


def test_several_numbers_of_clusters_and_all_splits(model, target, make_run):
    run = make_run()
    run.assigned, run.assigned_labels = {2: torch.arange(5)}, torch.arange(5)
    found = judged(Clustering(clusters=(0, 10_000)), model, target, run)
    splits = [(s, None) for s in ("train", "test", "validation")]
    metrics = [f"{m}{k}" for m in ("nmi", "ari", "top1") for k in ("", "_k10000")]
    assert set(found) == {(m, *s) for m in metrics for s in splits} | {("nmi_labels", "train", 2)}
    assert found["top1_k10000", "train", None] == 100  # a cluster an image
    assert found["top1", "test", None] > 50


def test_the_same_seed_finds_the_same_clusters(model, target, make_run):
    assert judged(Clustering(), model, target, make_run()) == judged(Clustering(), model, target, make_run())
