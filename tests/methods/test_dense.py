"""Colorization, split-brain and inpainting: their formulas against independent computations."""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.contracts import BenchError, Draws
from methods._loop import _Feed
from methods.colorization import Colorization
from methods.context_encoder import ContextEncoder
from methods.larsson_colorization import LarssonColorization
from methods.parts.ab_bins import AbBins, gamut, rebalanced
from methods.parts.decoders import ChannelwiseLinear, Painter, at_centers, pixel_classifier, rows
from methods.parts.discriminators import discriminator, fooling_loss, telling_loss
from methods.parts.hue_chroma import around, color, expected, histograms, hue_chroma
from methods.parts.hypercolumns import hypercolumns
from methods.parts.joined import towers
from methods.parts.lab import Channels, planes, to_lab, to_rgb
from methods.parts.levels import Levels
from methods.parts.masks import emphasized, holes
from methods.split_brain import SplitBrain

# Published CIE Lab values of sRGB under D65.
KNOWN = {
    (255, 255, 255): (100, 0, 0),
    (0, 0, 0): (0, 0, 0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (255, 255, 0): (97.14, -21.55, 94.48),
    (128, 128, 128): (53.59, 0, 0),
}


def pixels(colors):
    """Bytes (N, 3, 1, 1)."""
    return torch.from_numpy(np.array(list(colors), dtype=np.uint8))[:, :, None, None]


# ---- Lab -----------------------------------------------------------------------------------------


def test_lab_is_the_published_one():
    found = to_lab(pixels(KNOWN)).flatten(1)
    assert torch.allclose(found, torch.tensor(list(KNOWN.values())), atol=0.02)
    assert torch.allclose(to_lab(pixels(KNOWN).float() / 255).flatten(1), found, atol=1e-4)
    assert found[[0, 1, 6], 1:].abs().max() < 1e-4  # gray is gray


def test_lab_is_that_of_a_float64_loop_and_comes_back():
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (50, 3))

    def lab(color):
        linear = [((v + 0.055) / 1.055) ** 2.4 if v > 0.04045 else v / 12.92 for v in color / 255]
        rows = [
            (0.412453, 0.357580, 0.180423),
            (0.212671, 0.715160, 0.072169),
            (0.019334, 0.119193, 0.950227),
        ]
        white = (0.950456, 1.0, 1.088754)
        t = [sum(w * v for w, v in zip(r, linear, strict=True)) / n for r, n in zip(rows, white, strict=True)]
        f = [v ** (1 / 3) if v > (6 / 29) ** 3 else v * (29 / 6) ** 2 / 3 + 4 / 29 for v in t]
        return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])

    expected = torch.tensor([lab(c) for c in colors])
    images = pixels(colors)
    assert torch.allclose(to_lab(images).flatten(1), expected.float(), atol=0.01)
    assert torch.allclose(to_rgb(to_lab(images)), images.float() / 255, atol=1e-4)
    assert torch.equal(to_lab(images, "bL"), to_lab(images)[:, [2, 0]])


def test_channels_are_scaled_and_named():
    images = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8)
    assert torch.allclose(Channels("L")(images), to_lab(images, "L") / 50 - 1, atol=1e-6)
    assert torch.allclose(Channels("ab")(images), to_lab(images, "ab") / 110, atol=1e-6)
    assert torch.allclose(Channels("BR")(images), images[:, [2, 0]].float() / 127.5 - 1, atol=1e-6)
    assert torch.equal(planes(images, "G"), images[:, 1:2].float() / 255)
    for wrong in ("", "LR", "x"):
        with pytest.raises(BenchError, match="channels must be"):
            Channels(wrong)


# ---- bins ----------------------------------------------------------------------------------------


def test_bins_cover_the_gamut():
    """309 corners of cells that hold a color: the paper has 313, and does not say of which conversion."""
    centers = gamut(10.0)
    assert len(centers) == 309
    levels = torch.arange(0, 256, 15, dtype=torch.uint8)
    ab = to_lab(torch.cartesian_prod(levels, levels, levels)[:, :, None, None], "ab").flatten(1)
    known = {tuple(c) for c in centers.tolist()}
    for low in (ab / 10).floor().mul(10).unique(dim=0).tolist():
        assert {(low[0] + i, low[1] + j) for i in (0, 10) for j in (0, 10)} <= known
    assert (torch.cdist(centers, ab).min(1).values < 10 * 2**0.5 + 1).all()  # and there are no others


