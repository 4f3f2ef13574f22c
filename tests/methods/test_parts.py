"""The parts' formulas against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from bench.backbones.alexnet import AlexNet
from bench.backbones.alexnet_small import AlexNetSmall
from bench.contracts import BenchError, DataShape, Draws
from methods.deepcluster import balanced, unrectified
from methods.jigsaw import Jigsaw
from methods.parts import ema
from methods.parts.consistency import squared_distance, supervised_term
from methods.parts.kmeans import kmeans, match, whiten
from methods.parts.memory_bank import new_bank, remember, scores
from methods.parts.nce import estimate_constant, nce_loss
from methods.parts.ramps import ramp_down, ramp_up, warm_up
from methods.rotation import Rotation


def test_ramps() -> None:
    assert [round(ramp_up(t, 1), 6) for t in (0, 0.5, 1, 2)] == [0.006738, 0.286505, 1, 1]
    assert ramp_up(0, 0) == 1
    assert [ramp_down(left, 50) for left in (60, 50, 25)] == [1, 1, math.exp(-12.5 / 4)]
    assert ramp_down(0, 50) == pytest.approx(math.exp(-12.5))
    assert [warm_up(t, 4) for t in (0, 1, 8)] == [0, 0.25, 1]


def test_average_of_weights() -> None:
    own, other = nn.Linear(1, 1), nn.Linear(1, 1)
    for module, value in ((own, 2.0), (other, 10.0)):
        nn.init.constant_(module.weight, value)
        nn.init.constant_(module.bias, value)
    ema.average(own.parameters(), other.parameters(), 0.75)
    assert own.weight.item() == own.bias.item() == 4.0
    assert [ema.rate(t, 0.999) for t in (1, 3)] == [0.5, 0.75]
    assert ema.rate(10**6, 0.999) == 0.999


def test_running_statistics_are_copied() -> None:
    own, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    other(torch.randn(4, 2))
    ema.copy_buffers(own, other)
    assert torch.equal(own.running_mean, other.running_mean)
    assert own.num_batches_tracked == 1


def test_nce_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    positive, negative, count = rng.normal(size=3), rng.normal(size=(3, 5)), 100
    z = count * np.exp(np.concatenate([positive[:, None], negative], 1)).mean()
    loss = 0.0
    for v in range(3):
        noise = 5 * (1 / count)  # m P_n
        p = math.exp(positive[v]) / z
        loss -= math.log(p / (p + noise))
        for k in range(5):
            q = math.exp(negative[v, k]) / z
            loss -= math.log(1 - q / (q + noise))
    tensors = torch.from_numpy(positive), torch.from_numpy(negative)
    assert float(estimate_constant(*tensors, count)) == pytest.approx(z, rel=1e-6)
    assert float(nce_loss(*tensors, torch.tensor(z), count)) == pytest.approx(loss / 3, rel=1e-4)


def test_memory_bank() -> None:
    bank = new_bank(1000, 12, torch.Generator().manual_seed(0))
    assert bank.abs().max() <= 0.5
    assert bank.square().sum(1).mean() == pytest.approx(1, abs=0.05)
    old, vectors = bank.clone(), torch.eye(12)[:2]
    remember(bank, torch.tensor([7, 3]), vectors, 0.25)
    expected = 0.25 * old[3] + 0.75 * vectors[1]
    assert torch.allclose(bank[3], expected / expected.norm())
    assert torch.equal(bank[0], old[0])
    index = torch.randint(1000, (2, 4))
    wanted = (bank[index] * vectors[:, None]).sum(2)
    assert torch.allclose(scores(bank, vectors, index), wanted, atol=1e-6)
    assert torch.allclose(
        scores(bank[:20], vectors, index % 20), (bank[index % 20] * vectors[:, None]).sum(2)
    )


def test_consistency_terms() -> None:
    z, other, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([2, -1, -1, 0])
    p, q = z.softmax(1), other.softmax(1)
    assert torch.allclose(supervised_term(z, labels), -(p[0, 2].log() + p[3, 0].log()) / 4)
    assert torch.allclose(squared_distance(z, other), ((p - q) ** 2).sum() / 12)
    assert supervised_term(z, torch.full((4,), -1)) == 0


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6])
def test_features_that_collapsed_are_told(value: float) -> None:
    with pytest.raises(BenchError, match="features are the same for all images"):
        whiten(torch.full((50, 6), value), 4)
    with pytest.raises(BenchError, match="features are not finite"):
        whiten(torch.full((50, 6), torch.nan), 4)
    spread = value + 1e-3 * max(1.0, value) * torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    assert whiten(spread, 4).shape == (50, 4)


def test_whitened_points_are_uncorrelated_and_of_unit_length() -> None:
    points = torch.randn(500, 6) @ torch.randn(6, 6) + 3
    white = whiten(torch.cat([points, points[:, :1]], 1), 4)  # the repeated column has no variance of its own
    assert white.shape == (500, 4)
    assert torch.allclose(white.norm(dim=1), torch.ones(500))
    assert whiten(torch.cat([points, points[:, :1]], 1), 10).shape == (500, 6)


def test_kmeans_is_as_good_as_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(6, 5, generator=generator) * 8
    points = centers[torch.arange(600) % 6] + torch.randn(600, 5, generator=generator)
    best = KMeans(6, n_init=10, random_state=0).fit(points.numpy()).inertia_
    found = [kmeans(points, 6, seed) for seed in range(4)]
    assert min(inertia for _, inertia in found) == pytest.approx(best, rel=1e-3)
    assert torch.equal(found[0][0], kmeans(points, 6, 0)[0])
    ids = found[0][0]
    means = torch.stack([points[ids == c].mean(0) for c in range(6)])
    assert found[0][1] == pytest.approx(float((points - means[ids]).square().sum()), rel=1e-2)


def test_clusters_keep_their_names() -> None:
    old = torch.arange(60) % 5
    renamed = torch.tensor([3, 0, 4, 1, 2])[old]
    renamed[0] = renamed[1]
    assert (match(renamed, old, 5) == old).float().mean() > 0.95


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("augment", ["crop_flip", "pad_crop_flip", "translate_flip", "resized_crop"])
def test_views_are_mirrored_and_padded_as_a_method_says(augment, tiled) -> None:
    shape = DataShape(side=16, color=True, count=200, classes=2, flip=True)
    ramp = torch.arange(1.0, 17.0).expand(200, 3, 16, 16) / 16  # falls only where it is mirrored

    def seen(**settings) -> Tensor:
        whole = {"augment": augment, "scale": (0.3, 1.0), "crop": 16, **settings}
        (frame,) = (Jigsaw(tile=5, channel_shift=0, **whole) if tiled else Rotation(**whole)).frames(shape)
        return frame(ramp, Draws(0, 0, torch.arange(200), 0))

    def falling(views: Tensor) -> float:
        middle = views[..., 4:8]
        return (middle[..., -1] < middle[..., 0]).all(2).all(1).float().mean().item()

    assert 0.3 < falling(seen()) < 0.7
    assert falling(seen(mirror=False)) == 0
    assert seen().min() > 0
    assert (seen(padding="zeros").min() == 0) == (augment in {"pad_crop_flip", "translate_flip"})
    with pytest.raises(BenchError, match="padding 'mirror' is not known: write reflect or zeros"):
        seen(padding="mirror")


def test_clusters_are_drawn_alike() -> None:
    ids = torch.cat([torch.zeros(90), torch.ones(9), torch.full((1,), 3.0)]).long()
    drawn = balanced(ids, 0, 0)
    counts = torch.bincount(ids[drawn], minlength=4)
    assert len(drawn) == 100
    assert counts[2] == 0
    assert (counts[[0, 1, 3]] >= 32).all()
    assert len(drawn[ids[drawn] == 0].unique()) == counts[0]  # a large cluster is drawn without replacement
    assert not torch.equal(drawn, balanced(ids, 0, 1))


@torch.no_grad()
def test_what_is_clustered_is_fc7_before_its_relu() -> None:
    images, seeded = torch.rand(8, 3, 224, 224), torch.Generator().manual_seed(0)
    encoder = AlexNet(variant="deepcluster").build(generator=seeded, width=0.0625).eval()
    clustered = unrectified(encoder, images)
    assert (clustered < 0).any()
    torch.testing.assert_close(clustered.relu(), encoder(images))
    for backbone in (AlexNetSmall(), AlexNetSmall(grid=3)):  # these do not end in a ReLU of their own
        encoder = backbone.build(generator=seeded).eval()
        assert torch.equal(unrectified(encoder, images), encoder(images))


def test_the_posterior_is_the_papers_and_not_the_lectures() -> None:
    """The lecture prints P(D=1) as a softmax over the positive and the m negatives, without a temperature."""
    rng = np.random.default_rng(1)
    count, m, tau = 50, 4, 0.1
    bank = rng.normal(size=(count, 8))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    v, drawn = bank[3] + 0.3 * rng.normal(size=8), rng.integers(count, size=m)
    v /= np.linalg.norm(v)
    z = np.exp(bank @ v / tau).sum()
    p = np.exp(bank @ v / tau) / z  # Eq. 4, Z over all images
    h = p / (p + m / count)  # Eq. 5 with P_n = 1 / N
    paper = -np.log(h[3]) - np.log(1 - h[drawn]).sum()
    scores = torch.from_numpy(bank @ v / tau)
    found = nce_loss(scores[3:4], scores[drawn][None], torch.tensor(z), count).item()
    assert found == pytest.approx(paper, rel=1e-4)
    e = np.exp(bank @ v)
    lecture = [e[i] / (e[i] + e[drawn].sum()) for i in (3, *drawn)]
    assert abs(lecture[0] - h[3]) > 0.1
    assert abs(-np.log(lecture[0]) - np.log(1 - np.array(lecture[1:])).sum() - paper) > 0.5


def test_no_cluster_stays_empty() -> None:
    generator = torch.Generator().manual_seed(0)
    crowd = 0.01 * torch.randn(990, 4, generator=generator)
    few = 5 + torch.randn(10, 4, generator=generator)
    for seed in range(4):
        ids, _ = kmeans(torch.cat([crowd, few]), 50, seed)
        assert torch.bincount(ids, minlength=50).min() > 0
