"""What every unit promises, asked of each that the registry finds, with its settings of the smoke suite.

A new unit adds itself to ``bench/suites/smoke.toml`` and is tested here.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import registry, tensors
from bench.augment import unit
from bench.cache import FileCache
from bench.contracts import Measurement
from bench.data import assemble, splits
from bench.planning import plan
from bench.planning.suite import load
from bench.records import Unit
from bench.session import Session

CPU = torch.device("cpu")
LABELED, UNLABELED = 30, 50


def built_in(kind):
    """Names of our units: what is installed beside them is tested where it comes from."""
    return [name for name, info in registry.units(kind).items() if info.module.startswith(f"{kind}s.")]


METHODS, PROTOCOLS = built_in("method"), built_in("protocol")


@pytest.fixture(scope="module")
def smoke():
    """The smoke suite's cells that can be measured."""
    return [one.cell for one in plan.cells(load("smoke")) if not one.cell.skip]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class StopError(Exception):
    """The machine went away."""


class Interrupted(Session):
    """Saves after every step; goes away after ``stop`` of them."""

    stop = -1

    def checkpoint(self, done, state, *, force=False):
        super().checkpoint(done, state, force=True)
        self.last = done
        if done == self.stop:
            raise StopError


class Bench:
    """One training of the smoke suite, small: what a worker does, in the hands of a test."""

    def __init__(self, training, folder):
        few = {"labels": LABELED, "unlabeled": UNLABELED}
        self.method = registry.load("method", training.method)
        if not self.method.sees_labels:
            few = {"labels": 0, "unlabeled": LABELED + UNLABELED}
        self.training, self.folder = replace(training, data=replace(training.data, **few)), folder
        self.dataset = registry.load("dataset", training.data.dataset)

    def data(self):
        return assemble.training_set(
            self.training.data, self.dataset, Path("nowhere"), self.method.sees_labels, CPU
        )[0]

    def session(self, name="run", stop=-1):
        session = Interrupted(
            self.folder / name, seed=3, device=CPU, cache=FileCache(self.folder / "cache"), budget="3 epochs"
        )
        session.stop = stop
        return session

    def build(self):
        from bench.worker.models import backbone_of

        generator = self.session().generator("weights")
        model = self.method.build(backbone_of(self.training), self.data().shape, generator)
        return model.to(memory_format=torch.channels_last)

    def train(self, name="run", stop=-1, data=None):
        session = self.session(name, stop)
        model = self.method.train(self.build(), data or self.data(), session)
        session.finish()
        return model, session


@pytest.fixture
def method(request, smoke, tmp_path):
    """The named method's training of the smoke suite."""
    found = [cell.training for cell in smoke if cell.training.method.name == request.param]
    assert found, f"add {request.param} to bench/suites/smoke.toml"
    return Bench(found[0], tmp_path)


