"""The published probes by name: rates, lengths and widths as in the papers.

The facts are written by hand from the papers and their releases.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from bench.pooling import pool
from bench.records import freeze
from bench.training import Schedule
from protocols import fine_tune, linear_probe, mlp_probe, voc_classification
from protocols.fine_tune import FineTune
from protocols.linear_probe import LinearProbe
from protocols.mlp_probe import MlpProbe
from protocols.voc_classification import VocClassification

IMAGES = 1_281_167
# Maps after each convolution: CaffeNet at 227 pixels, RotNet's and DeepCluster's AlexNet at 224.
CAFFENET = {"conv1": (96, 55), "conv2": (256, 27), "conv3": (384, 13), "conv4": (384, 13), "conv5": (256, 13)}
ROTNET = {"conv1": (64, 55), "conv2": (192, 27), "conv3": (384, 13), "conv4": (256, 13), "conv5": (256, 13)}


def recipes(module, unit):
    """The units that the names of a .toml file beside the unit's stand for."""
    found = tomllib.loads(Path(module.__file__).with_suffix(".toml").read_text())
    return {name: unit(**{k: freeze(v) for k, v in settings.items()}) for name, settings in found.items()}


PROBES = recipes(linear_probe, LinearProbe)
ROTNETS = {"default": LinearProbe(), "rotnet": PROBES["rotnet"]}
ZHANG, GOYAL, DEEPCLUSTER, KOLESNIKOV, CPC = (
    PROBES[name] for name in ("zhang", "goyal", "deepcluster", "kolesnikov", "cpc")
)


def test_the_papers_of_the_issue_and_their_variants_have_names():
    assert set(PROBES) == {
        "rotnet",
        "zhang",
        "goyal",
        "goyal_jigsaw",
        "goyal_resnet",
        "deepcluster",
        "asano",
        "kolesnikov",
        "kolesnikov_short",
        "cpc",
    }


def rates(probe, *epochs):
    schedule = Schedule(probe.schedule, probe.drops, probe.gamma)
    steps = IMAGES // probe.batch_size
    return [probe.learning_rates[0] * schedule(e * steps, probe.epochs * steps) for e in epochs]


def widths(probe, maps):
    return [
        pool(torch.zeros(1, c, side, side), probe.pooling, probe.size, layer).numel()
        for layer, (c, side) in maps.items()
    ]


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        ("zhang", 140_000),
        ("goyal", 140_000),
        ("goyal_jigsaw", 140_000),
        ("goyal_resnet", 140_000),
        ("cpc", 85_000),
    ],
)
def test_as_many_updates_as_published(name, updates):
    probe = PROBES[name]
    assert probe.epochs * (IMAGES // probe.batch_size) == pytest.approx(updates, rel=0.005)


@pytest.mark.parametrize(
    ("probe", "epochs", "expected"),
    [
        (PROBES["rotnet"], (0, 4, 5, 14, 15, 25, 34), [1e-2, 1e-2, 2e-3, 2e-3, 4e-4, 8e-5, 8e-5]),
        (ZHANG, (7.9, 8.1, 16.1, 24.1), [1e-2, 1e-3, 1e-4, 1e-5]),
        (GOYAL, (0, 8.1, 24.1), [1e-2, 1e-3, 1e-5]),
        (PROBES["goyal_resnet"], (0, 8.1, 24.1), [1e-2, 1e-3, 1e-5]),
        (PROBES["asano"], (9, 10, 20, 30, 35), [1e-2, 1e-3, 1e-4, 1e-5, 1e-5]),
        (PROBES["kolesnikov_short"], (29, 30, 50), [0.8, 0.08, 0.008]),
        (KOLESNIKOV, (479, 480, 500), [0.8, 0.08, 0.008]),
        (CPC, (79, 81, 121), [0.1, 0.01, 0.001]),
        # lr / sqrt(1 + lr x decay x t): 90 epochs are 450,360 steps.
        (DEEPCLUSTER, (0, 90), [0.01, 0.01 / (1 + 0.45036) ** 0.5]),
    ],
    ids=[
        "rotnet",
        "zhang",
        "goyal",
        "goyal_resnet",
        "asano",
        "kolesnikov_short",
        "kolesnikov",
        "cpc",
        "deepcluster",
    ],
)
def test_rates_are_the_published_ones(probe, epochs, expected):
    assert rates(probe, *epochs) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("probe", "maps", "expected"),
    [
        (ROTNETS["default"], ROTNET, [9216, 9408, 9600, 9216, 9216]),
        (ROTNETS["rotnet"], ROTNET, [9216, 9408, 9600, 9216, 9216]),
        (PROBES["asano"], CAFFENET, [9600, 9216, 9600, 9600, 9216]),
        (PROBES["goyal_resnet"], {"layer1": (256, 56), "layer4": (2048, 7)}, [256 * 36, 2048 * 4]),
        (ZHANG, CAFFENET, [9600, 9216, 9600, 9600, 9216]),
        (GOYAL, CAFFENET, [9600, 9216, 9600, 9600, 9216]),
        (DEEPCLUSTER, CAFFENET, [9600, 9216, 9600, 9600, 9216]),
        (KOLESNIKOV, {"block4": (2048, 7)}, [2048 * 4]),
        (CPC, {"z": (1024, 7)}, [1024]),
    ],
    ids=["default", "rotnet", "asano", "goyal_resnet", "zhang", "goyal", "deepcluster", "kolesnikov", "cpc"],
)
def test_layers_are_as_wide_as_published(probe, maps, expected):
    assert widths(probe, maps) == expected


