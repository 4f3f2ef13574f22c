"""Contrastive predictive coding: what may be known, and the loss in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from bench.contracts import BenchError
from methods._loop import Batch
from methods.cpc import Cpc, contrast
from methods.parts.causal import RowContext
from methods.parts.overlapping import grid, rows

TINY = Cpc(crop=0, patch=4, stride=2, window=3, steps=5, width=6, batch_size=6, group=3, gray=0.0)


def _batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Batch(torch.arange(count), [views])


def _made(method, backbone, data):
    return method.build(backbone, data.shape, torch.Generator().manual_seed(0))


def test_the_paper_s_grid_is_seven_by_seven() -> None:
    method = Cpc()
    assert rows(method.crop, method.patch, method.stride) == 7
    image = torch.arange(256 * 256).view(1, 1, 256, 256)
    patches = grid(image, 64, 32)
    assert patches.shape == (1, 7, 7, 1, 64, 64)
    assert torch.equal(patches[0, 2, 5, 0], image[0, 0, 64:128, 160:224])


def test_patches_count_by_their_area(data) -> None:
    shape = data.shape
    assert TINY.passes(shape) == 49 * (4 / 16) ** 2
    large = dataclasses.replace(shape, side=None)
    assert Cpc().passes(large) == pytest.approx(49 * (64 / 224) ** 2)


def test_a_context_knows_nothing_of_the_rows_below() -> None:
    network = RowContext(5, 4, 3, torch.Generator().manual_seed(0)).double()
    grid_ = torch.randn(2, 5, 7, 7, dtype=torch.float64)
    context = network(grid_)
    for row in range(1, 7):
        changed = grid_.clone()
        changed[:, :, row:] += torch.randn(2, 5, 7 - row, 7, dtype=torch.float64)
        moved = (network(changed) - context).abs().amax((0, 1))
        assert moved[:row].max() == 0
        assert moved[row].min() > 0
    changed = grid_.clone()
    changed[:, :, 2, 3] += 1.0
    reached = (network(changed) - context).abs().amax((0, 1)) > 0
    assert reached[2:6].any(1).all()  # its own row, and as many below as there are blocks
    assert not reached[6].any()
    assert reached[2].tolist() == [True] * 7  # three blocks of three columns
    assert reached[5, 3]


def test_no_gradient_flows_from_a_row_to_contexts_above(plain_backbone, data) -> None:
    model = _made(TINY, plain_backbone, data)
    patches = TINY.patches(_batch()).float().div(255).requires_grad_()
    z = TINY.encode(model, patches)
    context = model.parts["context"](z.permute(0, 3, 1, 2))
    (slope,) = torch.autograd.grad(context[:, :, 3].sum(), patches)
    touched = slope.abs().amax((0, 2, 3, 4, 5)) > 0
    assert touched.tolist() == [True] * 4 + [False] * 3


def test_infonce_in_float64(plain_backbone, data) -> None:
    model, batch = _made(TINY, plain_backbone, data), _batch()
    loss = TINY.losses(model, {}, batch, 0, 1)["infonce"]
    with torch.no_grad():
        z = TINY.encode(model, TINY.patches(batch))
        c = model.parts["context"](z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).double().numpy()
    z = z.double().numpy()
    weights = [w.weight.detach().double().numpy() for w in model.parts["predictions"]]
    assert len(weights) == 5  # from the first of seven rows, two to six rows below
    steps = []
    for k, weight in enumerate(weights):
        terms = []
        for image in range(6):
            first = image // 3 * 3
            candidates = z[first : first + 3].reshape(-1, 8)
            for row in range(7 - (k + 2)):
                for column in range(7):
                    f = np.exp(candidates @ weight @ c[image, row, column])
                    own = np.exp(z[image, row + k + 2, column] @ weight @ c[image, row, column])
                    terms.append(-np.log(own / f.sum()))
        steps.append(np.mean(terms))
    assert loss.item() == pytest.approx(np.mean(steps), rel=1e-5)


def test_a_perfect_prediction_is_certain_and_none_is_log_n() -> None:
    z = torch.eye(2 * 3 * 4).view(2, 3, 4, -1)
    assert contrast(50 * z[:, 1:], z, 1, 2) < 1e-6
    assert contrast(0 * z[:, 1:], z, 1, 2).item() == pytest.approx(np.log(24))


def test_it_learns_what_patches_of_an_image_share(plain_backbone, data) -> None:
    method = dataclasses.replace(TINY, lr=0.02, feature_norm=True, window=0, blocks=2)
    model, losses = _made(method, plain_backbone, data), []
    optimizer = method.new_optimizer(model)
    shade = torch.tensor([20, 120, 220, 60, 160, 250]).view(6, 1, 1, 1)
    batch = dataclasses.replace(_batch(), views=[(shade + torch.zeros(6, 3, 16, 16)).to(torch.uint8)])
    for _ in range(60):
        loss = method.losses(model, {}, batch, 0, 1)["infonce"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Of the 3 x 49 patches of a group an image's shade points to its own 49.
    assert losses[0] > np.log(147) - 0.5
    assert losses[-1] < np.log(49) + 0.2


# ---- the fingerprint of the lattice ----------------------------------------------------------------

PERIOD = 5  # pixels: as many places as a window of 60 has in 64


def _striped(count: int) -> tuple[Tensor, Tensor]:
    """Noise with a brighter column in every fifth, from an image's own first one on: all its patches share it."""
    generator = torch.Generator().manual_seed(7)
    phase = torch.randint(PERIOD, (count,), generator=generator)
    bright = (torch.arange(128) + phase[:, None]) % PERIOD == 0
    noise = torch.randint(0, 100, (count, 1, 1, 128), generator=generator)
    images = (noise + 100 * bright[:, None, None, :]).expand(count, 3, 128, 128)
    return images.to(torch.uint8), phase


