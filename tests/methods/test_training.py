"""What every method owes: the same numbers twice, and after an interruption; losses that teach."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from bench.contracts import Method, Model
from methods._loop import Batch, Loop, _Feed
from methods.deepcluster import Deepcluster
from methods.instance_discrimination import InstanceDiscrimination
from methods.mean_color import MeanColor
from methods.mean_teacher import MeanTeacher
from methods.pi_model import PiModel
from methods.random import Random
from methods.random_rescaled import RandomRescaled
from methods.raw_pixels import RawPixels
from methods.rotation import Rotation
from methods.supervised import Supervised

SMALL: dict[str, Any] = {"batch_size": 8}
LOOPS: list[Loop] = [
    Supervised(**SMALL),
    Rotation(**SMALL),
    Rotation(rotations=8, copies="one", crop=12, augment="crop_flip", **SMALL),
    InstanceDiscrimination(negatives=16, proximal=1.0, **SMALL),
    InstanceDiscrimination(softmax="nonparametric", feature_norm=True, **SMALL),
    InstanceDiscrimination(softmax="parametric", **SMALL),
    Deepcluster(clusters=5, pca=4, **SMALL),
    Deepcluster(clusters=5, pca=4, matched=True, every=2, dropout=0.2, crop=12, **SMALL),
    PiModel(**SMALL),
    PiModel(stop_gradient=True, labeled_batch=3, **SMALL),
    MeanTeacher(**SMALL),
    MeanTeacher(labeled_batch=5, **SMALL),
]
FIXED: list[Method] = [Random(), RandomRescaled(), RawPixels(side=8), MeanColor()]


def _made(method: Method, backbone: Any, data: Any, run: Any) -> Model:
    if not method.sees_labels:
        data = dataclasses.replace(data, labels=None)
    return method.train(method.build(backbone, data.shape, run.generator("weights")), data, run)


def _equal(one: Model, other: Model) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(k == j and torch.equal(a, b) for (k, a), (j, b) in pairs)


@pytest.mark.parametrize("method", [*LOOPS, *FIXED], ids=str)
def test_twice_the_same_and_saved_weights_fit(method, plain_backbone, data, make_run) -> None:
    run = make_run()
    model = _made(method, plain_backbone, data, run)
    assert _equal(model, _made(method, plain_backbone, data, make_run()))
    assert set(model.variants) == set(method.variants)
    assert run.snapshots
    method.build(plain_backbone, data.shape, run.generator("other")).load_state_dict(model.state_dict())
    assert torch.isfinite(model.encoder(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))).all()


@pytest.mark.parametrize("method", LOOPS, ids=str)
@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_is_the_undisturbed_one(method, stop, backbone, data, make_run, stopped) -> None:
    undisturbed = make_run()
    expected = _made(method, backbone, data, undisturbed)
    run = make_run()
    run.stop = min(stop, undisturbed.snapshots[-1] - 1)
    with pytest.raises(stopped):
        _made(method, backbone, data, run)
    run.stop = -1
    assert _equal(expected, _made(method, backbone, data, run))
    assert run.seen == undisturbed.seen


@pytest.mark.parametrize("method", LOOPS, ids=str)
def test_every_term_teaches_the_learner(method, backbone, data, make_run) -> None:
    run = make_run()
    model = method.build(backbone, data.shape, run.generator("weights"))
    state, feed = method.state(model, data, run), _Feed(method, data, run)
    batch = next(feed.batches(state, 0, 0))
    for term in method.losses(model, state, batch, 100, 100).values():
        weights = list(method.learner(model).parameters())
        gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0


def test_losses_do_not_change_their_arguments(backbone, data, make_run) -> None:
    method, run = InstanceDiscrimination(negatives=16, batch_size=8), make_run()
    model = method.build(backbone, data.shape, run.generator("weights"))
    state = method.state(model, data, run)
    batch = next(_Feed(method, data, run).batches(state, 0, 0))
    bank = state["bank"].clone()
    first = method.losses(model, state, batch, 0, 10)["nce"]
    assert torch.equal(first, method.losses(model, state, batch, 0, 10)["nce"])
    assert torch.equal(bank, state["bank"])


def test_semi_supervised_batches_hold_their_share_of_labels(data, make_run) -> None:
    method = MeanTeacher(batch_size=8, labeled_batch=3)
    feed, run = _Feed(method, data, make_run()), make_run()
    assert feed.per_epoch == 32 // 5
    assert feed.size == 8
    seen: list[Batch] = [b for epoch in range(2) for b in feed.batches({}, epoch, 0)]
    assert all((b.labels[:3] >= 0).all() and (b.labels[3:] == -1).all() for b in seen)
    cycle = torch.cat([b.index[:3] for b in seen[:5]])  # 16 labeled images make 5 batches of 3
    assert len(cycle.unique()) == 15
    later = next(_Feed(method, data, run).batches({}, 1, 2))
    assert torch.equal(later.index, seen[8].index)
    assert all(torch.equal(a, b) for a, b in zip(later.views, seen[8].views, strict=True))


def test_supervised_epochs_count_the_labeled(data, make_run, backbone) -> None:
    run = make_run(budget="3 epochs")
    _made(Supervised(batch_size=4), backbone, data, run)
    assert run.seen == 3 * 16


def test_budget_counts_passes_by_area(data) -> None:
    shape = data.shape
    assert Rotation().passes(shape) == 4
    assert Rotation(copies="one", crop=12).passes(shape) == (12 / 16) ** 2
    assert MeanTeacher().passes(shape) == pytest.approx(4 / 3)
    assert PiModel().passes(shape) == 2
    assert Deepcluster(every=2).passes(shape) == pytest.approx(1 + 1 / 6)


@pytest.mark.parametrize("name", ["none", "crop_flip", "pad_crop_flip", "translate_flip", "resized_crop"])
def test_views_have_the_crop_s_size_and_flip_only_where_the_class_allows(name, data, make_run) -> None:
    for crop in (0, 12):
        method = Supervised(augment=name, crop=crop, batch_size=8)
        batch = next(_Feed(method, data, make_run()).batches({}, 0, 0))
        assert batch.views[0].shape == (8, 3, crop or 16, crop or 16)
        assert batch.views[0].is_contiguous(memory_format=torch.channels_last)
        unflipped = method.view(dataclasses.replace(data.shape, flip=False))
        assert "Flip" not in repr(unflipped)
        assert ("Flip" in repr(method.view(data.shape))) == (name != "none")


def test_bfloat16_trains(backbone, data, make_run) -> None:
    for method in LOOPS:
        assert torch.isfinite(
            torch.cat(
                [w.flatten() for w in _made(method, backbone, data, make_run(precision="bf16")).parameters()]
            )
        ).all()


def test_ramps_schedule_moves_rate_and_beta() -> None:
    method = PiModel()
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    method.adjust(optimizer, 0, 300)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.003 * 0.0067379, rel=1e-4)
    method.adjust(optimizer, 100, 300)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.003)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    method.adjust(optimizer, 299, 300)
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(0.5, abs=1e-4)
