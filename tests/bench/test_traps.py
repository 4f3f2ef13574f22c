"""What makes a number worthless is told; what does not is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import traps
from bench.contracts import Samples, Target


def rows(*values, metric="top1", split="test", layer="", step=None):
    return [{"metric": metric, "split": split, "layer": layer, "value": v, "step": step} for v in values]


def target(labels):
    samples = Samples("s", SimpleNamespace(), torch.as_tensor(labels))
    return Target(samples, samples, samples, 10)


def test_chance_is_the_largest_class_within_the_binomial():
    labels = [0] * 30 + [1] * 70 + [-1] * 50
    # 70 of 100, standard deviation 4.58: the 95% point of the binomial is 77.
    assert traps.at_chance(rows(77.0), target(labels)) == {
        0: "top1 is at chance (up to 77.0, the largest class 70.0)"
    }
    assert traps.at_chance(rows(78.0), target(labels)) == {}


def test_only_top1_on_test_at_the_last_step_is_asked():
    labels = [0, 1] * 50
    found = [
        *rows(50.0, 99.0),  # a curve: it began at chance
        *rows(50.0, 50.0, layer="conv1"),
        *rows(50.0, split="validation", layer="a"),
        *rows(50.0, metric="error", layer="b"),
    ]
    assert set(traps.at_chance(found, target(labels))) == {3}
    assert traps.at_chance(rows(1.0), target([-1, -1])) == {}


def test_what_moved_is_named():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    before = traps.state(net)
    net.eval()(torch.ones(2, 1, 3, 3))
    assert traps.moved(before, net) == []
    net.train()(torch.ones(2, 1, 3, 3))
    (told,) = traps.moved(before, net)
    assert told.startswith("the model changed while it was judged (1.running_mean, 1.running_var")


@pytest.mark.parametrize(
    ("depends_on", "files", "encoder", "head", "told"),
    [
        (("budget",), (), True, True, []),
        (("budget",), (), False, True, ["encoder"]),
        ((), ("file",), False, True, ["encoder"]),
        ((), (), False, True, []),  # random weights are meant to be random
        (("budget",), (), True, False, ["classifier"]),
        (("budget",), (), False, False, ["encoder", "classifier"]),
    ],
)
def test_initial_weights_are_told_where_they_should_have_gone(depends_on, files, encoder, head, told):
    model = SimpleNamespace(encoder=nn.Linear(2, 2), head=nn.Linear(2, 2))
    fresh = {"encoder": traps.state(model.encoder), "head": traps.state(model.head)}
    with torch.no_grad():
        model.encoder.weight.add_(int(encoder))
        model.head.bias.add_(int(head))
    found = traps.untrained(SimpleNamespace(depends_on=depends_on, files=files, file="w.pt"), fresh, model)
    assert [text.split()[1] for text in found] == told


def test_a_network_that_brings_its_weights_reads_no_file():
    model = SimpleNamespace(encoder=nn.Linear(2, 2), head=None)
    fresh = {"encoder": traps.state(model.encoder), "head": {}}
    assert traps.untrained(SimpleNamespace(depends_on=(), files=("file",), file=""), fresh, model) == []


def test_a_model_without_weights_or_head_is_fine():
    model = SimpleNamespace(encoder=nn.Identity(), head=None)
    method = SimpleNamespace(depends_on=("budget",), files=())
    assert traps.untrained(method, {"encoder": {}, "head": {}}, model) == []