def _told(window: int, row: int) -> float:
    """How often a linear model on a patch's columns tells the image's stripes."""
    images, phase = _striped(600)
    method = Cpc(crop=128, window=window)
    patches = method.patches(Batch(torch.arange(600), [images]))[:, row, 1]
    columns = patches[:, 0].float().mean(1).numpy() / 255
    model = LogisticRegression(max_iter=500).fit(columns[:300], phase[:300])
    return float(model.score(columns[300:], phase[300:]))


def test_patches_share_no_lattice_when_each_shows_a_window_of_its_own() -> None:
    chance, error = 1 / PERIOD, (0.2 * 0.8 / 300) ** 0.5
    for row in (0, 2):
        told = _told(0, row), _told(60, row)
        print(f"\nstripes told from row {row}: {told[0]:.3f} of whole patches, {told[1]:.3f} of windows")
        assert told[0] > 0.95
        assert abs(told[1] - chance) < 3 * error


def test_a_window_is_moved_by_its_own_draw_and_padded_in_the_middle() -> None:
    views = [torch.randint(1, 256, (4, 3, 16, 16), dtype=torch.uint8)]
    batch = Batch(torch.arange(4), views)
    method = dataclasses.replace(TINY, patch=8, stride=4, window=6)
    patches, whole = method.patches(batch), grid(views[0], 8, 4)
    assert patches.shape == whole.shape
    inner = patches[..., 1:7, 1:7]
    assert int((patches > 0).sum()) == inner.numel()
    seen = set()
    for shown, full in zip(inner.flatten(0, 2), whole.flatten(0, 2), strict=True):
        found = [
            (y, x) for y in range(3) for x in range(3) if torch.equal(full[:, y : y + 6, x : x + 6], shown)
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 9
    later = method.patches(dataclasses.replace(batch, step=1))
    assert not torch.equal(later, patches)
    alone = method.patches(Batch(torch.tensor([2]), [views[0][2:3]]))
    assert torch.equal(alone[0], patches[2])  # whatever the batch
    assert torch.equal(dataclasses.replace(method, window=0).patches(batch), whole)


def test_wrong_settings_are_told(plain_backbone, data) -> None:
    with pytest.raises(BenchError, match="cpc.batch_size 100 must be a multiple of group 16"):
        Cpc(batch_size=100)
    with pytest.raises(BenchError, match="cpc.window must be 0 to 64"):
        Cpc(window=65)
    with pytest.raises(BenchError, match="cpc needs 3 rows of patches, and these are 2"):
        _made(Cpc(crop=0, patch=8, stride=8, window=0), plain_backbone, data)
