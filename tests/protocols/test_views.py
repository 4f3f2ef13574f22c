"""The views of evaluations: what is cut out of an image, and what is drawn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.contracts import BenchError, Draws
from bench.data.sources import Resident
from protocols._views import AUGMENTS, center_view, random_view

COUNT = 64
WIDE = torch.rand(COUNT, 3, 30, 60, generator=torch.Generator().manual_seed(0))


def seen(view, images=WIDE, epoch=0):
    return view(images, Draws(0, epoch, torch.arange(len(images)), 0))


def source(side=32):
    pixels = torch.randint(256, (COUNT, 3, side, side), generator=torch.Generator().manual_seed(1))
    return Resident(pixels.to(torch.uint8))


def test_zhangs_images_are_squares_of_256_and_others_keep_their_aspect():
    square = F.interpolate(WIDE, [256, 256], mode="bilinear", antialias=True)
    torch.testing.assert_close(seen(center_view(227, 256)), square[..., 14:241, 14:241])
    kept = F.interpolate(WIDE, [256, 512], mode="bilinear", antialias=True)
    torch.testing.assert_close(seen(center_view(224)), kept[..., 16:240, 144:368])
    assert seen(center_view(0)) is WIDE


@pytest.mark.parametrize("augment", AUGMENTS)
def test_what_is_drawn(augment):
    view = random_view(source(), augment, 28, 0, flip=True)
    images = source().pixels
    one, other = seen(view, images), seen(view, images, epoch=1)
    assert one.shape == (COUNT, 3, 28, 28)
    changed = [not torch.equal(a, b) for a, b in zip(one, other, strict=True)]
    part = sum(changed) / COUNT
    assert {"none": part == 0, "flip": 0.25 < part < 0.75}.get(augment, part > 0.7)
    if augment == "flip":
        middle = seen(center_view(28), images)
        assert all(torch.equal(a, m) or torch.equal(a, m.flip(-1)) for a, m in zip(one, middle, strict=True))


def test_digits_are_never_mirrored():
    images = source().pixels
    middle = seen(center_view(28), images)
    assert torch.equal(seen(random_view(source(), "flip", 28, 0, flip=False), images), middle)


def test_black_or_a_reflection_lies_around_an_image():
    white = torch.full((COUNT, 3, 8, 8), 255, dtype=torch.uint8)
    for padding, least in (("zeros", 0), ("reflect", 255)):
        view = random_view(Resident(white), "crop", 0, 4, flip=False, padding=padding)
        assert seen(view, white).min() == least


def test_images_of_varying_sizes_need_a_side():
    varying = source()
    varying.side = None
    with pytest.raises(BenchError, match="set side, as in side = 224"):
        random_view(varying, "crop_flip", 0, 4, flip=True)