def same(a, b):
    """Names of the weights and buffers that differ."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


def every_method(function):
    return pytest.mark.parametrize("method", METHODS, indirect=True)(function)


# ---- methods -------------------------------------------------------------------------------------


@every_method
def test_a_method_trains_to_the_same_bits_twice_and_after_an_interruption(method):
    model, session = method.train("first")
    again, _ = method.train("again")
    assert same(model, again) == []
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    total = getattr(session, "last", 0)
    for stop in sorted({1, total // 2, total - 1} & set(range(1, total))):
        with pytest.raises(StopError):
            method.train(f"cut{stop}", stop)
        resumed, later = method.train(f"cut{stop}")
        assert same(model, resumed) == [], stop
        assert later.images_seen == session.images_seen
        assert later.curves == session.curves


@every_method
def test_saved_weights_make_the_same_model(method, tmp_path):
    model, _ = method.train()
    tensors.save_model(tmp_path / "model", model)
    loaded = method.build()
    tensors.load_model(tmp_path / "model", loaded)
    assert set(model.variants) == set(type(method.method).variants)
    (images,) = next(method.data().images.views([torch.arange(12)], [lambda images, _: images], 0, 0))
    for one, other in zip(
        [model, *model.variants.values()], [loaded, *loaded.variants.values()], strict=True
    ):
        one.eval()
        other.eval()
        with torch.no_grad():
            features = one.encoder(images)
            assert features.shape == (12, one.encoder.dim)
            assert torch.equal(other.encoder(images), features)
            torch.testing.assert_close(one.encoder(unit(images)), features)
            assert (one.head is None) == (other.head is None)
            if one.head is not None:
                assert one(images).shape == (12, method.dataset.classes)
                assert torch.equal(one(images), other(images))


@every_method
def test_training_moves_weights_and_leaves_the_data_alone(method):
    data = method.data()
    before = next(data.images.views([torch.arange(len(data))], [lambda images, _: images.clone()], 0, 0))[0]
    labels = None if data.labels is None else data.labels.clone()
    fresh = method.build()
    model, session = method.train(data=data)
    assert torch.equal(next(data.images.views([torch.arange(len(data))], [lambda i, _: i], 0, 0))[0], before)
    assert labels is None or torch.equal(labels, data.labels)
    if session.images_seen and hasattr(session, "last"):
        assert same(fresh.encoder, model.encoder)


@every_method
def test_every_loss_moves_the_learner_at_the_end_of_its_ramp(method):
    loop = method.method
    if not hasattr(loop, "losses"):
        pytest.skip("no gradient descent on named losses")
    from methods._loop import _Feed

    torch.manual_seed(0)
    data, run, model = method.data(), method.session(), method.build().train()
    state = loop.state(model, data, run)
    feed = _Feed(loop, data, run)
    for epoch in range(2):  # memories of earlier epochs teach from the second one on
        loop.begin_epoch(epoch, model, state, data, run)
        for done, batch in enumerate(feed.batches(state, epoch, 0)):
            loop.losses(model, state, batch, done, 1000)
            if epoch == 0:
                loop.after_step(model, state, batch, done + 1)
    terms = loop.losses(model, state, batch, 1000, 1000)
    assert terms
    weights = [p for p in loop.learner(model).parameters() if p.requires_grad]
    for name, term in terms.items():
        assert term.ndim == 0
        found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().max() > 0 for g in found), f"{name} moves nothing"


@every_method
def test_hidden_labels_change_nothing(method, monkeypatch):
    real = method.data()
    assert method.method.sees_labels or real.labels is None
    if real.labels is not None:
        assert int((real.labels >= 0).sum()) == LABELED
        assert len(real) == LABELED + UNLABELED
    model, _ = method.train("honest")

    # The split as it was drawn; then every label outside of it is another one.
    draw, drawn = splits.labeled, []
    monkeypatch.setattr(splits, "labeled", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1])
    method.data()
    shown = torch.as_tensor(drawn[0])
    monkeypatch.setattr(splits, "labeled", lambda *_, **__: drawn[0])
    load_split = type(method.dataset).load

    def poisoned(self, split, root):
        samples = load_split(self, split, root)
        labels = (samples.labels + 1) % method.dataset.classes
        labels[shown] = samples.labels[shown]
        assert (labels != samples.labels).sum() == len(labels) - len(shown)
        return replace(samples, labels=labels)

    monkeypatch.setattr(type(method.dataset), "load", poisoned)
    again, _ = method.train("poisoned")
    assert same(model, again) == []


@every_method
def test_shown_labels_are_used(method):
    if not method.method.sees_labels:
        pytest.skip("sees no labels")
    data = method.data()
    other = replace(data, labels=torch.where(data.labels >= 0, (data.labels + 1) % data.classes, -1))
    assert same(method.train("true")[0], method.train("false", data=other)[0])


# ---- protocols -----------------------------------------------------------------------------------


class Judge:
    """One protocol's cell of the smoke suite: a trained model, its target, fresh sessions."""

    def __init__(self, cell, folder):
        self.bench = Bench(cell.training, folder / "training")
        self.model = self.bench.train()[0].eval()
        self.protocol = registry.load("protocol", cell.protocol)
        dataset = registry.load("dataset", cell.aim.dataset)
        self.target = assemble.target(cell.aim, dataset, Path("nowhere"), CPU)[0]
        self.folder, self.numbers = folder, itertools.count()

    def judge(self, target=None, digest=""):
        folder = self.folder / str(next(self.numbers))
        run = Session(folder, seed=3, device=CPU, cache=FileCache(folder / "cache"), weights_digest=digest)
        run.taps = tuple(self.protocol.taps(self.model.encoder))
        found = list(self.protocol.evaluate(self.model, target or self.target, run))
        return [m for m in found if isinstance(m, Measurement)]


