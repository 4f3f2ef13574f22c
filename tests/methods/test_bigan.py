"""BiGAN: three networks in one step, each with its own gradient and only that."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from bench.augment import unit
from bench.contracts import Draws
from methods._loop import Batch
from methods.bigan import Bigan
from methods.parts import gan
from methods.parts.dcgan import Generator, JointDiscriminator, widths

SMALL = Bigan(crop=0, dim=6, size=4, batch_size=8)
BRACKETS = {"encoder": {"encoder", "code"}, "generator": {"generator"}, "discriminator": {"discriminator"}}


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Batch(torch.arange(8), [views])


def _made(method, backbone, data):
    return method.build(backbone, data.shape, torch.Generator().manual_seed(0))


def _gradients(term, model):
    owners = {"encoder": model.encoder, **model.parts}
    return {
        name: torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)
        for name, module in owners.items()
    }


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_each_term_reaches_its_own_network_and_no_other(precision, backbone, data) -> None:
    model = _made(SMALL, backbone, data)
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        terms = SMALL.losses(model, {}, _batch(), 0, 1)
    assert set(terms) == set(BRACKETS)
    for name, own in BRACKETS.items():
        found = _gradients(terms[name], model)
        touched = {n for n, gs in found.items() if any(g is not None and g.abs().max() > 0 for g in gs)}
        assert touched == own, name
        # All of a network's weights, but for biases that a batch norm takes away again.
        assert all(g is not None for part in own for g in found[part])


def test_the_losses_are_eq_3_with_swapped_labels(plain_backbone, data) -> None:
    model, batch = _made(SMALL, plain_backbone, data), _batch()
    terms = SMALL.losses(model, {}, batch, 0, 1)
    (view,) = batch.views
    code = torch.tanh(model.parts["code"](model.encoder(view)) / 2)  # 2 sigmoid(a) - 1
    drawn = Draws(0, 0, batch.index, stream=64).uniform(6) * 2 - 1
    judge = model.parts["discriminator"]
    real = judge(unit(view), code).sigmoid()
    fake = judge(model.parts["generator"](drawn), drawn).sigmoid()
    assert torch.allclose(terms["discriminator"], -(real.log().mean() + (1 - fake).log().mean()) / 2)
    assert torch.allclose(terms["encoder"], -(1 - real).log().mean() / 2)
    assert torch.allclose(terms["generator"], -fake.log().mean() / 2)


def test_one_step_is_that_of_three_optimizers(plain_backbone, data) -> None:
    together, apart, batch = (
        _made(SMALL, plain_backbone, data),
        _made(SMALL, plain_backbone, data),
        _batch(),
    )
    optimizer = SMALL.new_optimizer(together)
    torch.stack(list(SMALL.losses(together, {}, batch, 0, 1).values())).sum().backward()
    optimizer.step()

    networks = {
        "encoder": nn.ModuleList([apart.encoder, apart.parts["code"]]),
        "generator": apart.parts["generator"],
        "discriminator": apart.parts["discriminator"],
    }
    terms = SMALL.losses(apart, {}, batch, 0, 1)
    gradients = {
        name: torch.autograd.grad(terms[name], list(net.parameters()), retain_graph=True)
        for name, net in networks.items()
    }
    for name, net in networks.items():
        single = torch.optim.Adam(net.parameters(), SMALL.lr, SMALL.betas, weight_decay=SMALL.weight_decay)
        for weight, gradient in zip(net.parameters(), gradients[name], strict=True):
            weight.grad = gradient
        single.step()
    pairs = zip(together.parameters(), apart.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in pairs)


def test_held_is_the_network_without_a_gradient_to_its_weights() -> None:
    net, points = nn.Linear(3, 1), torch.randn(5, 3, requires_grad=True)
    scores = gan.held(net, points)
    assert torch.equal(scores, net(points))
    scores.sum().backward()
    assert torch.allclose(points.grad, net.weight.detach().expand(5, 3))
    assert net.weight.grad is None


@pytest.mark.parametrize(("side", "halvings", "start"), [(16, 2, 4), (28, 2, 7), (64, 4, 4), (112, 4, 7)])
def test_networks_fit_any_side(side, halvings, start) -> None:
    maps = widths(side, 4)
    assert len(maps) == halvings
    assert maps == [4, 8, 16, 32][:halvings]
    generator = torch.Generator().manual_seed(0)
    make, judge = Generator(side, 6, 4, generator), JointDiscriminator(side, 6, 4, generator)
    assert make.start == start
    codes = torch.randn(3, 6)
    images = make(codes)
    assert images.shape == (3, 3, side, side)
    assert images.min() >= 0
    assert images.max() <= 1
    assert judge(images, codes).shape == (3,)


def test_the_discriminator_reads_both_sides_of_a_pair() -> None:
    judge = JointDiscriminator(16, 6, 4, torch.Generator().manual_seed(0)).eval()
    images, codes = torch.rand(3, 3, 16, 16, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    slopes = torch.autograd.grad(judge(images, codes).sum(), [images, codes])
    assert all((s.flatten(1).abs().amax(1) > 0).all() for s in slopes)


def test_the_generator_s_images_may_be_smaller_than_the_encoder_s(backbone, data) -> None:
    method = dataclasses.replace(SMALL, resolution=8)
    model = _made(method, backbone, data)
    assert model.parts["generator"](torch.zeros(2, 6)).shape[-1] == 8
    (view,) = _batch().views
    means = unit(view).mean((2, 3))
    assert torch.allclose(method._beside(view).mean((2, 3)), means, atol=0.02)
    assert all(torch.isfinite(t) for t in method.losses(model, {}, _batch(), 0, 1).values())


def test_images_are_not_mirrored(data) -> None:
    assert "Flip" not in repr(Bigan(augment="resized_crop").frames(data.shape))


def test_the_rate_is_flat_and_then_falls_to_a_hundredth() -> None:
    method, optimizer = Bigan(), torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    rates = []
    for done in (0, 49, 50, 75, 100):
        method.adjust(optimizer, done, 100)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-4, 2e-4, 2e-4, 2e-5, 2e-6])
    dataclasses.replace(method, schedule="constant").adjust(optimizer, 99, 100)
    assert optimizer.param_groups[0]["lr"] == 2e-4