def test_what_else_the_papers_tell_apart():
    """(norm of the features, momentum, Nesterov, decay, batch, crop, what is judged)."""
    told = {
        name: (p.feature_norm, p.momentum, p.nesterov, p.weight_decay, p.batch_size, p.side, p.test)
        for name, p in PROBES.items()
    }
    assert told == {
        "rotnet": ("batch", 0.9, True, 5e-4, 192, 224, "center"),
        "zhang": ("batch", 0.9, False, 5e-4, 256, 227, "center"),
        "goyal": ("batch", 0.9, False, 5e-4, 256, 227, "center"),
        "goyal_jigsaw": ("batch", 0.9, False, 5e-4, 256, 227, "center"),
        "goyal_resnet": ("batch", 0.9, True, 1e-4, 256, 224, "center"),
        "deepcluster": ("none", 0.9, False, 1e-4, 256, 224, "ten_softmax"),
        "asano": ("batch", 0.9, False, 1e-5, 192, 224, "ten_scores"),
        "kolesnikov": ("none", 0.9, False, 0.0, 2048, 224, "center"),
        "kolesnikov_short": ("none", 0.9, False, 0.0, 2048, 224, "center"),
        "cpc": ("none", 0.9, False, 0.0, 2048, 224, "center"),
    }
    assert {name for name, p in PROBES.items() if p.select == "best"} == {"deepcluster"}
    seen = {name: (p.augment, p.square) for name, p in PROBES.items()}
    assert seen == {
        "rotnet": ("crop_flip", 0),
        "zhang": ("crop_flip", 256),
        "goyal": ("flip", 256),
        "goyal_jigsaw": ("flip", 0),
        "goyal_resnet": ("resized_crop_flip", 0),
        "deepcluster": ("crop_flip", 0),
        "asano": ("resized_crop_flip", 0),
        "kolesnikov": ("crop", 0),
        "kolesnikov_short": ("crop", 0),
        "cpc": ("none", 0),
    }
    assert {name: p.bias_rate for name, p in PROBES.items() if p.bias_rate != 1} == {"zhang": 2.0}


def test_deepclusters_trainings_on_voc():
    """Steps between two halvings, and the rate: eval_voc_classif.py and the two Caffe scripts."""
    found = recipes(voc_classification, VocClassification)
    told = {name: (v.train, v.lr, v.steps, v.bias_rate, v.gamma) for name, v in found.items()}
    assert told == {
        "deepcluster": ("fc6-8", 0.003, 80_000, 1.0, 0.5),
        "deepcluster_fc6_8": ("fc6-8", 0.003, 150_000, 2.0, 0.5),
        "deepcluster_all": ("all", 0.001, 150_000, 2.0, 0.5),
    }
    for name, every in (("deepcluster", 5000), ("deepcluster_fc6_8", 5000), ("deepcluster_all", 20_000)):
        steps = found[name].steps
        assert [d * steps for d in found[name].drops] == pytest.approx(range(every, steps, every))


@pytest.mark.parametrize(
    ("unit", "rate", "epochs", "expected"),
    [
        (
            recipes(fine_tune, FineTune)["rotnet_nonlinear"],
            0.01,
            (0, 9, 10, 20, 30, 39),
            [1e-2, 1e-2, 2e-3, 4e-4, 8e-5, 8e-5],
        ),
        (recipes(fine_tune, FineTune)["rotnet_conv"], 0.1, (0, 34, 35, 70, 85), [0.1, 0.1, 0.02, 4e-3, 8e-4]),
        (recipes(mlp_probe, MlpProbe)["rotnet"], 0.1, (0, 19, 20, 40, 45), [0.1, 0.1, 0.02, 4e-3, 8e-4]),
    ],
    ids=["nonlinear", "conv", "multilayer"],
)
def test_rotnets_non_linear_classifiers(unit, rate, epochs, expected):
    schedule = Schedule(unit.schedule, unit.drops, unit.gamma)
    rates = getattr(unit, "learning_rates", None) or (unit.learning_rate,)
    assert rates == (rate,)
    assert [rate * schedule(e, unit.epochs) for e in epochs] == pytest.approx(expected)
    assert (unit.weight_decay, unit.momentum) == (5e-4, 0.9)
    assert unit.freeze if isinstance(unit, FineTune) else (unit.hidden, unit.dropout) == ((200, 200), 0)
