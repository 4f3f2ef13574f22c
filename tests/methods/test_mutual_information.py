"""Bounds on mutual information where the truth is known: pairs of Gaussians with correlation rho."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor, nn

from methods.parts.critics import Concat, Dot, Lift, global_critic
from methods.parts.mutual_information import (
    donsker_varadhan,
    infonce,
    jensen_shannon,
    objective,
    split,
)

PAIRS, CANDIDATES = 100_000, 512


def truth(rho: float) -> float:
    return -0.5 * math.log(1 - rho**2)


def divergence(rho: float) -> float:
    """Twice the Jensen-Shannon divergence of joint and product, in nats, on a grid."""
    axis = np.linspace(-9, 9, 3001)
    x, y = np.meshgrid(axis, axis)
    product = np.exp(-(x**2 + y**2) / 2) / (2 * np.pi)
    joint = np.exp(-(x**2 - 2 * rho * x * y + y**2) / (2 * (1 - rho**2))) / (
        2 * np.pi * math.sqrt(1 - rho**2)
    )
    middle = (joint + product) / 2
    inside = joint * np.log(np.maximum(joint, 1e-300) / middle) + product * np.log(product / middle)
    return float(inside.sum() * (axis[1] - axis[0]) ** 2)


def fresh(count: int, rho: float, seed: int) -> tuple[Tensor, Tensor]:
    x, noise = torch.randn(2, count, generator=torch.Generator().manual_seed(seed))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


class Known:
    """The log density ratio."""

    def __init__(self, rho: float) -> None:
        self.rho = rho

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        rest = 1 - self.rho**2
        return (
            self.rho * x * y / rest - self.rho**2 * (x.square() + y.square()) / (2 * rest) + truth(self.rho)
        )


class Learned(nn.Module):
    """A small network on x, y and their products, trained on fresh pairs with one of the objectives."""

    def __init__(self, name: str, rho: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
        self.linear = nn.Linear(5, 1)
        optimizer = torch.optim.Adam(self.parameters(), 0.02)
        steps = 500
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            x, y = fresh(128, rho, 1000 + step)
            loss = -objective(name, self(x[:, None], y[None, :]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = torch.broadcast_tensors(x, y)
        seen = torch.stack([x, y, x * y, x * x, y * y], -1)
        return (self.net(seen) + self.linear(seen))[..., 0]


def by_donsker_varadhan(critic, rho):
    """The bound on 100,000 fresh pairs of each kind, and its standard error by the delta method."""
    joint = critic(*fresh(PAIRS, rho, 1))
    x, y = fresh(PAIRS, 0.0, 2)
    product = critic(x, y)
    weights = product.double().exp()
    variance = joint.double().var() / PAIRS + weights.var() / weights.mean() ** 2 / PAIRS
    return donsker_varadhan(joint, product).item(), variance.sqrt().item()


def by_infonce(critic, rho):
    """Its mean over 196 batches of 512 pairs, and its standard error over the batches."""
    found = []
    for batch in range(-(-PAIRS // CANDIDATES)):
        x, y = fresh(CANDIDATES, rho, 10 + batch)
        found.append(infonce(critic(x[:, None], y[None, :])).item())
    return np.mean(found), np.std(found, ddof=1) / math.sqrt(len(found))


def by_jensen_shannon(critic, rho):
    joint, product = critic(*fresh(PAIRS, rho, 1)), critic(*fresh(PAIRS, 0.0, 2))
    return jensen_shannon(joint, product).item()


def judged(kind, critic, rho):
    told = f"\n{type(critic).__name__.lower()} critic, rho {rho}, {kind}: "
    if kind == "jsd":
        value, wanted = by_jensen_shannon(critic, rho), divergence(rho)
        print(f"{told}{value:.4f}, integrated {wanted:.4f}")
        assert value == pytest.approx(wanted, rel=0.05)
        return
    value, error = (by_donsker_varadhan if kind == "dv" else by_infonce)(critic, rho)
    print(f"{told}{value:.4f} +- {error:.4f}, truth {truth(rho):.4f}")
    assert value <= truth(rho) + 3 * error
    assert value >= 0.85 * truth(rho)


@pytest.mark.parametrize("rho", [0.5, 0.9])
@pytest.mark.parametrize("kind", ["dv", "jsd", "infonce"])
def test_the_known_density_ratio_attains_each_bound(kind, rho) -> None:
    judged(kind, Known(rho), rho)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.5, 0.9])
@pytest.mark.parametrize("kind", ["dv", "jsd", "infonce"])
def test_a_critic_trained_with_the_objective_attains_it(kind, rho) -> None:
    judged(kind, Learned(kind, rho), rho)


# ---- the objectives, written out ---------------------------------------------------------------


def _scores(places: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 4, places)) * 2


def test_objectives_are_the_papers() -> None:
    scores = _scores()
    count, _, places = scores.shape
    dv, jsd, nce = [], [], []
    for place in range(places):
        joint = [scores[i, i, place] for i in range(count)]
        product = [scores[i, j, place] for i in range(count) for j in range(count) if i != j]
        dv.append(np.mean(joint) - np.log(np.mean(np.exp(product))))
        # -log sigmoid(T) = softplus(-T), and the mean of two distributions is half of their sum.
        jsd.append(np.mean(np.log(2 * expit(joint))) + np.mean(np.log(2 * (1 - expit(product)))))
        for i in range(count):
            others = [scores[i, j, k] for j in range(count) if j != i for k in range(places)]
            candidates = np.exp([scores[i, i, place], *others])
            nce.append(np.log(candidates[0] / candidates.mean()))
    found = torch.from_numpy(scores)
    assert objective("dv", found).item() == pytest.approx(np.mean(dv))
    assert objective("jsd", found).item() == pytest.approx(np.mean(jsd))
    assert objective("infonce", found).item() == pytest.approx(np.mean(nce))


def test_one_place_is_a_softmax_over_the_batch() -> None:
    scores = torch.from_numpy(_scores(1)[:, :, 0])
    wanted = math.log(4) - nn.functional.cross_entropy(scores, torch.arange(4))
    assert torch.allclose(infonce(scores), wanted)


def test_a_critic_that_knows_nothing_finds_nothing() -> None:
    for name in ("dv", "jsd", "infonce"):
        assert objective(name, torch.full((5, 5, 2), 0.7 if name != "jsd" else 0.0)).item() == pytest.approx(
            0, abs=1e-6
        )


def test_large_scores_do_not_overflow() -> None:
    scores = (300 * torch.randn(6, 6, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    for name in ("dv", "jsd", "infonce"):
        (slope,) = torch.autograd.grad(objective(name, scores), scores)
        assert torch.isfinite(slope).all()


def test_pairs_are_split_by_the_diagonal() -> None:
    numbers = torch.arange(9).view(3, 3)
    joint, product = split(numbers)
    assert joint.tolist() == [0, 4, 8]
    assert product.tolist() == [1, 2, 3, 5, 6, 7]
    joint, product = split(torch.stack([numbers, -numbers], -1))
    assert joint[1].tolist() == [4, -4]
    assert product[-1].tolist() == [7, -7]


# ---- critics -----------------------------------------------------------------------------------


def test_dot_scores_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    critic = Dot(Lift(5, 7, generator), Lift(3, 7, generator)).eval()
    places, vectors = torch.randn(4, 6, 5), torch.randn(4, 3)
    scores = critic(places, vectors)
    assert scores.shape == (4, 4, 6)
    one, other = critic.vectors(vectors), critic.places(places.flatten(0, 1)).view(4, 6, 7)
    for i, j, k in ((0, 0, 0), (1, 3, 5), (3, 2, 1)):
        assert scores[i, j, k].item() == pytest.approx((one[i] * other[j, k]).sum().item(), abs=1e-4)


def test_concat_scores_what_a_layer_on_the_concatenation_would() -> None:
    critic = Concat(5, 3, 8, torch.Generator().manual_seed(0))
    places, vectors = torch.randn(4, 6, 5), torch.randn(4, 3)
    joined = nn.Linear(8, 8)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([critic.places.weight, critic.vectors.weight], 1))
        joined.bias.copy_(critic.places.bias)
    scores = critic(places, vectors)
    assert scores.shape == (4, 4, 6)
    for i, j, k in ((0, 0, 0), (1, 3, 5), (3, 2, 1)):
        wanted = critic.rest(joined(torch.cat([places[j, k], vectors[i]]))).item()
        assert scores[i, j, k].item() == pytest.approx(wanted, abs=1e-5)


def test_a_shortcut_begins_as_a_noisy_copy() -> None:
    lift = Lift(4, 6, torch.Generator().manual_seed(0))
    weight = lift.shortcut.weight.detach() - torch.eye(6, 4)
    assert weight.abs().max() <= 0.01
    assert weight.diagonal().abs().max() == 0
    assert global_critic("dot", 4, 3, 6, torch.Generator())(
        torch.randn(2, 1, 4), torch.randn(2, 3)
    ).shape == (
        2,
        2,
        1,
    )
