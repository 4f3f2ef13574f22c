"""The methods' losses against the written formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bench.contracts import Draws
from methods._loop import Batch
from methods.instance_discrimination import InstanceDiscrimination
from methods.mean_color import MeanColor
from methods.mean_teacher import MeanTeacher
from methods.pi_model import PiModel
from methods.random_rescaled import RandomRescaled, layers_in_order
from methods.raw_pixels import RawPixels
from methods.rotation import Rotation, rotate, rotate_by_45


def _views(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator) for _ in range(count)
    ]


def _batch(views: list[torch.Tensor]) -> Batch:
    return Batch(torch.arange(6), views, torch.tensor([0, 3, -1, -1, 1, -1]), flip=False)


def test_rotations_are_rot90() -> None:
    (images,) = _views(1)
    turns = torch.tensor([0, 1, 2, 3, 1, 3])
    expected = torch.stack([torch.rot90(i, int(t), (1, 2)) for i, t in zip(images, turns, strict=True)])
    assert torch.equal(rotate(images, turns), expected)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(rotate(channels_last, turns), expected)


def test_two_eighth_turns_are_a_quarter_turn() -> None:
    (images,) = _views(1)
    turned = rotate_by_45(images, torch.full((6,), 2))
    assert turned.shape == (6, 3, 11, 11)
    upright = rotate_by_45(torch.rot90(images, 1, (2, 3)), torch.zeros(6))
    assert torch.allclose(turned, upright, atol=1e-5)


def test_rotation_shows_all_copies_or_one(backbone, data) -> None:
    views, seen = _views(1), []
    for copies in ("all", "one"):
        method = Rotation(copies=copies)
        model = method.build(backbone, data.shape, torch.Generator().manual_seed(0))
        model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        loss = method.losses(model, {}, _batch(views), 0, 1)["rotation"]
        assert loss > 0
    assert torch.equal(seen[0], torch.cat([torch.rot90(views[0], k, (2, 3)) for k in range(4)]))
    turns = Draws(0, 0, torch.arange(6), stream=64).integers(4)
    assert torch.equal(seen[1], rotate(views[0], turns))


def test_instance_softmax_and_bank(backbone, data, make_run) -> None:
    method = InstanceDiscrimination(
        softmax="nonparametric", temperature=0.2, bank_momentum=0.25, proximal=2.0
    )
    model = method.build(backbone, data.shape, torch.Generator().manual_seed(0))
    state, batch = method.state(model, data, make_run()), _batch(_views(1))
    terms = method.losses(model, state, batch, 0, 1)
    vectors = F.normalize(model.parts["embedding"](model.encoder(batch.views[0])))
    scores = torch.stack([torch.stack([v @ m for m in state["bank"]]) for v in vectors]) / 0.2
    assert torch.allclose(terms["nonparametric"], F.cross_entropy(scores, batch.index), atol=1e-5)
    old = state["bank"].clone()
    assert torch.allclose(terms["proximal"], 2 * ((vectors - old[:6]) ** 2).sum() / 6, atol=1e-5)
    method.after_step(model, state, batch, 1)
    assert torch.allclose(state["bank"][:6], F.normalize(0.25 * old[:6] + 0.75 * vectors.detach()), atol=1e-6)
    assert torch.equal(state["bank"][6:], old[6:])


def test_nce_keeps_the_first_constant(backbone, data, make_run) -> None:
    method = InstanceDiscrimination(negatives=9)
    model = method.build(backbone, data.shape, torch.Generator().manual_seed(0))
    state, batch = method.state(model, data, make_run()), _batch(_views(1))
    method.losses(model, state, batch, 0, 1)
    method.after_step(model, state, batch, 1)
    constant = state["constant"].clone()
    assert constant > 0
    method.losses(model, state, batch, 1, 2)
    method.after_step(model, state, batch, 2)
    assert torch.equal(constant, state["constant"])


def test_mean_teacher_teaches_the_student_only(backbone, data, make_run) -> None:
    method = MeanTeacher(weight=7.0)
    model = method.build(backbone, data.shape, torch.Generator().manual_seed(0))
    state, batch = method.state(model, data, make_run()), _batch(_views())
    terms = method.losses(model, state, batch, 100, 100)
    student = model.variants["student"]
    distance = (student(batch.views[0]).softmax(1) - model(batch.views[1]).softmax(1).detach()) ** 2
    assert torch.allclose(terms["consistency"], 7.0 * (16 / 48) * distance.mean(), atol=1e-6)
    terms["consistency"].backward()
    assert all(p.grad is None for part in (model.encoder, model.head) for p in part.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.head.parameters())


def test_mean_teacher_follows_and_starts_alike(backbone, data, make_run) -> None:
    method, run = MeanTeacher(batch_size=8), make_run(budget="1 epoch")
    model = method.build(backbone, data.shape, torch.Generator().manual_seed(0))
    before = model.head[1].weight.detach().clone()
    student = model.variants["student"]
    assert torch.equal(before, student.head[1].weight)
    with torch.no_grad():
        student.head[1].weight.add_(1.0)
    method.after_step(model, {}, _batch(_views()), 3)
    assert torch.allclose(model.head[1].weight, before + 0.25)
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1.0)  # as if the weights had come from another training
    method.state(model, data, run)
    assert torch.equal(next(model.encoder.parameters()), next(student.encoder.parameters()))


def test_pi_model_descends_on_both_branches(backbone, data, make_run) -> None:
    batch = _batch(_views())
    for stop in (False, True):
        method = PiModel(weight=5.0, by_labels=False, stop_gradient=stop)
        model = method.build(backbone, data.shape, torch.Generator().manual_seed(0))
        weights = list(model.parameters())
        first, second = (model(v).softmax(1) for v in batch.views)
        second = second.detach() if stop else second
        expected = torch.autograd.grad(5.0 * ((first - second) ** 2).sum() / (6 * 4), weights)
        term = method.losses(model, method.state(model, data, make_run()), batch, 1, 1)["consistency"]
        found = torch.autograd.grad(term, weights)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))


def test_pi_model_flips_the_pair_together() -> None:
    (view,) = _views(1)
    batch = Batch(torch.arange(6), [view, view], flip=True)
    first, second = PiModel()._flip_both(batch)
    assert torch.equal(first, second)
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(first, view, strict=True)]
    assert any(flipped)
    assert not all(flipped)
    assert PiModel(mirror=False)._flip_both(batch) is batch.views


def test_rescaled_channels_have_unit_variance(plain_backbone, data, make_run) -> None:
    for weights in ("gaussian", "pca", "kmeans"):
        method = RandomRescaled(weights=weights, calibrations=0, batch_size=16)
        model = method.build(plain_backbone, data.shape, torch.Generator())
        method.train(model, data, make_run())
        x = model.encoder.input(data.images.pixels)
        for stage in model.encoder.trunk:
            channels = stage[0](x).transpose(0, 1).flatten(1)
            assert torch.allclose(channels.std(1), torch.ones(len(channels)), atol=1e-3)
            assert torch.allclose(channels.mean(1), torch.full((len(channels),), 0.1), atol=1e-3)
            x = stage(x)


def test_calibration_evens_the_rates_of_learning(plain_backbone, data, make_run) -> None:
    spread = []
    for calibrations in (0, 10):
        method = RandomRescaled(calibrations=calibrations)
        model = method.build(plain_backbone, data.shape, torch.Generator())
        encoder = method.train(model, data, make_run()).encoder
        output = encoder(data.images.pixels)
        weights = [layer.weight for layer in layers_in_order(encoder, data.images.pixels)]
        assert isinstance(weights[0], nn.Parameter)
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
        gradients = torch.autograd.grad(output, weights, noise)
        ratios = torch.stack([g.norm() / w.norm() for g, w in zip(gradients, weights, strict=True)])
        spread.append(float((ratios.max() / ratios.min()).detach()))
    assert spread[1] < min(1.2, spread[0])


def test_pixels_and_mean_color(data, backbone) -> None:
    (images,) = _views(1)
    pixels = RawPixels(side=8).build(backbone, data.shape, torch.Generator()).encoder
    expected = images.float().view(6, 3, 8, 2, 8, 2).mean((3, 5)) / 255
    assert torch.allclose(pixels(images), expected.flatten(1))
    assert torch.allclose(pixels.activations(images, ["pixels"])["pixels"], expected)
    color = MeanColor().build(backbone, data.shape, torch.Generator()).encoder
    assert torch.allclose(color(images), images.float().mean((2, 3)) / 255)
    assert color.activations(images, ["color"])["color"].shape == (6, 3, 1, 1)
