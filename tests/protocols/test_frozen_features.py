"""The cache of frozen features: who runs the encoder, how often, and what comes back."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.augment import CenterCrop, Resize
from bench.contracts import BenchError, Evaluation, Measurement, Tap
from protocols import knn
from protocols._features import BATCH, collapsed, features, in_order
from protocols.clustering import Clustering
from protocols.embedding import Embedding
from protocols.error import Error
from protocols.filters import Filters
from protocols.knn import Knn
from protocols.linear_probe import LinearProbe
from protocols.linear_svm import LinearSvm
from protocols.mlp_probe import MlpProbe
from protocols.retrieval import Retrieval
from protocols.small_validation import SmallValidation
from protocols.voc_svm import VocSvm

PROBE = LinearProbe(augment="none", epochs=2, batch_size=32, pooling="dims_max", size=64)


def _count(model):
    seen = []
    model.encoder.trunk[0].register_forward_hook(lambda _m, _i, out: seen.append(len(out)))
    return seen


def test_the_second_frozen_protocol_makes_no_pass(model, target, make_run):
    model.head = torch.nn.Linear(16, 3)
    protocols = [PROBE, Knn(k=5), Error()]
    run = make_run(taps=[tap for p in protocols for tap in p.taps(model.encoder)])
    seen = _count(model)
    list(PROBE.evaluate(model, target, run))
    assert sum(seen) == len(target.train) + len(target.validation) + len(target.test)
    seen.clear()
    for protocol in protocols[1:]:
        list(protocol.evaluate(model, target, run))
    assert seen == []


def test_cached_and_fresh_features_are_bit_identical(model, target, make_run):
    taps = [Tap("conv1", "adaptive_max", 2), Tap("output"), Tap("conv2", "dims_avg", 64)]
    run = make_run(taps=taps)
    first = features(model, target.test, taps[:1], run)
    again = features(model, target.test, taps, run)
    alone = features(model, target.test, taps, make_run())
    assert torch.equal(first[taps[0]], again[taps[0]])
    for tap in taps:
        assert torch.equal(again[tap], alone[tap])
        assert again[tap].dtype == torch.float32
    assert [tuple(again[t].shape) for t in taps] == [(90, 32), (90, 16), (90, 64)]


def test_all_frozen_protocols_after_the_first_do_no_pass(model, target, make_run):
    """Each of them in turn is the first; SVM, multilayer probe, kNN, retrieval and clustering share one pass."""
    model.head = torch.nn.Linear(16, 3)
    protocols = [
        PROBE,
        Knn(k=5),
        Error(),
        LinearSvm(costs=(1.0,), layer="conv2", pooling="adaptive_avg", size=1),
        MlpProbe(epochs=1, layer="conv1", pooling="dims_max", size=32),
        Retrieval(layer="conv2", pooling="dims_avg", size=64),
        Clustering(restarts=1),
    ]
    seen = _count(model)
    for first in range(len(protocols)):
        run = make_run(taps=[tap for p in protocols for tap in p.taps(model.encoder)])
        passes = []
        for protocol in protocols[first:] + protocols[:first]:
            seen.clear()
            run.saved = None  # a checkpoint is one protocol's
            assert list(protocol.evaluate(model, target, run))
            passes.append(sum(seen))
        assert sum(passes) == len(target.train) + len(target.validation) + len(target.test)
        # Those that read the training images read all splits; error, alone, leaves the training set to the next.
        assert passes[0] == sum(passes) - (len(target.train) if first == 2 else 0)


# Every protocol that announces what it reads of a frozen encoder, small.
FROZEN = {
    "linear_probe": PROBE,
    "knn": Knn(k=5),
    "error": Error(),
    "small_validation": SmallValidation(sizes=(5, 10)),
    "linear_svm": LinearSvm(costs=(1.0,)),
    "voc_svm": VocSvm(size=64, side=0, costs=(0.1, 1.0), shot_costs=(0.1, 1.0), shots=(2, 4), draws=2),
    "mlp_probe": MlpProbe(epochs=1, layer="conv1", pooling="dims_max", size=32),
    "retrieval": Retrieval(layer="conv2", pooling="dims_avg", size=64, k=(1,), queries=2),
    "clustering": Clustering(restarts=1),
    "filters": Filters(images=4, units=2),
    "embedding": Embedding(images=40, iterations=250, picture_side=100),
}


def test_every_protocol_that_reads_frozen_features_is_counted_below():
    reading = set()
    for path in Path(knn.__file__).parent.glob("[a-z]*.py"):
        inside = vars(importlib.import_module(f"protocols.{path.stem}")).values()
        own = [
            c
            for c in inside
            if isinstance(c, type) and issubclass(c, Evaluation) and c.taps is not Evaluation.taps
        ]
        reading |= {path.stem for c in own if c.__module__ == f"protocols.{path.stem}"}
    assert reading == set(FROZEN)


def test_from_the_cache_every_frozen_protocol_gives_the_same_numbers_without_a_pass(model, target, make_run):
    """Against a run that keeps nothing, where each protocol encodes for itself: equal to the last bit."""
    model.head = torch.nn.Linear(16, 3)
    target = replace(
        target, **{split: several(getattr(target, split)) for split in ("train", "validation", "test")}
    )
    cached = make_run(taps=[tap for p in FROZEN.values() for tap in p.taps(model.encoder)])
    seen = _count(model)
    list(FROZEN["knn"].evaluate(model, target, cached))
    assert sum(seen) == len(target.train) + len(target.validation) + len(target.test)
    for name, protocol in FROZEN.items():
        cached.saved = None  # a checkpoint is one protocol's
        seen.clear()
        found = numbers(protocol.evaluate(model, target, cached))
        assert seen == [], name
        alone = numbers(protocol.evaluate(model, target, make_run(weights_digest="")))
        assert seen != [], name
        assert found == alone != [], name


def numbers(found):
    return [m for m in found if isinstance(m, Measurement)]


def several(samples):
    """The same images, with one label or two as VOC has them."""
    first = torch.nn.functional.one_hot(samples.labels, 3)
    second = torch.nn.functional.one_hot((samples.labels + torch.arange(len(samples)) % 2) % 3, 3)
    return replace(samples, multilabel=((first + second > 0) * 2 - 1).to(torch.int8))


def test_half_precision_is_the_same_fresh_and_cached(model, target, make_run):
    tap = Tap("conv2", "dims_avg", 64)
    exact = features(model, target.test, [tap], make_run())[tap]
    run = make_run()
    run.features = "float16"
    fresh = features(model, target.test, [tap], run)[tap]
    (kept,) = run.cache.kept.values()
    assert kept.dtype == torch.float16
    cached = features(model, target.test, [tap], run)[tap]
    assert fresh.dtype == cached.dtype == torch.float32
    assert torch.equal(fresh, cached)
    assert torch.equal(fresh, exact.half().float())
    assert not torch.equal(fresh, exact)
    seen = _count(model)
    run.features = "float32"  # has files of its own
    assert torch.equal(features(model, target.test, [tap], run)[tap], exact)
    assert seen == [90]
    run.weights_digest, run.features = "", "float16"
    assert torch.equal(features(model, target.test, [tap], run)[tap], fresh)


def test_what_half_precision_cannot_hold_is_told(model, target, make_run):
    run = make_run()
    run.features = "float16"
    with torch.no_grad():
        model.encoder.trunk[1][1].weight.fill_(1e6)
    with pytest.raises(BenchError, match=r'too large for float16: write target.features = "float32"'):
        features(model, target.test, [Tap("output")], run)


def test_collapsed_features_are_told_once_and_others_are_not(model, target, make_run):
    said = []
    run = make_run()
    run.warn = said.append
    features(model, target.test, [Tap("output"), Tap("conv1", "dims_max", 64)], run)
    assert said == []
    torch.nn.init.zeros_(model.encoder.trunk[1][1].weight)
    run.weights_digest = "collapsed"
    features(model, target.test, [Tap("output"), Tap("conv1", "dims_max", 64)], run)
    assert said == ["features at output are the same for all images: collapsed"]
    features(model, target.test, [Tap("output")], run)  # also where the cache has them
    assert len(said) == 2


def test_collapse_by_hand():
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(300, 20, generator=generator)
    assert collapsed(good) == ""
    assert collapsed(good + 100) == ""
    assert collapsed(1e-6 * good + 100) == "the same for all images"
    assert collapsed(torch.zeros(300, 20)) == "the same for all images"
    line = torch.randn(300, 1, generator=generator) @ torch.randn(1, 20, generator=generator)
    assert collapsed(line + 3) == "on one line"
    assert collapsed(line + 0.1 * good) == ""
    assert collapsed(good[:, :1]) == ""  # one number is a line
    assert collapsed(good[:3]) == ""  # so few tell nothing


def test_output_is_what_the_encoder_returns(model, target, make_run):
    found = features(model, target.test, [Tap("output"), Tap("conv1", "cpc_mean")], make_run())
    model.encoder.eval()
    pixels = target.test.images.pixels
    with torch.no_grad():
        assert torch.equal(found[Tap("output")], model.encoder(pixels))
        maps = model.encoder.activations(pixels, ["conv1"])["conv1"]
        assert torch.equal(found[Tap("conv1", "cpc_mean")], maps.mean((2, 3)))


def test_the_key_tells_weights_images_and_sides_apart(model, target, make_run):
    run, tap = make_run(), Tap("output")
    features(model, target.test, [tap], run)
    seen = _count(model)
    run.weights_digest = "other"
    features(model, target.test, [tap], run)
    features(model, target.train, [tap], run)
    features(model, target.test, [Tap("output", side=7)], run)
    run.precision = "bf16"
    features(model, target.test, [tap], run)
    assert sum(seen) == 3 * 90 + 150


def test_without_a_weights_digest_nothing_is_kept(model, target, make_run):
    run = make_run(weights_digest="")
    features(model, target.test, [Tap("output")], run)
    assert run.cache.kept == {}


def test_a_side_is_the_middle_of_the_resized_image(model, target, make_run):
    found = features(model, target.test, [Tap("output", side=7)], make_run())[Tap("output", side=7)]
    pixels = target.test.images.pixels
    model.encoder.eval()
    with torch.no_grad():
        view = CenterCrop(7)(Resize(8)(pixels, None), None)
        assert torch.equal(found, model.encoder(view))


def test_training_modes_and_statistics_are_as_they_were(model, target, make_run):
    model.train()
    model.encoder.trunk[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    features(model, target.test, [Tap("output")], make_run())
    assert model.encoder.trunk[0].training
    assert not model.encoder.trunk[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_batches_cover_all_in_order():
    batches = in_order(2 * BATCH + 1)
    assert [len(b) for b in batches] == [BATCH, BATCH, 1]
    assert torch.equal(torch.cat(batches), torch.arange(2 * BATCH + 1))
