"""Colorization, split-brain and inpainting: their formulas against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.contracts import BenchError
from methods._loop import _Feed
from methods.colorization import Colorization
from methods.parts.ab_bins import AbBins, gamut, rebalanced
from methods.parts.decoders import at_centers, pixel_classifier, rows
from methods.parts.joined import towers
from methods.parts.lab import Channels, planes, to_lab, to_rgb
from methods.parts.levels import Levels
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
    assert torch.allclose(Channels("L")(images), to_lab(images, "L") / 50 - 1)
    assert torch.allclose(Channels("ab")(images), to_lab(images, "ab") / 110)
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
    for color, found, code in zip(ab.double().numpy(), index.numpy(), weights.numpy(), strict=True):
        squared = [float(((color - center) ** 2).sum()) for center in centers]
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
    for split, expected in (("L|ab", {"ab": 309, "L": 100}), ("R|GB", {"GB": 256, "R": 100})):
        method = SplitBrain(batch_size=12, stride=4, split=split)
        model = method.build(small, data.shape, run.generator("weights"))
        uniform(model)
        batch = next(_Feed(method, data, run).batches({}, 0, 0))
        losses = method.losses(model, {}, batch, 0, 1)
        assert {k: float(v.detach().exp()) for k, v in losses.items()} == pytest.approx(expected, rel=1e-4)
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