@pytest.mark.parametrize("neighbors", [5, 10])
def test_soft_codes_are_those_of_a_float64_loop(neighbors):
    bins = AbBins(10.0, neighbors, 5.0)
    images = torch.randint(256, (300, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ab = rows(to_lab(images, "ab"))
    index, weights = bins(ab)
    centers = bins.centers.double().numpy()
    for one, found, code in zip(ab.double().numpy(), index.numpy(), weights.numpy(), strict=True):
        squared = [float(((one - center) ** 2).sum()) for center in centers]
        order = sorted(range(len(centers)), key=squared.__getitem__)[:neighbors]
        raw = [math.exp(-squared[q] / (2 * 5.0**2)) for q in order]
        assert [squared[q] for q in found] == pytest.approx([squared[q] for q in order], rel=1e-4, abs=1e-3)
        assert code == pytest.approx([w / sum(raw) for w in raw], rel=1e-3, abs=1e-5)


def test_rebalancing_is_that_of_a_float64_loop():
    bins, rng = AbBins(), np.random.default_rng(0)
    counts = rng.integers(0, 1000, len(bins)) * (rng.random(len(bins)) < 0.3)
    centers = bins.centers.double().numpy()
    smooth = np.zeros(len(bins))
    for q, count in enumerate(counts):
        kernel = np.exp(-((centers - centers[q]) ** 2).sum(1) / (2 * 5.0**2))
        smooth += count * kernel / kernel.sum()
    prior = smooth / smooth.sum()
    assert bins.prior(torch.from_numpy(counts)).numpy() == pytest.approx(prior, rel=1e-4, abs=1e-9)
    factor = 1 / (0.5 * prior + 0.5 / len(bins))
    factor /= (prior * factor).sum()
    found = rebalanced(bins.prior(torch.from_numpy(counts)), 0.5)
    assert found.numpy() == pytest.approx(factor, rel=1e-3)
    assert rebalanced(torch.tensor([0.5, 0.5, 0.0]), 0.5).tolist() == pytest.approx([1, 1, 2.5])
    assert rebalanced(torch.tensor([0.75, 0.25]), 1.0).tolist() == [1, 1]


def test_annealed_mean():
    bins = AbBins()
    scores = torch.full((1, len(bins), 1, 1), -1e4)
    scores[0, [3, 200]] = torch.tensor([0.0, math.log(2)]).view(2, 1, 1)
    share = 2 ** (1 / 0.5) / (1 + 2 ** (1 / 0.5))
    expected = (1 - share) * bins.centers[3] + share * bins.centers[200]
    assert torch.allclose(bins.annealed_mean(scores, 0.5).flatten(), expected, atol=1e-4)


def test_pixels_in_the_middle_of_cells():
    images = torch.arange(64).view(1, 1, 8, 8)
    assert at_centers(images, 2, 4).flatten().tolist() == [17, 19, 21, 23, 49, 51, 53, 55]
    decoder = pixel_classifier(4, 7, 2, torch.Generator().manual_seed(0))
    assert decoder(torch.zeros(2, 4, 3, 3)).shape == (2, 7, 6, 6)


# ---- colorization --------------------------------------------------------------------------------


class Shown:
    """A run that keeps its pictures."""

    def __init__(self, run):
        self.pictures = {}
        run.picture = self.pictures.__setitem__


def trained(method, backbone, data, run):
    model = method.build(backbone, data.shape, run.generator("weights"))
    return method.train(model, data, run)


def uniform(model):
    """All scores alike."""
    for part in model.parts.values():
        for conv in (m for m in part.modules() if isinstance(m, nn.Conv2d)):
            nn.init.zeros_(conv.weight)


def test_colorization_of_an_ignorant_decoder_is_the_weighted_log_of_the_bins(small, data, make_run):
    method = Colorization(batch_size=12, stride=4)
    run = make_run()
    model = method.build(small, data.shape, run.generator("weights"))
    uniform(model)
    state = method.state(model, data, run)
    method.begin_epoch(0, model, state, data, run)
    batch = next(_Feed(method, data, run).batches(state, 0, 0))
    (loss,) = method.losses(model, state, batch, 0, 1).values()
    loss = loss.detach()
    ab = rows(to_lab(at_centers(batch.views[0], 4, 4), "ab"))
    nearest = torch.cdist(ab.double(), model.parts["bins"].centers.double()).argmin(1)
    assert float(loss) == pytest.approx(float(state["weights"][nearest].mean()) * math.log(309), rel=1e-5)


@pytest.mark.parametrize(("colorless", "counted"), [("none", 8), ("images", 4), ("pixels", 1)])
def test_what_has_no_color_is_left_out(colorless, counted):
    ab = torch.full((2, 2, 2, 2), 5.0)
    ab[1, 1, 0, 1] = -5.1
    assert Colorization(colorless=colorless)._counted(ab).sum() == counted
    with pytest.raises(BenchError, match="colorless must be"):
        Colorization(colorless="some")


def test_the_prior_is_that_of_the_training_set(small, data, make_run):
    method, run = Colorization(batch_size=12, stride=4), make_run()
    model = method.build(small, data.shape, run.generator("weights"))
    state = method.state(model, data, run)
    method.begin_epoch(0, model, state, data, run)
    ab = rows(to_lab(at_centers(data.images.pixels, 4, 4), "ab"))
    bins = model.parts["bins"]
    nearest = torch.cdist(ab.double(), bins.centers.double()).argmin(1)
    prior = bins.prior(torch.bincount(nearest, minlength=len(bins)))
    wanted = 1 / (prior + 1 / len(bins))
    assert torch.allclose(state["weights"], wanted / (wanted * prior).sum(), rtol=1e-4)


def test_colorized_examples_are_shown(small, data, make_run):
    run = make_run()
    shown = Shown(run)
    model = trained(Colorization(batch_size=12, stride=4), small, data, run)
    assert model.training
    picture = shown.pictures["colorized"]
    assert picture.shape == (3, 3 * 18 + 2, 8 * 18 + 2)
    assert torch.allclose(
        picture[:, 2 + 36 : 2 + 36 + 16, 2:18], data.images.pixels[0] / 255
    )  # the truth is last
    gray = picture[:, 2:18, 2:18]
    assert (gray - gray.mean(0)).abs().max() < 1e-3
    assert torch.allclose(to_lab(gray[None], "L"), to_lab(data.images.pixels[:1], "L"), atol=0.1)


# ---- split-brain ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["L|ab", "ab|L", "ba|L", "a|Lb", "R|GB", "BG|R"])
@pytest.mark.parametrize("loss", ["classification", "regression"])
def test_no_tower_sees_its_own_targets(small, data, make_run, split, loss):
    """Images that differ in one group of channels alone: the other tower's maps and losses' gradients stay."""
    method, run = SplitBrain(split=split, loss=loss, stride=4), make_run()
    model = method.build(small, data.shape, run.generator("weights")).eval()
    encoder = model.encoder
    assert encoder.channels == {"conv1": 6, "conv2": 8}
    assert encoder.dim == 8
    seen = torch.rand(2, 3, 16, 16)
    for k, changed in enumerate(split.split("|")):
        source = encoder.input(seen)
        other = source.clone()
        where = [split.replace("|", "").index(name) for name in changed]
        other[:, where] += torch.rand(2, len(where), 16, 16)
        a, b = encoder.trunk(source), encoder.trunk(other)
        stays, moves = (slice(4, 8), slice(0, 4)) if k == 0 else (slice(0, 4), slice(4, 8))
        assert torch.equal(a[:, stays], b[:, stays])
        assert not torch.equal(a[:, moves], b[:, moves])


def test_a_change_of_color_leaves_the_tower_of_lightness_alone(small, data, make_run):
    model = SplitBrain(stride=4).build(small, data.shape, make_run().generator("weights")).eval()
    images = torch.rand(3, 3, 16, 16) * 0.4 + 0.3
    lab = to_lab(images)
    recolored = to_rgb(torch.cat([lab[:, :1], lab[:, 1:].flip(0) * 0.5], 1))
    assert (to_lab(recolored)[:, 0] - lab[:, 0]).abs().max() < 1e-3
    lighter = to_rgb(torch.cat([lab[:, :1] + 5, lab[:, 1:]], 1))
    maps, other, brighter = (
        model.encoder.activations(i, ["conv2"])["conv2"] for i in (images, recolored, lighter)
    )
    assert torch.allclose(maps[:, :4], other[:, :4], atol=1e-4)
    assert (maps[:, 4:] - other[:, 4:]).abs().max() > 0.01
    assert torch.allclose(maps[:, 4:], brighter[:, 4:], atol=1e-4)
    assert (maps[:, :4] - brighter[:, :4]).abs().max() > 0.01


def test_towers_are_the_joined_encoder(small, data, make_run):
    model = SplitBrain(stride=4).build(small, data.shape, make_run().generator("weights")).eval()
    images = data.images.pixels[:4]
    joined = torch.cat(towers(model.encoder, images, "conv2"), 1)
    assert torch.equal(joined, model.encoder.activations(images, ["conv2"])["conv2"])
    assert torch.allclose(model.encoder(images), joined.mean((2, 3)))
    tail = model.encoder.above("conv1", torch.Generator().manual_seed(0))
    assert tail(model.encoder.activations(images, ["conv1"])["conv1"]).shape == (4, 8)


def test_each_loss_trains_its_own_tower(small, data, make_run):
    method, run = SplitBrain(batch_size=12, stride=4), make_run()
    model = method.build(small, data.shape, run.generator("weights"))
    batch = next(_Feed(method, data, run).batches({}, 0, 0))
    losses = method.losses(model, {}, batch, 0, 1)
    assert list(losses) == ["ab", "L"]  # the first tower predicts the second one's channels
    for target, mine, others in (("ab", "first", "second"), ("L", "second", "first")):
        model.zero_grad()
        losses[target].backward(retain_graph=True)
        moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert any(f".{mine}." in n for n in moved)
        assert not any(f".{others}." in n for n in moved)
        assert {n.split(".")[1] for n in moved if n.startswith("parts.")} == {f"predict_{target}"}


def test_ignorant_towers_pay_the_log_of_the_classes(small, data, make_run):
    run = make_run()
    for split, classes in (("L|ab", {"ab": 309, "L": 50}), ("R|GB", {"GB": 256, "R": 50})):
        method = SplitBrain(batch_size=12, stride=4, split=split)
        model = method.build(small, data.shape, run.generator("weights"))
        uniform(model)
        batch = next(_Feed(method, data, run).batches({}, 0, 0))
        losses = method.losses(model, {}, batch, 0, 1)
        assert {k: float(v.detach().exp()) for k, v in losses.items()} == pytest.approx(classes, rel=1e-4)
    method = SplitBrain(batch_size=12, stride=4, loss="regression")
    model = method.build(small, data.shape, run.generator("weights"))
    uniform(model)
    losses = method.losses(model, {}, batch, 0, 1)
    lab = to_lab(at_centers(batch.views[0], 4, 4)).double()
    assert float(losses["L"].detach()) == pytest.approx(
        float((lab[:, 0] / 50 - 1).square().mean() / 2), rel=1e-4
    )
    color = (lab[:, 1:] / 110).square().sum(1).mean() / 2
    assert float(losses["ab"].detach()) == pytest.approx(float(color), rel=1e-4)


def test_levels():
    found, weight = Levels("L", 100)(torch.tensor([[0.0], [0.99], [1.0], [99.99], [100.0], [101.0]]))
    assert found.flatten().tolist() == [0, 0, 1, 99, 99, 99]
    assert weight.tolist() == [[1.0]] * 6
    pair = Levels("GB", 16)
    assert len(pair) == 256
    assert pair(torch.tensor([[0.0, 0.0], [0.5, 0.99], [1.0, 0.07]]))[0].flatten().tolist() == [0, 143, 241]


@pytest.mark.parametrize("split", ["Lab", "L|a", "L|RG", "L|Lab", "|Lab", "L|a|b"])
def test_a_wrong_split_is_one_line(split):
    with pytest.raises(BenchError, match="split_brain.split must part"):
        SplitBrain(split=split)


# ---- inpainting ----------------------------------------------------------------------------------


def cut(kind, side=64, count=400, **changed):
    shapes = {"blocks": 4, "block": 0.25, "area": 0.25, "cells": 8} | changed
    return holes(kind, Draws(0, 0, torch.arange(count)), side, **shapes)


def test_masks_have_the_area_that_they_should():
    area = {kind: cut(kind).float().mean((1, 2, 3)) for kind in ("central", "block", "region")}
    assert (area["central"] == 0.25).all()
    assert (area["region"] == 0.25).all()
    assert area["block"].max() <= 0.25
    assert area["block"].min() >= 1 / 16
    # Of k squares anywhere a pixel misses all with probability (1 - p)^k: p is a product over the axes.
    places = np.arange(64)
    axis = np.minimum.reduce([places + 1, 64 - places, np.full(64, 16), np.full(64, 49)]) / 49
    covered = 1 - (1 - np.outer(axis, axis)) ** 4
    found = cut("block", count=4000).float().mean((0, 1)).numpy()
    assert np.abs(found - covered).max() < 5 * 0.5 / 4000**0.5
    one = cut("block", blocks=1, block=1 / 3, side=48)
    assert (one.sum((2, 3)) == 16 * 16).all()
    assert (one.any(2).sum(2) == 16).all()  # squares, not scattered pixels


def test_masks_are_every_images_own_and_regions_are_smooth():
    for kind in ("block", "region"):
        assert len({m.numpy().tobytes() for m in cut(kind, count=50)}) == 50
    region = cut("region")
    borders = (region[..., 1:] != region[..., :-1]).float().sum((1, 2, 3)).mean() / 64
    scattered = 2 * 0.25 * 0.75 * 63  # changes along a row if pixels were drawn one by one
    assert 1 < borders < scattered / 4
    assert region.float().mean((0, 1)).std() < 0.05  # anywhere alike
    with pytest.raises(BenchError, match="mask 'oval' is not known"):
        cut("oval")


def test_pixels_around_a_hole_weigh_more():
    hole = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    hole[..., 3, 3:5] = True
    found = emphasized(hole, 1, 10.0, 0.1)[0, 0]
    for y, x in np.ndindex(7, 7):
        apart = min(max(abs(y - 3), abs(x - c)) for c in (3, 4))
        assert float(found[y, x]) == pytest.approx({0: 1.0, 1: 10.0}.get(apart, 0.1))
    assert torch.equal(emphasized(hole, 0, 10.0, 0.0), hole.float())


def painted(small, data, run, **settings):
    method = ContextEncoder(batch_size=12, width=4, cells=3, overlap=1, **settings)
    model = method.build(small, data.shape, run.generator("weights"))
    return method, model, next(_Feed(method, data, run).batches({}, 0, 0))


@pytest.mark.parametrize("mask", ["central", "block", "region"])
@pytest.mark.parametrize("stride", [1, 2])
def test_reconstruction_is_the_weighted_square_in_the_hole(small, data, make_run, mask, stride):
    method, model, batch = painted(small, data, make_run(), mask=mask, stride=stride, known=0.5)
    images = batch.views[0].double() / 255
    hole = method._holes(batch.draws(), images)
    model.eval()
    (loss,) = method.losses(model, {}, batch, 0, 1).values()
    made = method._paint(model, images.float(), hole).detach().double().numpy()
    cells = 16 // stride
    total, pixels = 0.0, 0
    for n, y, x in np.ndindex(12, cells, cells):
        inside = np.s_[y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
        weight = emphasized(hole, 1, 10.0, 0.5)[n, 0][inside].mean().item()
        true = 2 * images[n][(slice(None), *inside)].mean((1, 2)).numpy() - 1
        total += weight * ((made[n, :, y, x] - true) ** 2).sum()
        pixels += 3
    assert float(loss.detach()) == pytest.approx(total / pixels, rel=1e-4)


@pytest.mark.parametrize("fill", ["constant", "image"])
def test_nothing_of_the_hole_is_seen(small, data, make_run, fill):
    method, _, batch = painted(small, data, make_run(), fill="constant")
    images = batch.views[0].float() / 255
    hole = method._holes(batch.draws(), images)
    other = torch.where(hole, torch.rand_like(images), images)
    assert torch.equal(method._cut(images, hole), method._cut(other, hole))
    seen = replace(method, fill=fill)._cut(images, hole)
    inside = seen.movedim(1, -1)[hole[:, 0]]
    wanted = torch.tensor([117.0, 104.0, 123.0]) / 255
    if fill == "image":
        wanted = images.mean((2, 3)).repeat_interleave(hole.sum((1, 2, 3)), 0)
    assert torch.allclose(inside, wanted.expand_as(inside), atol=1e-6)
    assert torch.equal(seen[~hole.expand_as(seen)], images[~hole.expand_as(images)])


@pytest.mark.parametrize("mask", ["central", "region"])
def test_each_side_gets_its_own_gradient(small, data, make_run, mask):
    """One backward pass over the sum gives what two separate ones would."""
    method, model, batch = painted(small, data, make_run(), mask=mask, adversarial=0.25)
    losses = method.losses(model, {}, batch, 0, 1)
    assert set(losses) == {"reconstruction", "adversarial", "discriminator"}
    grads = {}
    for name, loss in losses.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        grads[name] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    judges = {n for n, _ in model.named_parameters() if n.startswith("parts.discriminator.")}
    makers = {n for n, _ in model.named_parameters()} - judges
    assert judges
    assert set(grads["discriminator"]) == judges
    assert set(grads["adversarial"]) == set(grads["reconstruction"]) == makers
    for name, wanted in (("discriminator", "parts.discriminator"), ("adversarial", "encoder.trunk.conv1")):
        assert any(g.abs().max() > 0 for n, g in grads[name].items() if n.startswith(wanted))
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    for n, p in model.named_parameters():
        expected = sum(g[n] for g in grads.values() if n in g)
        assert torch.allclose(p.grad, expected, rtol=1e-3, atol=1e-6), n
    rates = {len(g["params"]): g.get("scale", 1.0) for g in method.groups(model)}
    assert rates == {len(makers): 1.0, len(judges): 0.1}


def test_the_game_is_gans():
    """Against the formulas with a judge that is one number a picture."""
    judge = nn.Sequential(nn.Flatten(), nn.Linear(3, 1))
    real, made = torch.randn(5, 3, 1, 1), torch.randn(5, 3, 1, 1, requires_grad=True)

    def probability(x):
        return [1 / (1 + math.exp(-float(v))) for v in judge(x).detach()]

    told = -np.mean([math.log(p) for p in probability(real)]) - np.mean(
        [math.log(1 - p) for p in probability(made)]
    )
    assert float(telling_loss(judge, real, made).detach()) == pytest.approx(told, rel=1e-5)
    fooled = -np.mean([math.log(p) for p in probability(made)])
    assert float(fooling_loss(judge, made).detach()) == pytest.approx(fooled, rel=1e-5)
    loud = discriminator(3, 12, 4, torch.Generator().manual_seed(0))
    assert loud(torch.zeros(2, 3, 12, 12)).shape == (2, 1)
    before = {k: v.clone() for k, v in loud.state_dict().items()}
    fooling_loss(loud, torch.rand(2, 3, 12, 12))
    assert all(torch.equal(v, before[k]) for k, v in loud.state_dict().items())  # statistics too


def test_a_channelwise_layer_mixes_no_channels():
    layer = ChannelwiseLinear(3, 2)
    nn.init.normal_(layer.weight)
    maps = torch.randn(4, 3, 2, 2)
    found = layer(maps)
    for n, c in np.ndindex(4, 3):
        expected = maps[n, c].flatten() @ layer.weight[c]
        assert torch.allclose(found[n, c].flatten(), expected, atol=1e-5)


def test_a_painter_hits_any_size():
    for side, maps in ((16, 4), (12, 4), (24, 3), (30, 4)):
        painter = Painter(5, maps, side, 4, torch.Generator().manual_seed(0))
        assert painter(torch.randn(2, 5, maps, maps)).shape == (2, 3, side, side)


def test_inpainted_examples_are_shown(small, data, make_run):
    run = make_run()
    shown = Shown(run)
    trained(ContextEncoder(batch_size=12, width=4, cells=3, mask="central"), small, data, run)
    picture = shown.pictures["inpainted"]
    tiles = [picture[:, 2 + 18 * k : 18 + 18 * k, 2:18] for k in range(3)]
    true = data.images.pixels[0] / 255
    assert torch.allclose(tiles[2], true)
    assert torch.allclose(
        tiles[0][:, 4:12, 4:12], (torch.tensor([117, 104, 123]) / 255)[:, None, None].expand(3, 8, 8)
    )
    assert torch.equal(tiles[0][:, :4], true[:, :4])
    assert torch.equal(tiles[1][:, :4], true[:, :4])
    assert not torch.allclose(tiles[1][:, 4:12, 4:12], true[:, 4:12, 4:12], atol=0.05)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mask": "oval"}, "context_encoder.mask must be central, block, region"),
        ({"fill": "black"}, "context_encoder.fill must be"),
        ({"adversarial": 1.0}, "context_encoder.adversarial must be"),
    ],
)
def test_wrong_settings_are_one_line(settings, told):
    with pytest.raises(BenchError, match=told):
        ContextEncoder(**settings)


# ---- hypercolumns, hue and chroma ----------------------------------------------------------------


def test_hypercolumns_are_bilinear():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(3, c, h, w, generator=generator) for c, h, w in ((4, 5, 7), (2, 3, 3), (3, 1, 1))]
    places = torch.rand(3, 11, 2, generator=generator)
    places[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.1, 0.5]])
    found = hypercolumns(layers, places).view(3, 11, 9)

    def at(plane, y, x):
        h, w = plane.shape
        y, x = min(max(y * h - 0.5, 0), h - 1), min(max(x * w - 0.5, 0), w - 1)
        total = 0.0
        for i, j in np.ndindex(h, w):
            total += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * plane[i, j]
        return total

    for n, p in np.ndindex(3, 11):
        y, x = places[n, p].double().tolist()
        wanted = [at(maps[n, c].double().numpy(), y, x) for maps in layers for c in range(maps.shape[1])]
        assert found[n, p].numpy() == pytest.approx(wanted, abs=1e-4)


