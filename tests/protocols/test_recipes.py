"""The published linear probes are settings of ``linear_probe``: rates, lengths and widths as in the papers.

The facts are written by hand from the papers and their releases.
"""

from __future__ import annotations

import pytest
import torch

from bench.pooling import pool
from bench.training import Schedule
from protocols.linear_probe import LinearProbe

IMAGES = 1_281_167
# Maps after each convolution: CaffeNet at 227 pixels, RotNet's and DeepCluster's AlexNet at 224.
CAFFENET = {"conv1": (96, 55), "conv2": (256, 27), "conv3": (384, 13), "conv4": (384, 13), "conv5": (256, 13)}
ROTNET = {"conv1": (64, 55), "conv2": (192, 27), "conv3": (384, 13), "conv4": (256, 13), "conv5": (256, 13)}

ZHANG = LinearProbe(
    pooling="zhang_resize",
    size=0,
    epochs=28,
    batch_size=256,
    nesterov=False,
    drops=(2 / 7, 4 / 7, 6 / 7),
    gamma=0.1,
)
GOYAL = LinearProbe(
    pooling="goyal_avg",
    size=0,
    epochs=28,
    batch_size=256,
    nesterov=False,
    drops=(2 / 7, 4 / 7, 6 / 7),
    gamma=0.1,
)
DEEPCLUSTER = LinearProbe(
    pooling="deepcluster_avg",
    size=0,
    feature_norm="none",
    epochs=90,
    batch_size=256,
    nesterov=False,
    schedule="inverse_sqrt",
    gamma=0.01 * 1e-4,
    weight_decay=1e-4,
    select="best",
)
KOLESNIKOV = LinearProbe(
    pooling="kolesnikov_max",
    size=0,
    feature_norm="none",
    learning_rates=(0.8,),
    epochs=520,
    batch_size=2048,
    nesterov=False,
    drops=(480 / 520, 500 / 520),
    gamma=0.1,
)
CPC = LinearProbe(
    pooling="cpc_mean",
    size=0,
    feature_norm="none",
    learning_rates=(0.1,),
    epochs=136,
    batch_size=2048,
    nesterov=False,
    weight_decay=0.0,
    drops=(50 / 85, 75 / 85),
    gamma=0.1,
    augment="none",
)


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
    ("probe", "updates"), [(ZHANG, 140_000), (GOYAL, 140_000), (CPC, 85_000)], ids=["zhang", "goyal", "cpc"]
)
def test_as_many_updates_as_published(probe, updates):
    assert probe.epochs * (IMAGES // probe.batch_size) == pytest.approx(updates, rel=0.005)


@pytest.mark.parametrize(
    ("probe", "epochs", "expected"),
    [
        (LinearProbe(), (0, 4, 5, 14, 15, 25, 34), [1e-2, 1e-2, 2e-3, 2e-3, 4e-4, 8e-5, 8e-5]),
        (ZHANG, (7.9, 8.1, 16.1, 24.1), [1e-2, 1e-3, 1e-4, 1e-5]),
        (GOYAL, (0, 8.1, 24.1), [1e-2, 1e-3, 1e-5]),
        (KOLESNIKOV, (479, 480, 500), [0.8, 0.08, 0.008]),
        (CPC, (79, 81, 121), [0.1, 0.01, 0.001]),
        # lr / sqrt(1 + lr x decay x t): 90 epochs are 450,360 steps.
        (DEEPCLUSTER, (0, 90), [0.01, 0.01 / (1 + 0.45036) ** 0.5]),
    ],
    ids=["rotnet", "zhang", "goyal", "kolesnikov", "cpc", "deepcluster"],
)
def test_rates_are_the_published_ones(probe, epochs, expected):
    assert rates(probe, *epochs) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("probe", "maps", "expected"),
    [
        (LinearProbe(), ROTNET, [9216, 9408, 9600, 9216, 9216]),
        (ZHANG, CAFFENET, [9600, 9216, 9600, 9600, 9216]),
        (GOYAL, CAFFENET, [9600, 9216, 9600, 9600, 9216]),
        (DEEPCLUSTER, CAFFENET, [9600, 9216, 9600, 9600, 9216]),
        (KOLESNIKOV, {"block4": (2048, 7)}, [2048 * 4]),
        (CPC, {"z": (1024, 7)}, [1024]),
    ],
    ids=["rotnet", "zhang", "goyal", "deepcluster", "kolesnikov", "cpc"],
)
def test_layers_are_as_wide_as_published(probe, maps, expected):
    assert widths(probe, maps) == expected