@pytest.fixture
def judge(request, smoke, tmp_path):
    found = [cell for cell in smoke if cell.protocol.name == request.param]
    assert found, f"add {request.param} to bench/suites/smoke.toml"
    # A classifier where one is needed; else whatever the suite pairs the protocol with.
    return Judge(max(found, key=lambda cell: cell.training.method.name == "supervised"), tmp_path)


def every_protocol(function):
    return pytest.mark.parametrize("judge", PROTOCOLS, indirect=True)(function)


def poisoned(samples, classes):
    """Every annotation goes to another image."""

    def turned(values):
        return None if values is None else [*values[1:], values[0]]

    labels = None if samples.labels is None else (samples.labels + 1) % classes
    multilabel = None if samples.multilabel is None else samples.multilabel.roll(1, 0)
    return replace(
        samples,
        labels=labels,
        multilabel=multilabel,
        boxes=turned(samples.boxes),
        masks=turned(samples.masks),
    )


@every_protocol
def test_a_protocol_judges_to_the_same_numbers_and_leaves_the_model_alone(judge):
    before = {k: v.clone() for k, v in judge.model.state_dict().items()}
    flags = [
        (m.training, *(p.requires_grad for p in m.parameters(recurse=False))) for m in judge.model.modules()
    ]
    first = judge.judge()
    assert first
    assert all(torch.isfinite(torch.tensor(m.value)) for m in first)
    assert {m.split for m in first} <= {"train", "validation", "test"}
    assert "test" in {m.split for m in first}
    keys = [(m.metric, m.layer, m.split, m.step) for m in first]
    assert len(keys) == len(set(keys))
    assert judge.judge() == first
    assert judge.judge(digest="w") == first  # whether features are kept is nobody's business
    after = judge.model.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert flags == [
        (m.training, *(p.requires_grad for p in m.parameters(recurse=False))) for m in judge.model.modules()
    ]


@every_protocol
def test_test_labels_choose_nothing(judge):
    first = judge.judge()
    wrong = judge.judge(replace(judge.target, test=poisoned(judge.target.test, judge.target.classes)))
    assert [m for m in wrong if m.split != "test"] == [m for m in first if m.split != "test"]
    assert [(m.metric, m.layer, m.split, m.step) for m in wrong] == [
        (m.metric, m.layer, m.split, m.step) for m in first
    ]
    assert [m.value for m in wrong if m.split == "test"] != [m.value for m in first if m.split == "test"]


def test_every_unit_is_in_the_smoke_suite(smoke):
    assert {cell.training.method.name for cell in smoke} >= set(METHODS)
    assert {cell.protocol.name for cell in smoke} >= set(PROTOCOLS)


@pytest.mark.parametrize("kind", ["method", "protocol", "backbone"])
def test_papers_are_cited_and_fields_are_frozen(kind):
    for name, info in registry.units(kind).items():
        assert info.paper, name
        made = registry.load(kind, Unit(name))
        with pytest.raises(AttributeError):
            made.something = 1
