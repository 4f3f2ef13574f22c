"""Frozen protocols cost little more than what they cannot do without, and nothing is computed twice."""

from __future__ import annotations

from collections import Counter

import faiss
import pytest
import torch
import torch.nn.functional as F
from _ratio import in_turns, tell

from bench import registry
from bench.cache import FileCache
from bench.contracts import Model, Samples, Target
from bench.data.sources import Resident
from bench.records import Unit
from bench.session import Session
from protocols import knn
from protocols._features import read
from protocols._heads import EPS, Descent, Heads
from protocols._views import random_view

CPU = torch.device("cpu")
CLASSES = 10
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")


def made(backbone, **settings):
    encoder = registry.load("backbone", Unit.of(backbone, settings)).build(
        generator=torch.Generator().manual_seed(0)
    )
    return Model(encoder).to(memory_format=torch.channels_last).eval()


def images(count, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Resident(torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator))


class Stepper:
    """A linear probe's own steps on fresh crops: as its ``Cropped`` feeds them and its ``update`` takes them."""

    def __init__(self, probe, model, source, run):
        self.taps, self.encoder, self.run = probe._read(model.encoder), model.encoder, run
        self.images, self.frame = source, random_view(source, "crop_flip", 0, probe.pad, flip=True)
        self.index = torch.arange(probe.batch_size)
        self.labels = self.index % CLASSES
        descent = Descent(probe.learning_rates, probe.momentum, probe.nesterov, probe.weight_decay)
        found = self.features()
        self.heads = {
            tap: Heads(
                x.shape[1], CLASSES, descent, probe.feature_norm, CPU, model.encoder.channels[tap.layer]
            )
            for tap, x in found.items()
        }

    def features(self):
        (view,) = next(iter(self.images.views([self.index], [self.frame], 0, 0)))
        return read(self.encoder, view, self.taps, self.run)

    def __call__(self):
        for tap, found in self.features().items():
            self.heads[tap].step(found, self.labels, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "side"), [("3x3", 32), ("7x7", 64)])
def test_all_layers_and_rates_cost_little_more_than_one_head(stem, side, tmp_path, one_thread):
    model, source = made("resnet18", stem=stem), images(64, side)
    run = Session(tmp_path, seed=0, device=CPU, cache=FileCache(tmp_path))
    every = registry.load("protocol", Unit.of("linear_probe", {"batch_size": 64, "learning_rates": RATES}))
    one = registry.load("protocol", Unit.of("linear_probe", {"batch_size": 64, "layers": LAYERS[-1:]}))
    assert model.encoder.layers == LAYERS
    ratio = in_turns(Stepper(every, model, source, run), Stepper(one, model, source, run), 6, 1.5)
    tell(f"linear probe, 5 layers x 7 rates over one head, {stem} at {side} px", ratio, "at most 1.5")
    assert ratio <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "side"), [("3x3", 32), ("7x7", 64)])
def test_52_heads_cost_at_most_two_of_one(stem, side, tmp_path, one_thread):
    """13 learning rates on 4 layers in one training, the encoder's forward pass in every step."""
    model, source = made("resnet18", stem=stem), images(64, side)
    run = Session(tmp_path, seed=0, device=CPU, cache=FileCache(tmp_path))
    rates = tuple(0.001 * 2**k for k in range(13))
    every = {"batch_size": 64, "layers": LAYERS[1:], "learning_rates": rates}
    many, one = (
        registry.load("protocol", Unit.of("linear_probe", settings))
        for settings in (every, {"batch_size": 64, "layers": LAYERS[-1:]})
    )
    stepper = Stepper(many, model, source, run)
    assert sum(heads.count for heads in stepper.heads.values()) == 52
    ratio = in_turns(stepper, Stepper(one, model, source, run), 6, 2)
    tell(f"linear probe, 52 heads over one, {stem} at {side} px", ratio, "at most 2")
    assert ratio <= 2


