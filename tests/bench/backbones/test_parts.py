"""The shared parts: pixels in, network input out; pooling that rounds up; weights from a generator."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.backbones._parts import HALF, Lab, MaxPool, Normalize, Sobel, fresh, front, scaled
from bench.contracts import BenchError


def test_normalize_takes_bytes_and_unit_floats():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [-1.0, -0.6, 1.0]
    np.testing.assert_allclose(Normalize(HALF)(images).flatten(), expected, atol=1e-6)
    np.testing.assert_allclose(Normalize(HALF)(images.float() / 255).flatten(), expected, atol=1e-6)
    assert set(Normalize().state_dict()) == {"mean", "std"}


def test_sobel_is_the_hand_computed_gradient_of_the_mean():
    sobel = Sobel(((0.0,) * 3, (1.0,) * 3))
    ramp = torch.arange(5.0).expand(1, 3, 5, 5) / 10  # rises by .1 a column
    out = sobel(ramp)
    # Left minus right, weighted 1, 2, 1, over two columns: -(1 + 2 + 1) * .2; no change from row to row.
    np.testing.assert_allclose(out[0, 0, 1:-1, 1:-1], -0.8, atol=1e-6)
    np.testing.assert_allclose(out[0, 1, 1:-1, 1:-1], 0.0, atol=1e-6)
    np.testing.assert_allclose(sobel(ramp.transpose(2, 3))[0, 1, 1:-1, 1:-1], 0.8 * -1, atol=1e-6)
    filters = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    images = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    both = torch.stack([filters, filters.T])[:, None]
    expected = torch.nn.functional.conv2d(images.mean(1, keepdim=True), both, padding=1)
    torch.testing.assert_close(sobel(images), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sobel(images), expected)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        # Published CIE Lab values of the sRGB primaries under D65.
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((119, 119, 119), (50.03, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
    ],
)
def test_lab_of_known_colors(rgb, lab):
    image = torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)
    found = Lab()(image).flatten() * torch.tensor([50.0, 110.0, 110.0]) + torch.tensor([50.0, 0, 0])
    np.testing.assert_allclose(found, lab, atol=0.05)


def test_lab_parts_are_its_planes_and_its_gradient_is_finite():
    images = torch.rand(2, 3, 4, 4)
    whole = Lab()(images)
    assert torch.equal(Lab("L")(images), whole[:, :1])
    assert torch.equal(Lab("ab")(images), whole[:, 1:])
    black = torch.zeros(1, 3, 2, 2).requires_grad_()
    Lab()(black).sum().backward()
    assert black.grad is not None
    assert black.grad.isfinite().all()
    with pytest.raises(BenchError, match="part of Lab"):
        Lab("rgb")


def test_pool_rounds_up_and_passes_single_pixels():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert MaxPool()(maps).flatten().tolist() == [10.0, 11.0, 14.0, 15.0]
    assert MaxPool()(maps[..., :1, :1]).shape == (1, 1, 1, 1)
    assert MaxPool(2)(maps).flatten().tolist() == [5.0, 7.0, 13.0, 15.0]


def test_scaled_rounds_to_multiples_and_leaves_one_alone():
    assert scaled((33, 96), 1.0, 2) == (33, 96)
    assert scaled((33, 96), 0.5, 2) == (16, 48)
    assert scaled((3,), 0.01, 2) == (2,)


def test_fresh_draws_from_its_generator_and_counts_on_meta():
    made = fresh(lambda: nn.Linear(1000, 10), torch.Generator().manual_seed(0))
    assert abs(made.weight.std().item() - (2 / 1000) ** 0.5) < 0.002
    assert not made.bias.any()
    with torch.device("meta"):
        assert fresh(lambda: nn.Linear(3, 2), torch.Generator()).weight.is_meta


def test_front_prefers_what_is_given():
    given = nn.Identity()
    assert front(given, 5, Normalize) == (given, 5)
    default, channels = front(None, 3, Sobel, 2)
    assert isinstance(default, Sobel)
    assert channels == 2
