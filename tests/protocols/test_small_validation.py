"""Small validation sets, and the step that changes a prediction most."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.contracts import BenchError, Measurement, Picture
from protocols._adversary import worst_direction
from protocols.perturbed import Perturbed
from protocols.small_validation import SmallValidation


def _wrong(model, samples):
    model.eval()
    with torch.no_grad():
        return (model(samples.images.pixels).argmax(1) != samples.labels).numpy()


def test_small_validation_is_a_loop_over_draws(model, target, make_run):
    model.head = nn.Linear(16, 3)
    sizes, run = (7, 20), make_run()
    found = {
        (m.metric, m.split): m.value
        for m in SmallValidation(sizes=sizes, resamples=6).evaluate(model, target, run)
    }
    wrong = _wrong(model, target.validation)
    generator = make_run().generator("small_validation")
    draws = [torch.randperm(len(wrong), generator=generator).numpy() for _ in range(6)]
    for n in sizes:
        errors = [100 * np.mean([wrong[i] for i in draw[:n]]) for draw in draws]
        assert found[f"error_n{n}", "validation"] == pytest.approx(np.mean(errors))
        assert found[f"deviation_n{n}", "validation"] == pytest.approx(np.std(errors, ddof=1))
        assert found[f"deviation_n{n}", "validation"] > 0
    assert found["error", "validation"] == pytest.approx(100 * wrong.mean())
    assert found["error", "test"] == pytest.approx(100 * _wrong(model, target.test).mean())


def test_small_validation_of_all_images_has_no_deviation(model, target, make_run):
    model.head = nn.Linear(16, 3)
    n = len(target.validation)
    found = {
        (m.metric, m.split): m.value for m in SmallValidation(sizes=(n,)).evaluate(model, target, make_run())
    }
    assert found[f"deviation_n{n}", "validation"] == pytest.approx(0, abs=1e-9)
    assert found[f"error_n{n}", "validation"] == pytest.approx(found["error", "validation"])


def test_more_images_than_there_are_is_one_line(model, target, make_run):
    model.head = nn.Linear(16, 3)
    with pytest.raises(BenchError, match="asks for 5000 validation images") as caught:
        list(SmallValidation(sizes=(5, 5000)).evaluate(model, target, make_run()))
    assert "\n" not in str(caught.value)
    with pytest.raises(BenchError, match="at least 2 resamples"):
        SmallValidation(resamples=1)


@pytest.fixture
def net():
    """Ten classes of twelve numbers, float64."""
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10)).double()


def _top(net, x):
    """The first eigenvector of the exact Hessian of KL(p(x) || p(x + r)) at r = 0, of one row."""
    clean = F.softmax(net(x), 0).detach()

    def kl(r):
        return (clean * (clean.log() - F.log_softmax(net(x + r), 0))).sum()

    hessian = torch.autograd.functional.hessian(kl, torch.zeros_like(x))
    return torch.linalg.eigh(hessian).eigenvectors[:, -1]


def test_the_direction_is_the_top_eigenvector_of_the_exact_hessian(net):
    x, start = torch.randn(24, 12, dtype=torch.float64), torch.randn(24, 12, dtype=torch.float64)
    exact = torch.stack([_top(net, row) for row in x])
    cosines = {
        n: (worst_direction(net, x, start, xi=1e-5, iterations=n) * exact).sum(1).abs().median().item()
        for n in (0, 1, 10, 100)
    }
    assert cosines[100] > 0.999
    assert cosines[10] > 0.95
    assert cosines[0] < cosines[1] < cosines[100]
    moved = worst_direction(net, x, start, xi=1e-5, iterations=1)
    assert torch.allclose(moved.norm(dim=1), torch.ones(24, dtype=torch.float64))


def test_perturbed_counts_errors_after_the_step_and_shows_it(model, target, make_run):
    torch.manual_seed(0)
    model.head = nn.Linear(16, 3)
    protocol = Perturbed(epsilons=(0.5, 3.0), shown=3, images=30)
    found = list(protocol.evaluate(model, target, make_run()))
    values = {m.metric: m.value for m in found if isinstance(m, Measurement)}
    assert set(values) == {"error", "error_e0.5", "error_e3"}
    assert values["error"] == pytest.approx(100 * _wrong(model, target.test)[:30].mean())
    (picture,) = [p for p in found if isinstance(p, Picture)]
    side = target.test.images.pixels.shape[-1]
    assert picture.image.shape == (3, 5 * side, 3 * side)
    assert 0 <= picture.image.min() <= picture.image.max() <= 1


def test_the_picture_is_images_then_steps(model):
    x, d = torch.full((2, 3, 4, 4), 0.25), torch.full((2, 3, 4, 4), 0.1)
    rows = Perturbed(epsilons=(2.0,)).picture(x, d)[0, :, 0]
    assert rows.tolist() == pytest.approx([0.25] * 4 + [0.45] * 4 + [0.6] * 4)


@pytest.mark.parametrize("change", [{"epsilons": ()}, {"epsilons": (-1.0,)}, {"iterations": 0}, {"xi": 0.0}])
def test_perturbed_refuses_nonsense(change):
    with pytest.raises(BenchError, match="perturbed needs"):
        Perturbed(**change)
