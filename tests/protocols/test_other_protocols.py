"""Error, SVM, MLP probe and fine-tuning on a tiny target."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch

import protocols
from bench.backbones.alexnet import AlexNet
from bench.contracts import BenchError, Evaluation, Samples, Target
from bench.training import DivergedError
from protocols import fine_tune
from protocols.error import Error
from protocols.fine_tune import FineTune
from protocols.linear_svm import LinearSvm
from protocols.mlp_probe import MlpProbe

MLP = MlpProbe(layer="conv1", pooling="dims_max", size=128, learning_rate=0.01, epochs=6, average_last=3)
SVM = LinearSvm(layer="conv1", pooling="dims_max", size=128, costs=(1e-4, 0.01, 1.0))
TUNE = FineTune(epochs=3, batch_size=30, learning_rates=(0.001, 0.1), pad=1)
MINE = {
    "error",
    "fine_tune",
    "knn",
    "linear_probe",
    "linear_svm",
    "mlp_probe",
    "perturbed",
    "small_validation",
}


def _by(found):
    return {(m.metric, m.split): m.value for m in found}


def _poisoned(target):
    return dataclasses.replace(
        target, test=dataclasses.replace(target.test, labels=(target.test.labels + 1) % 3)
    )


@pytest.mark.parametrize("name", sorted(MINE))
def test_one_unit_a_file_named_after_it(name):
    module = importlib.import_module(f"protocols.{name}")
    cls = getattr(module, "".join(word.capitalize() for word in name.split("_")))
    assert issubclass(cls, Evaluation)
    assert cls.paper
    assert cls.__dataclass_params__.frozen
    assert Path(module.__file__).parent == Path(protocols.__file__).parent


def test_error_is_that_of_the_head(model, target, make_run):
    model.head = torch.nn.Linear(16, 3)
    found = _by(Error().evaluate(model, target, make_run()))
    model.eval()
    with torch.no_grad():
        right = (model(target.test.images.pixels).argmax(1) == target.test.labels).float().mean().item()
    assert found["top1", "test"] == pytest.approx(100 * right)
    assert found["error", "test"] == pytest.approx(100 - 100 * right)
    assert ("error", "validation") in found


def test_error_refuses_what_has_no_head_or_other_classes(model, target, make_run):
    with pytest.raises(BenchError, match="classifier"):
        list(Error().evaluate(model, target, make_run()))
    model.head = torch.nn.Linear(16, 7)
    with pytest.raises(BenchError, match="7 classes"):
        list(Error().evaluate(model, target, make_run()))


def test_svm_chooses_on_training_data_alone(model, target, make_run):
    found, other = (_by(SVM.evaluate(model, t, make_run())) for t in (target, _poisoned(target)))
    assert found["top1", "test"] > 70
    assert found["top1", "test"] != other["top1", "test"]
    assert found["cost", "train"] == other["cost", "train"] in SVM.costs
    assert found["top1", "validation"] == other["top1", "validation"]


def _several(samples: Samples) -> Samples:
    table = torch.full((len(samples), 3), -1, dtype=torch.int8)
    table[torch.arange(len(samples)), samples.labels] = 1
    table[::10, 0] = 0
    return dataclasses.replace(samples, labels=None, multilabel=table)


def test_svm_on_images_with_several_labels(model, target, make_run):
    parts = (_several(s) for s in (target.train, target.validation, target.test))
    found = _by(SVM.evaluate(model, Target(*parts, classes=3), make_run()))
    assert found["mAP", "test"] > 70


def test_svm_with_one_image_a_class(model, target, make_run, make_samples):
    few = dataclasses.replace(target, train=make_samples("few", 3, 5))
    assert 0 <= _by(SVM.evaluate(model, few, make_run()))["top1", "test"] <= 100


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_mlp_probe_learns(model, target, make_run, optimizer):
    probe = dataclasses.replace(MLP, optimizer=optimizer, epochs=15, batch_size=30)
    found = _by(probe.evaluate(model, target, make_run()))
    assert found["top1", "test"] > 65
    assert set(found) == {("top1", "test"), ("top1", "validation")}


def test_mlp_probe_sees_new_crops_in_every_step(model, target, make_run):
    probe = dataclasses.replace(MLP, augment="crop_flip", pad=1, padding="zeros", epochs=2)
    seen = []
    model.encoder.trunk[0].register_forward_hook(lambda _m, _i, out: seen.append(len(out)))
    assert probe.taps(model.encoder) == ()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(probe.evaluate(model, target, make_run()))
    per_epoch = 150 // probe.batch_size * probe.batch_size
    assert sum(seen) == 2 * per_epoch + 60 + 90  # and what is judged, once
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    long = dataclasses.replace(probe, epochs=15, batch_size=30)
    assert _by(long.evaluate(model, target, make_run()))["top1", "test"] > 60


def test_mlp_probe_averages_its_last_epochs(model, target, make_run):
    # A schedule that is constant makes shorter trainings prefixes of the longer.
    probe = dataclasses.replace(MLP, schedule="constant", batch_size=30)
    single = [
        _by(dataclasses.replace(probe, epochs=e, average_last=1).evaluate(model, target, make_run()))
        for e in (4, 5, 6)
    ]
    mean = sum(s["top1", "test"] for s in single) / 3
    assert _by(probe.evaluate(model, target, make_run()))["top1", "test"] == pytest.approx(mean)


@pytest.mark.parametrize(
    "protocol",
    [MLP, dataclasses.replace(MLP, augment="crop_flip", pad=1), TUNE],
    ids=["mlp", "mlp on crops", "tune"],
)
@pytest.mark.parametrize("step", [4, 5, 21])
def test_resumed_is_equal(model, target, make_run, killed, protocol, step):
    protocol = dataclasses.replace(protocol, batch_size=30)
    undisturbed = list(protocol.evaluate(model, target, make_run()))
    run = make_run(kill_at=step)
    with pytest.raises(killed):
        list(protocol.evaluate(model, target, run))
    run.kill_at = 0
    assert list(protocol.evaluate(model, target, run)) == undisturbed


CUTS = [{}, {"from_layer": "conv1"}, {"from_layer": "conv1", "freeze": True}, {"batch_norm": "frozen"}]


@pytest.mark.parametrize("change", CUTS)
def test_fine_tuning_leaves_the_model_as_it_was(model, target, make_run, change):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    found = _by(dataclasses.replace(TUNE, **change).evaluate(model, target, make_run()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert found["lr", "validation"] in TUNE.learning_rates
    assert found["error", "test"] == pytest.approx(100 - found["top1", "test"])


def _tuned(protocol, model, target, run):
    """The network after a training, from the last checkpoint."""
    list(protocol.evaluate(model, target, run))
    return run.saved[1]["net"]


@pytest.mark.parametrize(("change", "moving"), [(CUTS[0], True), (CUTS[1], True), (CUTS[2], False)])
def test_what_is_frozen_does_not_move(model, target, make_run, change, moving):
    after = _tuned(dataclasses.replace(TUNE, learning_rates=(0.1,), **change), model, target, make_run())
    lower = {k: v for k, v in model.encoder.trunk.state_dict().items() if k.startswith("0.") or "conv1" in k}
    moved = [not torch.equal(after[f"encoder.trunk.{k}"], v) for k, v in lower.items()]
    assert lower
    assert any(moved) == moving


def test_frozen_batch_norm_keeps_its_statistics(model, target, make_run):
    after = _tuned(dataclasses.replace(TUNE, batch_norm="frozen"), model, target, make_run())
    for name, value in model.encoder.state_dict().items():
        if "running" in name:
            assert torch.equal(after[f"encoder.{name}"], value)


def test_fine_tuning_learns_and_chooses_on_validation(model, target, make_run):
    protocol = dataclasses.replace(TUNE, epochs=8)
    found, other = (_by(protocol.evaluate(model, t, make_run())) for t in (target, _poisoned(target)))
    assert found["top1", "test"] > 60
    assert found["lr", "validation"] == other["lr", "validation"]


def test_each_rate_starts_from_the_same_weights(model, target, make_run):
    twice = dataclasses.replace(TUNE, learning_rates=(0.05, 0.05))
    run = make_run()
    list(twice.evaluate(model, target, run))
    scores = run.saved[1]["scores.test"]
    assert torch.equal(scores[0], scores[1])


def test_fine_tuning_that_diverges_says_so(model, target, make_run):
    with pytest.raises(DivergedError):
        list(dataclasses.replace(TUNE, learning_rates=(1e30,), epochs=5).evaluate(model, target, make_run()))
    rates = dataclasses.replace(TUNE, learning_rates=(1e30, 0.1))
    assert _by(rates.evaluate(model, target, make_run()))["lr", "validation"] == 0.1


@pytest.mark.parametrize("cls", [FineTune, MlpProbe])
def test_unknown_words_are_refused(cls):
    with pytest.raises(BenchError):
        cls(**{"augment" if cls is FineTune else "optimizer": "x"})


def test_a_network_without_fc6_and_fc7_gets_them_above_what_is_kept(model, target, make_run):
    """RotNet, table 4: its classifiers stand on pool5's 6 x 6 places, and have batch norm."""
    generator = torch.Generator().manual_seed(0)
    for layer, convolutions in (("conv1", 1), ("conv2", 0)):
        above, width = fine_tune._above(model.encoder, layer, 8, generator)
        kinds = [type(part) for part in above.modules() if not isinstance(part, torch.nn.Sequential)]
        kept = [torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU] * convolutions
        fully = [torch.nn.Linear, torch.nn.BatchNorm1d, torch.nn.ReLU]
        assert kinds == [*kept, torch.nn.AdaptiveAvgPool2d, torch.nn.Flatten, *fully, *fully]
        assert (width, [p.in_features for p in above.modules() if isinstance(p, torch.nn.Linear)]) == (
            8,
            [16 * 36, 8],
        )
        assert above(torch.rand(4, 8 * (2 - convolutions), 8, 8)).shape == (4, 8)
    tall = AlexNet(variant="rotnet").build(generator=generator, width=0.03125)
    assert fine_tune._above(tall, "conv4", 8, generator)[1] == tall.dim  # it has its own
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = dataclasses.replace(TUNE, from_layer="conv2", freeze=True, hidden=8, epochs=8)
    assert _by(tuned.evaluate(model, target, make_run()))["top1", "test"] > 60
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
