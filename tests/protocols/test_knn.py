"""The weighted vote, by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bench.contracts import Target
from protocols.knn import Knn, votes


def test_votes_by_hand():
    similarity = torch.tensor([[1.0, 0.9, 0.9], [0.5, 0.4, 0.0]])
    neighbors = torch.tensor([[0, 1, 1], [2, 0, 0]])
    found = votes(similarity, neighbors, 3, 0.1)
    expected = [[1.0, 2 * math.exp(-1), 0.0], [math.exp(-6) + math.exp(-10), 0.0, math.exp(-5)]]
    torch.testing.assert_close(found, torch.tensor(expected))
    # Two near neighbors beat one nearer at a high temperature, not at a low one.
    assert found[0].argmax() == 0
    assert votes(similarity, neighbors, 3, 1.0)[0].argmax() == 1
    assert votes(similarity, neighbors, 3, None).tolist() == [[1, 2, 0], [2, 0, 1]]


def test_small_temperatures_do_not_overflow():
    assert votes(torch.ones(1, 2), torch.tensor([[0, 1]]), 2, 0.001).isfinite().all()


def _brute(model, target, k, temperature):
    model.encoder.eval()
    with torch.no_grad():
        bank, queries = (
            torch.nn.functional.normalize(model.encoder(s.images.pixels)) for s in (target.train, target.test)
        )
    right = 0
    for query, label in zip(queries, target.test.labels, strict=True):
        similarity, rows = (bank @ query).topk(k)
        score = torch.zeros(3)
        for s, row in zip(similarity, rows, strict=True):
            score[target.train.labels[row]] += math.exp(s / temperature)
        right += int(score.argmax() == label)
    return 100 * right / len(queries)


def test_against_a_loop(model, target, make_run):
    found = {(m.metric, m.split): m.value for m in Knn(k=(20, 1)).evaluate(model, target, make_run())}
    assert found["top1", "test"] == pytest.approx(_brute(model, target, 20, 0.07))
    assert found["top1_k1", "test"] == pytest.approx(_brute(model, target, 1, 0.07))
    assert ("top1", "validation") in found


def test_features_that_are_no_numbers_are_wrong_and_told(model, target, make_run):
    labels = torch.zeros(
        90, dtype=torch.int64
    )  # all of the class that a search that finds nothing would name
    broken = dataclasses.replace(target, test=dataclasses.replace(target.test, labels=labels))
    run, said = make_run(), []
    run.warn = said.append
    model.encoder.trunk.conv2[1].weight.data.fill_(torch.nan)
    found = [m.value for m in Knn(k=5).evaluate(model, broken, run) if m.split == "test"]
    assert found == [0.0]
    assert set(said) == {"features at output are not finite"}


def test_k_is_no_more_than_there_are(model, target, make_run):
    many = [m.value for m in Knn(k=10_000).evaluate(model, target, make_run())]
    assert many == [m.value for m in Knn(k=150).evaluate(model, target, make_run())]


def test_layers_are_named(model, target, make_run):
    assert {
        m.layer for m in Knn(k=3, layer="conv1", pooling="cpc_mean").evaluate(model, target, make_run())
    } == {"conv1"}


@pytest.mark.parametrize("k", [1, 200])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_class_without_a_vote_is_no_guess(k, weighted, model, make_run, make_samples):
    """All neighbors are of class 11: whoever is of another one was not found, among five guesses either."""
    bank, queries = make_samples("bank", 200, 1), make_samples("queries", 40, 2)
    of = dataclasses.replace
    target = Target(
        of(bank, labels=torch.full((200,), 11)),
        of(queries, labels=torch.arange(40) % 4, name="others"),
        of(queries, labels=torch.full((40,), 11)),
        12,
    )
    found = {
        (m.metric, m.split): m.value for m in Knn(k=k, weighted=weighted).evaluate(model, target, make_run())
    }
    assert found == {
        ("top1", "test"): 100,
        ("top5", "test"): 100,
        ("top1", "validation"): 0,
        ("top5", "validation"): 0,
    }
