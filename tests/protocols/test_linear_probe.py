"""The linear probe: its gradient, its accuracy, its choices and its resumption."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torchvision.transforms.functional import ten_crop

from bench.augment import Resize
from bench.contracts import BenchError, Tap, Target
from protocols._crops import ten_crop_scores
from protocols._heads import Descent, Heads
from protocols.linear_probe import LinearProbe
from protocols.mlp_probe import MlpProbe

PROBE = LinearProbe(
    augment="none",
    epochs=20,
    batch_size=30,
    pooling="dims_max",
    size=128,
    learning_rates=(0.001, 0.05, 0.5),
)
CPU = torch.device("cpu")


def _values(found, metric="top1", split="test"):
    return {m.layer: m.value for m in found if m.metric == metric and m.split == split}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_steps_are_those_of_autograd_and_torch(nesterov, norm):
    generator = torch.Generator().manual_seed(0)
    rates, decay = (0.05, 0.5), 0.01
    heads = Heads(6, 4, Descent(rates, 0.9, nesterov, decay), norm, CPU)
    nets = [torch.nn.Linear(6, 4) for _ in rates]
    norms = torch.nn.BatchNorm1d(6, affine=False) if norm == "batch" else torch.nn.Identity()
    for net in nets:
        torch.nn.init.zeros_(net.weight)
        torch.nn.init.zeros_(net.bias)
    groups = [
        {"params": [p], "lr": rate, "weight_decay": decay if p.ndim == 2 else 0.0}
        for net, rate in zip(nets, rates, strict=True)
        for p in net.parameters()
    ]
    optimizer = torch.optim.SGD(groups, 1.0, 0.9, nesterov=nesterov)
    for _ in range(5):
        x = torch.randn(16, 6, generator=generator) * 3 + 1
        y = torch.randint(0, 4, (16,), generator=generator)
        losses = heads.step(x, y, 1.0)
        z = norms(x)
        expected = torch.stack([F.cross_entropy(net(z), y) for net in nets])
        optimizer.zero_grad()
        expected.sum().backward()
        optimizer.step()
        torch.testing.assert_close(losses, expected.detach())
    for r, net in enumerate(nets):
        torch.testing.assert_close(heads.weight.view(2, 4, 6)[r], net.weight.data, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(heads.bias.view(2, 4)[r], net.bias.data, rtol=1e-4, atol=1e-6)
    weight, bias = heads.folded()
    norms.eval()
    x = torch.randn(7, 6, generator=generator)
    torch.testing.assert_close(x @ weight[0].t() + bias[0], nets[0](norms(x)).detach(), rtol=1e-4, atol=1e-5)


def test_certain_heads_leave_no_subnormal_numbers():
    """exp(-95) / 16 is one, and a processor may take many times as long for a product with it."""
    heads, x = Heads(4, 4, Descent((0.1,), 0.9, True, 0.0), "none", CPU), torch.eye(4).repeat(4, 1)
    losses, error = heads.error(x, torch.arange(4).repeat(4), 95 * torch.eye(4), torch.zeros(4))
    sizes = torch.cat([error.flatten(), (error @ x).flatten(), (error @ x / 1e6).flatten()]).abs()
    assert losses.item() == 0
    assert (sizes > 0).any()
    assert not ((sizes > 0) & (sizes < torch.finfo(torch.float32).tiny)).any()
    assert sizes.max() < 1e-15  # and no weight moves by it


def test_a_batchs_statistics_are_a_channels_as_in_the_papers_code():
    """The releases normalize maps (N, C, h, w) by BatchNorm2d without scale and shift, and flatten them then."""
    generator = torch.Generator().manual_seed(0)
    heads = Heads(5 * 9, 4, Descent((0.1,), 0.9, True, 0.01, bias_rate=2.0), "batch", CPU, channels=5)
    net, norm = torch.nn.Linear(45, 4), torch.nn.BatchNorm2d(5, affine=False)
    for part in net.parameters():
        torch.nn.init.zeros_(part)
    groups = [
        {"params": [net.weight], "lr": 0.1, "weight_decay": 0.01},
        {"params": [net.bias], "lr": 0.2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, 0.1, 0.9, nesterov=True)
    trend = torch.arange(9.0).view(3, 3)  # places that differ, which statistics of their own would hide
    for _ in range(5):
        maps = (torch.randn(16, 5, 3, 3, generator=generator) + trend).relu()
        y = torch.randint(0, 4, (16,), generator=generator)
        heads.step(maps.flatten(1), y, 1.0)
        optimizer.zero_grad()
        F.cross_entropy(net(norm(maps).flatten(1)), y).backward()
        optimizer.step()
    torch.testing.assert_close(heads.weight, net.weight.data, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(heads.bias, net.bias.data, rtol=1e-4, atol=1e-6)
    weight, bias = heads.folded()
    norm.eval()
    maps = torch.randn(7, 5, 3, 3, generator=generator)
    expected = net(norm(maps).flatten(1)).detach()
    torch.testing.assert_close(maps.flatten(1) @ weight[0].t() + bias[0], expected, rtol=1e-4, atol=1e-5)


def test_a_probe_tells_its_heads_the_channels_of_a_layer(model, target, make_run, monkeypatch):
    told = []

    class Asked(Heads):
        def __init__(self, dim, *others):
            super().__init__(dim, *others)
            told.append((dim, len(self.mean)))

    monkeypatch.setattr("protocols.linear_probe.Heads", Asked)
    probe = dataclasses.replace(PROBE, epochs=1, pooling="adaptive_avg", size=2)
    list(probe.evaluate(model, target, make_run()))
    assert told == [(8 * 4, 8), (16 * 4, 16)]


@pytest.mark.parametrize("data", ["digits", "synthetic"])
def test_within_a_point_of_scikit_learn(data):
    if data == "digits":
        pixels, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    else:
        generator = torch.Generator().manual_seed(1)
        y = torch.randint(0, 5, (1500,), generator=generator)
        centers = torch.randn(5, 40, generator=generator)
        x = centers[y] + 2.5 * torch.randn(1500, 40, generator=generator)
    classes, count, decay = int(y.max()) + 1, 1000, 1e-3
    train, test = (x[:count], y[:count]), (x[count:], y[count:])
    heads = Heads(x.shape[1], classes, Descent((0.1,), 0.9, True, decay), "none", CPU)
    for epoch in range(80):
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
        for part in rows.split(100):
            heads.step(train[0][part], train[1][part], 1.0 if epoch < 60 else 0.05)
    weight, bias = heads.folded()
    ours = ((test[0] @ weight[0].t() + bias[0]).argmax(1) == test[1]).float().mean().item()
    # SGD decays the mean loss by decay/2 |w|^2; scikit-learn's C multiplies the sum of losses.
    theirs = LogisticRegression(C=1 / (decay * count), max_iter=2000).fit(*train).score(*test)
    assert abs(ours - theirs) <= 0.01


def test_all_layers_and_their_rates(model, target, make_run):
    found = list(PROBE.evaluate(model, target, make_run()))
    assert set(_values(found)) == {"conv1", "conv2"}
    assert min(_values(found).values()) > 60
    assert set(_values(found, "lr", "validation").values()) <= set(PROBE.learning_rates)
    assert set(_values(found, "top1", "validation")) == {"conv1", "conv2"}
    assert not _values(found, "top5")


def test_each_rate_is_what_it_is_alone(model, target, make_run):
    chosen = _values(found := list(PROBE.evaluate(model, target, make_run())), "lr", "validation")["conv2"]
    alone = dataclasses.replace(PROBE, learning_rates=(chosen,))
    again = list(alone.evaluate(model, target, make_run()))
    assert _values(again)["conv2"] == pytest.approx(_values(found)["conv2"], abs=1.2)


def test_choices_do_not_see_test_labels(model, target, make_run):
    flipped = dataclasses.replace(target.test, labels=(target.test.labels + 1) % 3)
    poisoned = dataclasses.replace(target, test=flipped)
    for probe in (PROBE, dataclasses.replace(PROBE, select="best")):
        one = [m for m in probe.evaluate(model, target, make_run()) if m.split == "validation"]
        other = [m for m in probe.evaluate(model, poisoned, make_run()) if m.split == "validation"]
        assert one == other


def test_a_diverging_rate_does_not_disturb_the_others(model, target, make_run):
    wild = dataclasses.replace(PROBE, learning_rates=(0.05, 1e30), feature_norm="none")
    calm = dataclasses.replace(PROBE, learning_rates=(0.05, 0.05), feature_norm="none")
    found, expected = (list(p.evaluate(model, target, make_run())) for p in (wild, calm))
    assert _values(found) == _values(expected)
    assert set(_values(found, "lr", "validation").values()) == {0.05}


@pytest.mark.parametrize(
    "change", [{}, {"augment": "crop_flip", "pad": 1}, {"augment": "flip"}, {"select": "best"}]
)
def test_resumed_is_equal(model, target, make_run, killed, change):
    probe = dataclasses.replace(PROBE, epochs=3, **change)
    undisturbed = list(probe.evaluate(model, target, make_run()))
    run = make_run(kill_at=7)
    with pytest.raises(killed):
        list(probe.evaluate(model, target, run))
    run.kill_at = 0
    assert list(probe.evaluate(model, target, run)) == undisturbed


def test_crops_run_the_encoder_once_a_step(model, target, make_run):
    probe = dataclasses.replace(PROBE, epochs=2, augment="crop_flip", pad=1)
    seen = []
    model.encoder.trunk[0].register_forward_hook(lambda _m, _i, out: seen.append(len(out)))
    assert probe.taps(model.encoder) == ()
    list(probe.evaluate(model, target, make_run()))
    assert sum(seen) == 2 * 150 + 60 + 90


def test_standardized_features(model, target, make_run):
    probe = dataclasses.replace(PROBE, feature_norm="standardize")
    assert min(_values(probe.evaluate(model, target, make_run())).values()) > 60


def test_a_choice_needs_validation(model, target, make_run, make_samples):
    empty = Target(target.train, make_samples("none", 0, 0), target.test, 3)
    with pytest.raises(BenchError, match="validation"):
        list(PROBE.evaluate(model, empty, make_run()))
    one = dataclasses.replace(PROBE, learning_rates=(0.1,))
    assert {m.split for m in one.evaluate(model, empty, make_run()) if m.metric == "top1"} == {"test"}


def test_unlabeled_images_are_left_out(model, target, make_run):
    keep = torch.arange(150) < 90
    hidden = dataclasses.replace(target.train, labels=torch.where(keep, target.train.labels, -1))
    found = _values(PROBE.evaluate(model, dataclasses.replace(target, train=hidden), make_run()))
    assert min(found.values()) > 50


@pytest.mark.parametrize("field", ["feature_norm", "augment", "padding", "select"])
def test_unknown_words_are_refused(field):
    with pytest.raises(BenchError, match=field):
        LinearProbe(**{field: "x"})


@pytest.mark.parametrize("softmax", [True, False])
@torch.no_grad()
def test_ten_crops_are_torchvisions_and_their_scores_are_averaged(model, target, make_run, softmax):
    generator = torch.Generator().manual_seed(0)
    heads = {
        Tap("conv1", "adaptive_avg", 2, 7): (torch.randn(3, 32, generator=generator), torch.randn(3)),
        Tap("output", side=7): (torch.randn(3, 16, generator=generator), torch.randn(3)),
    }
    found = ten_crop_scores(model.encoder, target.test.images, heads, make_run(), softmax=softmax)
    model.encoder.eval()
    resized = Resize(8)(target.test.images.pixels, None)
    expected = dict.fromkeys(heads, 0)
    for crop in ten_crop(resized, 7):
        maps = model.encoder.activations(crop, ["conv1"])["conv1"]
        read = [F.adaptive_avg_pool2d(maps, 2).flatten(1), model.encoder(crop)]
        for (tap, (weight, bias)), x in zip(heads.items(), read, strict=True):
            scores = x @ weight.t() + bias
            expected[tap] += (scores.softmax(1) if softmax else scores) / 10
    for tap in heads:
        torch.testing.assert_close(found[tap], expected[tap])


def test_a_probe_may_be_judged_on_ten_crops(model, target, make_run):
    ten, center = (
        {"epochs": 6, "batch_size": 30, "pooling": "dims_max", "size": 128, "side": 7, "test": test}
        for test in ("ten_softmax", "center")
    )
    one, other = (list(LinearProbe(**p).evaluate(model, target, make_run())) for p in (ten, center))
    assert [(m.metric, m.layer, m.split) for m in one] == [(m.metric, m.layer, m.split) for m in other]
    assert [m for m in one if m.metric == "lr"] == [m for m in other if m.metric == "lr"]
    assert _values(one) != _values(other)
    assert all(value > 60 for value in _values(one).values())
    with pytest.raises(BenchError, match=r"linear_probe\.test is \'ten_scores\', which needs a side"):
        LinearProbe(test="ten_scores")


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize(
    ("labels", "batch", "told"), [(1, 32, "there is 1 labeled image"), (9, 1, "batch_size is 1")]
)
def test_batch_normalization_of_one_image_is_refused(augment, labels, batch, told, model, target, make_run):
    """Its variance would be divided by none: the running one were no number, and every guess wrong."""
    few = dataclasses.replace(
        target.train, labels=torch.where(torch.arange(150) < labels, target.train.labels, -1)
    )
    target = dataclasses.replace(target, train=few)
    probe = dataclasses.replace(PROBE, augment=augment, batch_size=batch, epochs=1)
    for protocol in (probe, MlpProbe(augment=augment, batch_size=batch, epochs=1)):
        with pytest.raises(BenchError, match=rf"needs batches of two images, and {told}: write \w+ = "):
            list(protocol.evaluate(model, target, make_run()))
    others = [dataclasses.replace(probe, feature_norm=norm) for norm in ("standardize", "none")]
    for protocol in (*others, MlpProbe(augment=augment, batch_size=batch, epochs=1, hidden=())):
        found = [m for m in protocol.evaluate(model, target, make_run()) if m.metric == "top1"]
        assert all(0 < m.value <= 100 for m in found)


def test_maps_of_one_image_have_statistics_of_their_places():
    heads = Heads(5 * 9, 4, Descent((0.1,), 0.9, True, 0.0), "batch", CPU, channels=5)
    heads.step(torch.randn(1, 45), torch.tensor([2]), 1.0)
    assert heads.var.isfinite().all()
