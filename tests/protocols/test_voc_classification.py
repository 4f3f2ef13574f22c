"""Crops, loss and judging against independent ones; which layers move; that it learns and resumes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchvision.transforms.functional import ten_crop

from bench.backbones.alexnet import AlexNet
from bench.contracts import BenchError, Draws, Model, Samples, Target
from bench.data.sources import Resident
from methods.parts.foreign import Foreign
from protocols import voc_classification
from protocols.voc_classification import ScaleCrop, VocClassification, _Classifier, presence_loss

SMALL = VocClassification(
    train="all", fresh="fc8", steps=40, batch_size=16, lr=0.02, side=12, scale=(0.8, 1.2), crops=2
)


def several(name, count, seed):
    """Classes show as bright rows of red, green and blue, any of them; the third is sometimes difficult."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(count, 3, generator=generator) < 0.4
    pixels = torch.randint(0, 60, (count, 3, 16, 16), generator=generator)
    for c in range(3):
        pixels[:, c, 2 + 4 * c : 6 + 4 * c] += 150 * present[:, c, None, None]
    labels = present.to(torch.int8) * 2 - 1
    labels[torch.rand(count, generator=generator) < 0.2, 2] = 0
    return Samples(name, Resident(pixels.to(torch.uint8)), multilabel=labels)


def target():
    return Target(several("a", 64, 1), several("b", 0, 2), several("c", 40, 3), 3)


def values(found):
    return {(m.metric, m.split): m.value for m in found}


def test_the_loss_leaves_out_what_is_difficult():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(4, 3, generator=generator), torch.randint(-1, 2, (4, 3), generator=generator)
    expected = 0.0
    for row, truth in zip(scores.double().numpy(), labels.numpy(), strict=True):
        for score, label in zip(row, truth, strict=True):
            if label:
                expected += np.log1p(np.exp(-score * label)) / 4
    assert float(presence_loss(scores, labels)) == pytest.approx(expected, rel=1e-6)


