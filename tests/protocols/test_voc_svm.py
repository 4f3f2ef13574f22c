"""Machines, costs and draws against scikit-learn called by hand."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from bench.contracts import Samples, Target
from bench.data.sources import Resident
from protocols._views import center_view
from protocols.voc_svm import COSTS, VocSvm, _drawn


def several(name, count, seed):
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(count, 3, generator=generator) < 0.4
    pixels = torch.randint(0, 120, (count, 3, 8, 8), generator=generator)
    for c in range(3):
        pixels[:, c, 2 * c : 2 * c + 2] += 60 * present[:, c, None, None]
    labels = present.to(torch.int8) * 2 - 1
    labels[torch.rand(count, generator=generator) < 0.15, 2] = 0
    return Samples(name, Resident(pixels.to(torch.uint8)), multilabel=labels)


TARGET = Target(several("a", 60, 1), several("b", 0, 2), several("c", 60, 3), 3)
ONE = VocSvm(layers=("conv2",), size=64, side=0, costs=(0.5,), shot_costs=(0.5,), shots=(2, 4), draws=2)


def values(found):
    return {(m.metric, m.layer, m.split): m.value for m in found}


def rows(model, samples):
    """Unit rows of the average of conv2's maps, 4x4, on a 2x2 grid."""
    with torch.no_grad():
        maps = model.eval().encoder.activations(samples.images.pixels, ("conv2",))["conv2"]
    x = torch.nn.functional.avg_pool2d(maps, 2).flatten(1).double().numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def envelope(y, scores):
    """The area under the monotone precision, by a loop; ranks without ties."""
    order = np.argsort(-scores)
    hits = np.cumsum(y[order] > 0)
    precision = hits / np.arange(1, len(y) + 1)
    return sum(precision[i:].max() for i in range(len(y)) if y[order][i] > 0) / (y > 0).sum()


def test_all_labels_agree_with_scikit_learn(model, make_run):
    found = values(ONE.evaluate(model, TARGET, make_run()))
    x, test = rows(model, TARGET.train), rows(model, TARGET.test)
    expected = []
    for c in range(3):
        y = np.where(TARGET.train.multilabel[:, c] > 0, 1, -1)  # difficult counts as absent in training
        machine = LinearSVC(C=0.5, class_weight={1: 2, -1: 1}, tol=1e-8, max_iter=100_000).fit(x, y)
        told = (TARGET.test.multilabel[:, c] != 0).numpy()  # and is left out in judging
        expected.append(
            envelope(TARGET.test.multilabel[told, c].numpy(), machine.decision_function(test[told]))
        )
    assert found["mAP", "conv2", "test"] == pytest.approx(100 * np.mean(expected), abs=0.5)
    assert found["mAP", "conv2", "test"] > 60


def test_a_whole_image_is_read_unless_its_middle_is_asked_for(model):
    taps = [one.taps(model.encoder)[0] for one in (VocSvm(), VocSvm(whole=False), ONE)]
    assert [(tap.side, tap.square) for tap in taps] == [(227, 227), (227, 0), (0, 0)]
    wide = torch.zeros(1, 3, 40, 80, dtype=torch.uint8)
    wide[..., :10] = 255  # at the border, which the middle does not show
    whole, middle = (center_view(20, square)(wide, None) for square in (20, 0))
    assert whole.shape == middle.shape == (1, 3, 20, 20)
    assert whole[..., 0].min() > 0.9
    assert middle.max() == 0


def test_the_cost_is_the_best_of_cross_validation(model, make_run, monkeypatch):
    from protocols import voc_svm

    kept = []
    real = voc_svm._Class
    monkeypatch.setattr(voc_svm, "_Class", lambda *a, **k: kept.append(real(*a, **k)) or kept[-1])
    costs = (1e-4, 0.01, 1.0)
    list(replace(ONE, costs=costs, shots=()).evaluate(model, TARGET, make_run()))
    assert len(kept) == 3
    for one in kept:
        from sklearn.model_selection import StratifiedKFold

        means = []
        for cost in costs:
            folds = []
            for a, b in StratifiedKFold(3, shuffle=True, random_state=one.seed).split(one.x, one.y):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    machine = LinearSVC(
                        C=cost, class_weight={1: 2, -1: 1}, max_iter=2000, random_state=one.seed
                    )
                    machine.fit(one.x[a], one.y[a])
                folds.append(envelope(one.y[b], machine.decision_function(one.x[b])))
            means.append(np.mean(folds))
        assert one.chosen == costs[int(np.argmax(means))]


def test_few_labels_are_k_and_k_for_each_other_class():
    x, y = np.arange(80, dtype=np.float32)[:, None], np.array([1] * 20 + [-1] * 55 + [0] * 5)
    picked, labels = _drawn(x, y, 4, 3, (0, 4, 0, 1))
    assert (labels == 1).sum() == 4 and (labels == -1).sum() == 8
    assert all(y[int(i)] == label for i, label in zip(picked[:, 0], labels, strict=True))
    assert len(set(picked[:, 0])) == 12
    again, _ = _drawn(x, y, 4, 3, (0, 4, 0, 1))
    other, _ = _drawn(x, y, 4, 3, (0, 4, 1, 1))
    assert np.array_equal(picked, again) and not np.array_equal(picked, other)


def test_the_oracle_is_the_best_single_cost_and_never_the_default(model, make_run):
    found = values(ONE.evaluate(model, TARGET, make_run()))
    for k in (2, 4):  # with one cost there is nothing to choose
        assert found[f"mAP_{k}_oracle", "conv2", "test"] == pytest.approx(found[f"mAP_{k}", "conv2", "test"])
        assert found[f"mAP_{k}_deviation", "conv2", "test"] > 0
    single = {
        cost: values(replace(ONE, shot_costs=(cost,)).evaluate(model, TARGET, make_run()))[
            "mAP_4", "conv2", "test"
        ]
        for cost in (1e-3, 0.5)
    }
    several_costs = values(replace(ONE, shot_costs=tuple(single)).evaluate(model, TARGET, make_run()))
    assert several_costs["mAP_4_oracle", "conv2", "test"] == pytest.approx(max(single.values()))


def test_every_layer_by_default_and_shots_that_some_class_lacks_are_left_out(model, make_run):
    protocol = VocSvm(size=64, side=0, costs=(0.5,), shot_costs=(0.5,), shots=(1, 50), draws=1)
    found = values(protocol.evaluate(model, TARGET, make_run()))
    assert {layer for _, layer, _ in found} == {"conv1", "conv2"}
    assert {metric for metric, _, _ in found} == {"mAP", "mAP_1", "mAP_1_deviation", "mAP_1_oracle"}


def test_the_references_costs():
    assert len(COSTS) == 26 and COSTS[0] == 1e-7 and COSTS[-1] == 100.0