def test_hypercolumns_send_gradients_back_by_the_same_weights():
    maps, places = torch.randn(2, 3, 4, 4, requires_grad=True, dtype=torch.float64), torch.rand(2, 5, 2)
    assert torch.autograd.gradcheck(lambda m: hypercolumns([m], places), maps)


def test_hue_and_chroma_are_those_of_colorsys():
    rng = np.random.default_rng(0)
    colors = [*rng.integers(0, 256, (60, 3)).tolist(), [7, 7, 7], [255, 0, 0], [0, 255, 255], [9, 0, 200]]
    hue, chroma = hue_chroma(pixels(colors))
    for k, (r, g, b) in enumerate(colors):
        assert float(hue[k]) == pytest.approx(colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)[0], abs=1e-5)
        assert float(chroma[k]) == pytest.approx((max(r, g, b) - min(r, g, b)) / 255, abs=1e-6)
    images = pixels(colors).float() / 255
    assert torch.allclose(color(hue, chroma, images.mean(1)), images, atol=1e-5)


def test_histograms_count_a_window():
    values = torch.rand(2, 9, 8, generator=torch.Generator().manual_seed(0))
    values[0, 4, 4] = 1.0
    places = torch.tensor([[[4, 4], [0, 0], [8, 7]], [[3, 5], [5, 3], [4, 4]]])
    found = histograms(around(values[:, None], places, 5)[:, 0], 32)
    for row, (n, p) in enumerate(np.ndindex(2, 3)):
        y, x = (min(max(int(v), 2), side - 3) for v, side in zip(places[n, p], (9, 8), strict=True))
        inside = values[n, y - 2 : y + 3, x - 2 : x + 3].double().numpy()
        wanted = np.histogram(inside, 32, (0, 1))[0] / 25
        assert found[row].numpy() == pytest.approx(wanted)
    assert (found.sum(1) - 1).abs().max() < 1e-6