class Bare:
    """Logits, the softmax's gradient, the weight's gradient, and a plain step along it."""

    def __init__(self, dim, norm):
        self.weight, self.bias = torch.zeros(len(RATES) * CLASSES, dim), torch.zeros(len(RATES) * CLASSES, 1)
        self.rates, self.norm = torch.tensor(RATES).repeat_interleave(CLASSES)[:, None], norm
        self.mean, self.var = torch.zeros(dim), torch.ones(dim)

    @torch.no_grad()
    def step(self, features, labels):
        if self.norm == "batch":
            features = F.batch_norm(features, self.mean, self.var, training=True, momentum=0.1, eps=EPS)
        logits = torch.addmm(self.bias, self.weight, features.t())
        chances = logits.view(len(RATES), CLASSES, -1).softmax(1)
        error = chances.clamp_(min=1e-17)  # subnormal numbers are slow
        error[:, labels, torch.arange(len(labels))] -= 1
        error = error.flatten(0, 1).div_(len(labels))
        gradient = error @ features
        self.weight.addcmul_(gradient, self.rates, value=-1)
        self.bias.addcmul_(error.sum(1, keepdim=True), self.rates, value=-1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_heads_on_stored_features_cost_their_matrix_products(norm, one_thread):
    batch, dim, count = 192, 9216, 1920
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(count, dim, generator=generator) / 100
    labels = torch.arange(count) % CLASSES
    heads, bare = Heads(dim, CLASSES, Descent(RATES, 0.9, True, 5e-4), norm, CPU), Bare(dim, norm)
    plain = Heads(dim, CLASSES, Descent(RATES, 0.0, False, 0.0), norm, CPU)
    plain.step(stored[:batch], labels[:batch], 1.0)
    bare.step(stored[:batch], labels[:batch])
    torch.testing.assert_close(plain.weight, bare.weight)  # it is the same work
    batches, buffer = torch.randperm(count, generator=generator).split(batch), stored.new_empty(batch, dim)

    def epoch(step):
        for index in batches:
            step(torch.index_select(stored, 0, index, out=buffer), labels[index])

    ratio = in_turns(
        lambda: epoch(lambda features, own: heads.step(features, own, 1.0)), lambda: epoch(bare.step), 30, 1.2
    )
    tell(f"linear probe on stored features, norm {norm}, over bare products", ratio, "at most 1.2")
    assert ratio <= 1.2


@pytest.mark.slow
def test_knn_costs_its_search(tmp_path, one_thread):
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 128, generator=generator) for n in (50_000, 10_000))
    protocol = registry.load("protocol", Unit.of("knn", {"k": 20}))
    target = Target(
        Samples("train", images(len(bank), 1), torch.arange(len(bank)) % CLASSES),
        Samples("validation", images(0, 1), torch.empty(0, dtype=torch.int64)),
        Samples("test", images(len(queries), 1), torch.arange(len(queries)) % CLASSES),
        CLASSES,
    )
    given = {"train": bank, "test": queries}
    run = Session(tmp_path, seed=0, device=CPU, cache=FileCache(tmp_path))
    faiss.omp_set_num_threads(1)

    def judged():
        return list(protocol.evaluate(Model(made("alexnet_small").encoder), target, run))

    def raw():
        index = faiss.IndexFlatIP(128)
        index.add(F.normalize(bank).numpy())
        index.search(F.normalize(queries).numpy(), 20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "features", lambda _model, samples, taps, _run: {taps[0]: given[samples.name]})
        ratio = in_turns(judged, raw, 3, 1.1)
    tell("knn over raw faiss, 50,000 x 10,000 x 128", ratio, "at most 1.1")
    assert ratio <= 1.1


@pytest.mark.slow
def test_a_second_frozen_protocol_makes_no_forward_pass(tmp_path, one_thread):
    model, counts = made("alexnet_small"), Counter()
    model.encoder.trunk.conv1.register_forward_hook(lambda *_: counts.update(["forward"]))
    target = Target(
        *(Samples(n, images(60, 32, s), torch.arange(60) % CLASSES) for s, n in enumerate("abc")), CLASSES
    )
    stored = {
        "layers": ["conv3", "conv5"],
        "augment": "none",
        "pooling": "adaptive_avg",
        "size": 2,
        "epochs": 1,
    }
    protocols = [
        registry.load("protocol", Unit.of(name, settings))
        for name, settings in [
            ("knn", {"k": 5}),
            ("linear_probe", stored),
            ("linear_probe", {**stored, "epochs": 2}),
        ]
    ]
    taps = tuple(dict.fromkeys(tap for p in protocols for tap in p.taps(model.encoder)))
    passes = []
    for number, protocol in enumerate(protocols):
        run = Session(
            tmp_path / str(number),
            seed=0,
            device=CPU,
            cache=FileCache(tmp_path / "cache"),
            taps=taps,
            weights_digest="w",
        )
        assert list(protocol.evaluate(model, target, run))
        passes.append(counts["forward"])
        counts.clear()
    assert passes == [3, 0, 0]  # one batch of each of the three splits, once