def test_random_scales_see_windows_of_their_size():
    ramp = (torch.arange(100.0) / 100).expand(6, 3, 80, 100)
    crop = ScaleCrop(40, (0.5, 2.0))
    out = crop(ramp, Draws(0, 0, torch.arange(6)))
    assert out.shape == (6, 3, 40, 40)
    step = (out[:, 0, 0, 30] - out[:, 0, 0, 10]) / 20 * 100  # pixels of the image a pixel of the crop
    expected = 1 / Draws(0, 0, torch.arange(6)).uniform(low=0.5, high=2.0)
    torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-4)
    assert step.min() < 0.8 and step.max() > 1.2
    # An image that would be smaller than the window is enlarged: the shorter side is seen whole.
    small = crop(ramp[..., :30, :30], Draws(0, 0, torch.arange(6)))
    steps = (small[:, 0, 0, 30] - small[:, 0, 0, 10]) / 20 * 100
    torch.testing.assert_close(steps, torch.minimum(expected, torch.tensor(30 / 40)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("std", [0.01, 0.0])
def test_new_layers_are_drawn_as_told(model, std):
    """0.01 everywhere, as Caffe's models; or by each layer's inputs."""
    protocol = replace(SMALL, train="fc6-8", fresh="fc6-8", hidden=200, std=std)
    net = _Classifier(protocol, model.encoder, 3, torch.Generator().manual_seed(0))
    net.requires_grad_(False)
    below = [part for part in net.top if isinstance(part, torch.nn.Linear)]
    inputs = [part.in_features for part in below]
    assert inputs == [16 * 36, 200]
    expected = [std or (2 / n) ** 0.5 for n in inputs]
    assert [float(part.weight.std()) for part in below] == pytest.approx(expected, rel=0.02)
    assert float(net.head[1].weight.std()) == pytest.approx(0.01, rel=0.1)
    for part in (*below, net.head[1]):
        assert torch.equal(part.bias, torch.full_like(part.bias, 0.1 if std else 0.0))


def test_ten_crops_are_torchvisions():
    image = torch.randint(0, 256, (1, 3, 14, 14), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    views = VocClassification(side=12, test="ten").test_views(flip=True)
    ours = [view(image, Draws(0, 0, torch.arange(1))) for view in views]
    # Theirs are mirrored first, ours cut first: the same ten in another order.
    assert sorted(o.tolist() for o in ours) == sorted(o.tolist() for o in ten_crop(image, 12))


def test_scores_are_summed_and_judged_by_the_references_rule(model, make_run, monkeypatch):
    data = target()
    scores = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(voc_classification._Training, "judge", lambda *_: scores)
    found = values(replace(SMALL, steps=1).evaluate(model, data, make_run()))
    for metric, table in (("mAP", scores.sum(1)), ("mAP_1crop", scores[:, 0])):
        expected = []
        for c in range(3):
            told = data.test.multilabel[:, c] != 0
            y = (data.test.multilabel[told, c] > 0).numpy().astype(int)
            expected.append(average_precision_score(y, table[told, c].double().numpy() - 1e-5 * y))
        assert found[metric, "test"] == pytest.approx(100 * np.mean(expected))
    assert found["mAP", "test"] == found["ap_sklearn", "test"]
    assert found["ap_envelope", "test"] > found["ap_sklearn", "test"]


MOVES = {
    ("all", "fc8"): {"trunk", "top", "head"},
    ("all", "fc6-8"): {"trunk", "top", "head"},
    ("fc6-8", "fc8"): {"top", "head"},
    ("fc6-8", "fc6-8"): {"top", "head"},
    ("fc8", "fc8"): {"head"},
}


@pytest.mark.parametrize("modes", MOVES)
def test_what_is_trained_and_what_begins_anew(make_run, monkeypatch, modes):
    train, fresh = modes
    encoder = AlexNet(variant="deepcluster").build(generator=torch.Generator().manual_seed(0), width=0.03125)
    nets = []
    real = voc_classification._Classifier
    monkeypatch.setattr(voc_classification, "_Classifier", lambda *a: nets.append(real(*a)) or nets[-1])
    protocol = replace(SMALL, train=train, fresh=fresh, steps=2, side=64)
    before = real(protocol, encoder, 3, make_run().generator("voc_classification")).state_dict()
    own = {f"top.{name}": value for name, value in encoder.top.state_dict().items()}
    assert all(torch.equal(before[name], own[name]) for name in own) == (fresh == "fc8")
    images = several("a", 32, 1)
    list(protocol.evaluate(Model(encoder), Target(images, several("b", 0, 2), images, 3), make_run()))
    after = nets[0].state_dict()
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == MOVES[modes]
    statistics = [name for name in before if name.startswith("trunk") and "running" in name]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)


def test_a_backbone_without_fully_connected_layers_gets_new_ones(model):
    generator = torch.Generator().manual_seed(0)
    net = _Classifier(replace(SMALL, fresh="fc6-8", hidden=7), model.encoder, 3, generator)
    widths = [tuple(m.weight.shape) for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert widths == [(7, 16 * 36), (7, 7), (3, 7)]
    assert net(torch.rand(2, 3, 20, 20)).shape == (2, 3)


def test_it_learns_and_an_interrupted_run_ends_with_the_same_numbers(model, make_run, killed):
    undisturbed = values(SMALL.evaluate(model, target(), make_run()))
    assert undisturbed["mAP", "test"] > 80  # chance is the positives' share, 40
    run = make_run(kill_at=25)
    with pytest.raises(killed):
        list(SMALL.evaluate(model, target(), run))
    assert values(SMALL.evaluate(model, target(), run)) == undisturbed


def test_bad_settings_are_one_line():
    with pytest.raises(BenchError, match=r"voc_classification\.train is 'fc7'; write one of all, fc6-8, fc8"):
        VocClassification(train="fc7")
    with pytest.raises(BenchError, match='fresh is "fc6-8", which fc8 alone does not train; write "fc8"'):
        VocClassification(train="fc8")


@torch.no_grad()
def test_a_foreign_network_gives_its_features_or_new_layers_read_its_last_maps():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 5)
    )
    encoder = Foreign(net, (0.5,) * 3, (0.25,) * 3, (), 16).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    pixels = (images / 255 - 0.5) / 0.25
    old = _Classifier(VocClassification(train="all", fresh="fc8"), encoder, 3, torch.Generator()).eval()
    torch.testing.assert_close(old(images), old.head[1](net(pixels)))
    new = _Classifier(VocClassification(hidden=7), encoder, 3, torch.Generator()).eval()
    made = torch.nn.Sequential(new.top, new.head).modules()
    fc6, fc7, fc8 = (part for part in made if isinstance(part, torch.nn.Linear))
    grid = torch.nn.functional.adaptive_avg_pool2d(net[:2](pixels), 6).flatten(1)
    torch.testing.assert_close(new(images), fc8(fc7(fc6(grid).relu()).relu()))
    assert {p.requires_grad for p in new.trunk.parameters()} == {False}


def test_new_layers_need_maps():
    encoder = Foreign(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5)), (0.5,) * 3, (0.25,) * 3, (), 8
    )
    with pytest.raises(BenchError, match='this network has no maps; write "fc8"'):
        _Classifier(VocClassification(), encoder, 3, torch.Generator())