def test_colors_are_read_off_histograms():
    hue, chroma = torch.zeros(2, 32), torch.zeros(2, 32)
    hue[0, [0, 31]] = 0.5  # on either side of red
    hue[1, 8] = 1.0
    chroma[0, [2, 10, 20]] = torch.tensor([0.3, 0.3, 0.4])
    chroma[1, 31] = 1.0
    direction, median = expected(hue, chroma)
    assert min(float(direction[0]), 1 - float(direction[0])) < 1e-6
    assert float(direction[1]) == pytest.approx(8.5 / 32)
    assert median.tolist() == pytest.approx([10.5 / 32, 31.5 / 32])


@pytest.mark.parametrize("fading", [False, True])
def test_divergences_are_those_of_a_float64_loop(small, data, make_run, fading):
    method, run = (
        LarssonColorization(batch_size=6, locations=5, window=3, fading=fading, hidden=7),
        make_run(),
    )
    model = method.build(small, data.shape, run.generator("weights")).eval()
    batch = next(_Feed(method, data, run).batches({}, 0, 0))
    losses = method.losses(model, {}, batch, 0, 1)
    places = method._places(batch, batch.views[0])
    assert places.amin() >= 2
    assert places.amax() <= 13  # of 16, but for two at either border
    scores = method._scores(model, batch.views[0], places)
    maps = dict(zip(("hue", "chroma"), hue_chroma(batch.views[0]), strict=True))
    total = {"hue": 0.0, "chroma": 0.0}
    for row, (n, p) in enumerate(np.ndindex(6, 5)):
        y, x = places[n, p].tolist()
        gray = float(batch.views[0][n, :, y, x].double().mean()) / 255
        weights = {"hue": 5 * float(maps["chroma"][n, y, x]), "chroma": 1.0}
        if fading:
            weights["chroma"] = 3 * min(gray, 1 / 3, 1 - gray)
        for name, values in maps.items():
            q = scores[name][row].detach().double().softmax(0).numpy()
            window = (values[n, y - 1 : y + 2, x - 1 : x + 2].double().numpy() * 32).astype(int).clip(0, 31)
            for bin_, share in zip(*np.unique(window, return_counts=True), strict=True):
                total[name] += weights[name] * share / 9 * math.log(share / 9 / q[bin_])
    assert {k: float(v.detach()) for k, v in losses.items()} == pytest.approx(
        {k: v / 30 for k, v in total.items()}, rel=1e-4
    )


