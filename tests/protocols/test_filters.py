"""Units, their images, and what is common to them: by hand and by a loop."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bench.contracts import Measurement, Picture
from bench.records import BenchError
from protocols.filters import Filters, around, common, scores


def judged(protocol, model, target, run):
    found = list(protocol.evaluate(model, target, run))
    return {(m.metric, m.layer): m.value for m in found if isinstance(m, Measurement)}, [
        p for p in found if isinstance(p, Picture)
    ]


def test_scores_by_hand():
    train = torch.tensor([[0, 2, 1], [0, 2, 1], [1, 0, 1]])
    test = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 2, 1]])
    found = scores(train, test, torch.tensor([True, True, False]), 3)
    # Purity of the two that respond: 2/3 and 2/3; of class 0: 2/3, of class 2: 1/3.
    assert found == pytest.approx({"purity": 200 / 3, "consistency": 50.0, "dead": 100 / 3})
    assert scores(train, test, torch.zeros(3, dtype=torch.bool), 3)["dead"] == 100


def test_common_shares_among_equals():
    which, count = common(torch.tensor([[2, 1], [1, 1], [2, 1], [1, 0]]), 3)
    assert which.T.tolist() == [[0, 0.5, 0.5], [0, 1, 0]]
    assert count.tolist() == [2, 3]


def test_against_a_loop(model, target, make_run):
    found, _ = judged(Filters(layers=("conv2",), images=5, units=0), model, target, make_run())
    model.encoder.eval()
    with torch.no_grad():
        train, test = (
            model.encoder.activations(s.images.pixels, ["conv2"])["conv2"].amax((2, 3))
            for s in (target.train, target.test)
        )
    pure, same = [], []
    for unit in range(16):
        tops = []
        for values, samples in ((train, target.train), (test, target.test)):
            ranked = sorted(range(len(values)), key=lambda i: -float(values[i, unit]))[:5]
            tops.append([int(samples.labels[i]) for i in ranked])
        if float(test[:, unit].max()) > float(test[:, unit].min()):
            pure.append(Counter(tops[1]).most_common(1)[0][1] / 5)
            counts = Counter(tops[0])
            named = [c for c in counts if counts[c] == max(counts.values())]
            same.append(sum(tops[1].count(c) for c in named) / len(named) / 5)
    assert found["purity", "conv2"] == pytest.approx(100 * sum(pure) / len(pure))
    assert found["consistency", "conv2"] == pytest.approx(100 * sum(same) / len(same))
    assert found["dead", "conv2"] == pytest.approx(100 * (1 - len(pure) / 16))


def test_pictures_show_whole_images_or_patches(model, target, make_run):
    protocol = Filters(images=4, units=3, picture_side=8)
    _, pictures = judged(protocol, model, target, make_run())
    assert [p.name for p in pictures] == ["filters conv1", "filters conv2"]
    assert pictures[0].image.shape == (3, 3 * 10, 4 * 10)
    _, patches = judged(Filters(images=4, units=3, patch=4), model, target, make_run())
    assert patches[1].image.shape == (3, 3 * 6, 4 * 6)


def test_the_first_tile_is_the_image_of_highest_activation(model, target, make_run):
    protocol = Filters(layers=("conv1",), images=1, units=1, picture_side=8)
    _, (picture,) = judged(protocol, model, target, make_run())
    model.encoder.eval()
    with torch.no_grad():
        values = model.encoder.activations(target.test.images.pixels, ["conv1"])["conv1"].amax((2, 3))
    unit = int(values.var(0).argmax())
    best = target.test.images.pixels[int(values[:, unit].argmax())].float() / 255
    torch.testing.assert_close(picture.image[:, 1:-1, 1:-1], best)


def test_patches_lie_around_the_peak_inside_the_image():
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(2, 3, 8, 8)
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0] = maps[1, 2, 1] = 1
    found = around(image, maps, 2)
    assert found[0, 0].tolist() == [[0, 1], [8, 9]]
    assert found[1, 0].tolist() == [[34, 35], [42, 43]]  # the middle of cell (2, 1) is (5, 3)
    assert around(image, maps, 100).shape == (2, 3, 8, 8)


def test_wrong_choices_are_told():
    with pytest.raises(BenchError, match=r"filters\.choice is 'best'"):
        Filters(choice="best")


def test_units_may_be_drawn_by_the_seed(make_run):
    values = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    drawn = Filters(choice="seed", units=5)._chosen(values, make_run())
    assert torch.equal(drawn, Filters(choice="seed", units=5)._chosen(values.flip(0) * 2, make_run()))
    assert len(set(drawn.tolist())) == 5
    highest = Filters(units=5)._chosen(values, make_run())
    assert set(highest.tolist()) == set(values.var(0).topk(5).indices.tolist())
