"""Deep InfoMax: which networks there are, and which gradient reaches which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.contracts import BenchError, Draws
from methods._loop import Batch
from methods.deep_infomax import DeepInfomax, maps_and_features
from methods.parts import gan

SMALL = {"layer": "conv1", "dim": 5, "units": 8, "alpha": 0.5}


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Batch(torch.arange(6), [views])


def _made(method, backbone, data):
    return method.build(backbone, data.shape, torch.Generator().manual_seed(0))


def _reached(term, model):
    """The parts, and the encoder, that a term has a gradient for."""
    owners = {"encoder": model.encoder, **model.parts}
    found = {}
    for name, module in owners.items():
        weights = list(module.parameters())
        gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        found[name] = any(g is not None and g.abs().max() > 0 for g in gradients)
    return {name for name, touched in found.items() if touched}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("critic", ["dot", "concat"])
def test_gradients_go_where_they_should_and_nowhere_else(critic, precision, backbone, data) -> None:
    method = DeepInfomax(critic=critic, penalty=1.0, **SMALL)
    model = _made(method, backbone, data)
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        terms = method.losses(model, {}, _batch(), 0, 1)
    assert _reached(terms["local"], model) == {"encoder", "output", "local"}
    assert _reached(terms["global"], model) == {"encoder", "output", "above", "global"}
    assert _reached(terms["prior"], model) == {"encoder", "output"}
    assert _reached(terms["discriminator"], model) == {"discriminator"}


@pytest.mark.parametrize("kind", ["dv", "jsd", "infonce"])
def test_every_objective_rises(kind, plain_backbone, data) -> None:
    method = DeepInfomax(objective=kind, gamma=0.0, lr=1e-3, **SMALL)
    model, batch = _made(method, plain_backbone, data), _batch()
    optimizer, losses = method.new_optimizer(model), []
    for _ in range(40):
        terms = method.losses(model, {}, batch, 0, 1)
        assert set(terms) == {"global", "local"}
        loss = torch.stack(list(terms.values())).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_the_prior_is_eq_7(backbone, data) -> None:
    batch = _batch()
    for adversary in ("minimax", "swapped"):
        method = DeepInfomax(gamma=0.3, beta=1.0, adversary=adversary, **{**SMALL, "alpha": 0.0})
        model = _made(method, backbone, data)
        terms = method.losses(model, {}, batch, 0, 1)
        score = nn.Sequential(model.parts["discriminator"], nn.Sigmoid())
        encoded = model.parts["output"](model.encoder(batch.views[0])).sigmoid()
        drawn = Draws(0, 0, batch.index, stream=64).uniform(5)
        real, fake = score(drawn), score(encoded)
        told = -(real.log().mean() + (1 - fake).log().mean())
        assert torch.allclose(terms["discriminator"], told, atol=1e-5)
        deceived = (1 - fake).log().mean() if adversary == "minimax" else -fake.log().mean()
        assert torch.allclose(terms["prior"], 0.3 * deceived, atol=1e-5)
        assert set(model.parts) == {"output", "local", "discriminator"}


def test_the_penalty_is_the_slope_of_the_score() -> None:
    line = nn.Linear(3, 1)
    points = torch.randn(7, 3)
    assert torch.allclose(gan.penalty(line, points), line.weight.square().sum())
    square = nn.Sequential(line, nn.Flatten())
    assert gan.penalty(square, points).requires_grad


def test_maps_and_features_are_those_of_the_encoder(backbone, data) -> None:
    model, (view,) = _made(DeepInfomax(**SMALL), backbone, data).eval(), _batch().views
    maps, features = maps_and_features(model.encoder, view, "conv1")
    assert torch.equal(maps, model.encoder.activations(view, ["conv1"])["conv1"])
    assert torch.equal(features, model.encoder(view))


def test_wrong_settings_are_told(backbone, data) -> None:
    with pytest.raises(BenchError, match="deep_infomax.objective must be one of dv, jsd, infonce, not 'nce'"):
        DeepInfomax(objective="nce")
    with pytest.raises(BenchError, match="alpha or beta must not be 0"):
        DeepInfomax(beta=0.0)
    with pytest.raises(
        BenchError, match=r"deep_infomax.layer 'conv7' does not exist here; layers are: conv1"
    ):
        _made(DeepInfomax(layer="conv7"), backbone, data)