def test_hypercolumns_train_every_layer_and_colors_are_shown(small, data, make_run):
    run = make_run()
    shown = Shown(run)
    method = LarssonColorization(batch_size=12, locations=4, hidden=16, lr=0.1)
    fresh = method.build(small, data.shape, run.generator("weights"))
    model = trained(method, small, data, run)
    for name, weight in model.named_parameters():
        assert not torch.equal(weight, fresh.get_parameter(name)), name
    picture = shown.pictures["colorized"]
    tiles = [picture[:, 2 + 18 * k : 18 + 18 * k, 2:18] for k in range(3)]
    true = data.images.pixels[0] / 255
    assert torch.allclose(tiles[2], true)
    assert torch.allclose(tiles[0], true.mean(0).expand(3, -1, -1))


@pytest.mark.parametrize(
    "method",
    [
        Colorization(batch_size=12, stride=4),
        SplitBrain(batch_size=12, stride=4),
        LarssonColorization(batch_size=12, locations=4, hidden=16, dropout=0.0),
        ContextEncoder(batch_size=12, width=4, cells=3, overlap=1, adversarial=0.1),
    ],
    ids=lambda method: type(method).__name__,
)
def test_losses_in_bfloat16_are_near(small, data, make_run, method):
    found = []
    for precision in ("fp32", "bf16"):
        run = make_run(precision=precision)
        model = method.build(small, data.shape, run.generator("weights"))
        state = method.state(model, data, run)
        method.begin_epoch(0, model, state, data, run)
        batch = next(_Feed(method, data, run).batches(state, 0, 0))
        with run.autocast():
            losses = method.losses(model, state, batch, 0, 1)
        torch.stack(list(losses.values())).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        found.append({name: float(loss.detach()) for name, loss in losses.items()})
    assert found[1] == pytest.approx(found[0], rel=0.03)
    assert found[1] != found[0]
