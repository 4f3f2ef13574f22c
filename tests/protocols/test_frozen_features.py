"""The cache of frozen features: who runs the encoder, how often, and what comes back."""

from __future__ import annotations

import torch

from bench.augment import CenterCrop, Resize
from bench.contracts import Tap
from protocols._features import BATCH, features, in_order
from protocols.error import Error
from protocols.knn import Knn
from protocols.linear_probe import LinearProbe

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
