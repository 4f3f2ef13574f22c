"""Retrieval against a loop over float64 similarities, and the grid of neighbors."""

from __future__ import annotations

import pytest
import torch

from bench.contracts import Measurement, Picture
from bench.records import BenchError
from protocols._pictures import OTHER, QUERY, SAME, framed, grid
from protocols.retrieval import Retrieval, scores, without_self


def judged(protocol, model, target, run):
    found = list(protocol.evaluate(model, target, run))
    return {(m.metric, m.split): m.value for m in found if isinstance(m, Measurement)}, [
        p for p in found if isinstance(p, Picture)
    ]


def unit_rows(model, samples):
    model.encoder.eval()
    with torch.no_grad():
        x = model.encoder(samples.images.pixels).double()
    return x / x.norm(dim=1, keepdim=True)


def by_hand(bank, bank_labels, queries, labels, k, *, own=False):
    """Percent of queries with a right one among the k nearest, and the mean percent of right ones."""
    hit = right = 0
    for i in range(len(queries)):
        ranked = sorted(range(len(bank)), key=lambda j: -float(bank[j] @ queries[i]))
        nearest = [j for j in ranked if not (own and j == i)][:k]
        same = sum(int(bank_labels[j] == labels[i]) for j in nearest)
        hit, right = hit + (same > 0), right + same / k
    return 100 * hit / len(queries), 100 * right / len(queries)


@pytest.mark.parametrize("gallery", ["train", "own"])
def test_against_a_loop(model, target, make_run, gallery):
    protocol = Retrieval(k=(1, 3, 7), gallery=gallery, queries=0)
    found, _ = judged(protocol, model, target, make_run())
    queries = unit_rows(model, target.test)
    bank = unit_rows(model, target.train) if gallery == "train" else queries
    labels = target.train.labels if gallery == "train" else target.test.labels
    for k in (1, 3, 7):
        recall, agreement = by_hand(bank, labels, queries, target.test.labels, k, own=gallery == "own")
        assert found[f"recall@{k}", "test"] == pytest.approx(recall)
        assert found[f"agreement@{k}", "test"] == pytest.approx(agreement)
        assert (f"recall@{k}", "validation") in found


def test_scores_by_hand():
    classes = torch.tensor([[0, 1, 1], [2, 2, -1], [1, 0, 2]])
    found = dict(scores(classes, torch.tensor([1, 2, 1]), (1, 3)))
    assert found == pytest.approx(
        {
            "recall@1": 200 / 3,
            "agreement@1": 200 / 3,
            "recall@3": 100.0,
            "agreement@3": 100 * (2 + 2 + 1) / 9,
        }
    )


def test_a_query_is_not_its_own_neighbor_even_among_copies_of_it():
    neighbors = torch.tensor([[0, 2, 1], [2, 0, 1], [0, 1, 3]])  # the third lost itself to its copies
    assert without_self(neighbors).tolist() == [[2, 1], [2, 0], [0, 1]]


def test_all_lists_of_ivf_are_the_exact_search_and_few_find_most_of_it(make_run, target):
    generator = torch.Generator().manual_seed(0)
    centers = torch.nn.functional.normalize(torch.randn(20, 16, generator=generator))
    points = torch.nn.functional.normalize(
        centers.repeat(50, 1) + 0.15 * torch.randn(1000, 16, generator=generator)
    )
    exact = set_of(Retrieval(), points)
    assert set_of(Retrieval(index="ivf", lists=10, probes=10), points) == exact
    few = set_of(Retrieval(index="ivf", probes=8), points)
    assert 0.8 < len(few & exact) / len(exact) < 1


def set_of(protocol, points):
    found = protocol._places(points, points[:100], 10)
    return {(i, int(j)) for i, row in enumerate(found) for j in row}


def test_ivf_goes_through_and_tells_what_it_lacks(model, target, make_run):
    found, _ = judged(Retrieval(index="ivf", lists=50, probes=1), model, target, make_run())
    exact, _ = judged(Retrieval(), model, target, make_run())
    assert found["agreement@10", "test"] < exact["agreement@10", "test"]  # a place left empty is no agreement
    assert found["recall@1", "test"] > 100 / 3


def test_the_picture_shows_the_same_queries_for_every_model(model, target, make_run):
    protocol = Retrieval(queries=3, shown=4, picture_side=8)
    _, (first,) = judged(protocol, model, target, make_run())
    assert first.image.shape == (3, 3 * 14, 5 * 14)  # 8 pixels, a border of 2 and a gap of 1 on each side
    assert first.image.min() >= 0
    assert first.image.max() <= 1
    torch.manual_seed(1)
    torch.nn.init.normal_(model.encoder.trunk[0][0].weight)
    _, (second,) = judged(protocol, model, target, make_run(weights_digest="v"))
    assert torch.equal(first.image[:, :, :14], second.image[:, :, :14])
    assert not torch.equal(first.image, second.image)
    tile = first.image[:, 3:11, 3:11]
    pixels = target.test.images.pixels.float() / 255
    assert (pixels - tile).abs().amax((1, 2, 3)).min() == 0  # the query is an image of the test set


def test_frames_and_grids_by_hand():
    tiles = framed(torch.zeros(3, 3, 1, 1), [QUERY, SAME, OTHER], width=1)
    assert tiles[1, :, 0, 0].tolist() == pytest.approx(SAME)
    assert tiles[1, :, 1, 1].tolist() == [0, 0, 0]
    whole = grid(tiles, 2, gap=0)
    assert whole.shape == (3, 6, 6)
    assert torch.equal(whole[:, :3, 3:], tiles[1])
    assert torch.equal(whole[:, 3:, :3], tiles[2])
    assert (whole[:, 3:, 3:] == 1).all()


@pytest.mark.parametrize("wrong", [{"index": "flat"}, {"gallery": "test"}, {"k": ()}, {"k": (0,)}])
def test_wrong_settings_are_told(wrong):
    with pytest.raises(BenchError, match=next(iter(wrong))):
        Retrieval(**wrong)
