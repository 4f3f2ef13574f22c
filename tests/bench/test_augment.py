"""Each piece against torchvision or slices, and every image with a draw of its own."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from bench.augment import (
    CenterCrop,
    Chain,
    ColorJitter,
    Flip,
    Gray,
    PadCrop,
    RandomCrop,
    Resize,
    ResizedCrop,
    unit,
)
from bench.draws import Draws


class Given:
    """Draws that are what the test says, call by call, the same for every image."""

    def __init__(self, count, *values):
        self.count, self.values = count, list(values)

    def uniform(self, *, low=0.0, high=1.0):
        return torch.full((self.count,), float(self.values.pop(0)))

    def integers(self, high):
        value = self.values.pop(0)
        assert 0 <= value < high
        return torch.full((self.count,), value)

    def coin(self, probability):
        return torch.full((self.count,), bool(self.values.pop(0)))


@pytest.fixture
def images():
    """Smooth and colorful, uint8 (6, 3, 12, 12)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 4, 4, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, size=(12, 12), mode="bilinear").to(torch.uint8)


def draws(count=6, seed=0, epoch=0):
    return Draws(seed, epoch, torch.arange(count))


CHAINS = {
    "crop": RandomCrop(8),
    "pad_crop": PadCrop(2),
    "zeros": RandomCrop(12, 3, "zeros"),
    "enlarging": RandomCrop(20),
    "resized": ResizedCrop(9),
    "flip": Flip(),
    "gray": Gray(0.5),
    "color": ColorJitter(),
    "all": Chain((ResizedCrop(10), Flip(), ColorJitter(0.8, 0.8, 0.8, 0.2), Gray())),
}


@pytest.mark.parametrize("name", CHAINS)
def test_an_images_view_does_not_depend_on_its_batch(name, images):
    together = CHAINS[name](images, draws())
    for i in (0, 3, 5):
        index = torch.tensor([i])
        alone = CHAINS[name](images[index], Draws(0, 0, index))
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in CHAINS if name != "enlarging"]
)  # a square leaves no choice
def test_every_image_has_a_draw_of_its_own_and_every_epoch_others(name, images):
    same = images[:1].expand(40, -1, -1, -1)
    seen = CHAINS[name](same, draws(40))
    kinds = len(torch.unique(seen.reshape(40, -1), dim=0))
    assert kinds == 2 if name in {"flip", "gray"} else kinds > 10
    assert not torch.equal(seen, CHAINS[name](same, draws(40, epoch=1)))
    assert torch.equal(seen, CHAINS[name](same, draws(40)))


def test_unit_scales_bytes_and_passes_floats():
    assert unit(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert unit(torch.tensor([0.3])).item() == pytest.approx(0.3)


def test_a_crop_is_a_slice(images):
    for top, left in ((0, 0), (4, 1), (2, 4)):
        view = RandomCrop(8)(images, Given(6, top, left))
        assert torch.equal(view, images[:, :, top : top + 8, left : left + 8])
    assert view.dtype == torch.uint8


def test_a_crop_reaches_every_window(images):
    ramp = torch.arange(144, dtype=torch.uint8).view(1, 1, 12, 12).expand(2000, 3, 12, 12)
    corners = RandomCrop(10)(ramp, draws(2000))[:, 0, 0, 0]
    assert set(corners.tolist()) == {12 * top + left for top in range(3) for left in range(3)}


@pytest.mark.parametrize(("mode", "padding_mode"), [("reflect", "reflect"), ("zeros", "constant")])
def test_padding_is_torchvisions(images, mode, padding_mode):
    padded = tv.pad(images, [4] * 4, padding_mode=padding_mode)
    view = PadCrop(4, mode)(images, Given(6, 1, 7))
    assert torch.equal(view, padded[:, :, 1:13, 7:19])
    assert view.dtype == torch.uint8


def test_a_crop_of_a_smaller_image_enlarges_it(images):
    view = RandomCrop(24)(images, Given(6, 0, 0))
    wanted = tv.resize(unit(images), [24, 24], InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close(view, wanted)


@pytest.mark.parametrize("size", [(12, 12), (12, 20), (31, 17)])
def test_resize_is_torchvisions(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    shorter = Resize(8)(images, draws(2))
    assert min(shorter.shape[-2:]) == 8
    wanted = tv.resize(images, list(shorter.shape[-2:]), InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close(shorter, wanted)
    assert abs(max(shorter.shape[-2:]) - max(size) * 8 / min(size)) <= 0.5
    exact = Resize(8, exact=True)(images, draws(2))
    torch.testing.assert_close(exact, tv.resize(images, [8, 8], InterpolationMode.BILINEAR, antialias=True))


def test_resize_to_the_same_size_changes_nothing(images):
    assert Resize(12)(images, draws()) is images


def test_center_crop_is_torchvisions(images):
    for side in (12, 8, 6):
        assert torch.equal(CenterCrop(side)(images, draws()), tv.center_crop(images, [side, side]))


def test_a_resized_crop_of_the_whole_image_is_the_image(images):
    view = ResizedCrop(12, scale=(1.0, 1.0), ratio=(1.0, 1.0))(images, draws())
    torch.testing.assert_close(view, unit(images), rtol=0, atol=1e-5)


def test_a_resized_crop_is_a_resized_slice(images):
    # A quarter of the area at (0.5, 0): the lower left window of 6 x 6, enlarged twofold without antialiasing.
    view = ResizedCrop(12)(images, Given(6, 0.25, 0.0, 0.0, 1.0))
    wanted = tv.resize(unit(images)[:, :, 6:, :6], [12, 12], InterpolationMode.BILINEAR, antialias=False)
    inner = (
        slice(None),
        slice(None),
        slice(1, -1),
        slice(1, -1),
    )  # a slice knows no pixels beyond its border
    torch.testing.assert_close(view[inner], wanted[inner], rtol=0, atol=1e-5)


def test_a_resized_crop_has_the_low_pass_of_the_test_view():
    rows = torch.arange(672)
    board = ((rows[:, None] + rows) % 2 * 255).to(torch.uint8).expand(2, 3, 672, 672)
    for part in (board, board[:1]):
        crop = ResizedCrop(224, scale=(1.0, 1.0), ratio=(1.0, 1.0))(part, draws(len(part)))
        assert crop.std() < 0.01
        torch.testing.assert_close(crop, Resize(224)(part, draws(len(part))), rtol=0, atol=1e-4)


def test_a_shrunk_window_is_torchvisions():
    images = torch.randint(
        0, 256, (5, 3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    # A quarter of the area at (1, 0.5), of aspect 1: 52 x 52 pixels from row 19 and column 68 on.
    given = Given(5, 0.25, 0.0, 1.0, 0.5)
    wanted = tv.resized_crop(
        unit(images), 19, 68, 52, 52, [40, 40], InterpolationMode.BILINEAR, antialias=True
    )
    torch.testing.assert_close(ResizedCrop(40)(images, given), wanted, rtol=0, atol=1e-5)
    alone = ResizedCrop(40)(images[:1], Given(1, 0.25, 0.0, 1.0, 0.5))
    torch.testing.assert_close(alone, wanted[:1], rtol=0, atol=1e-5)


def test_resized_crops_cover_the_area_and_aspect_that_were_asked():
    side = 64
    ys, xs = torch.meshgrid(*[torch.arange(side) / side] * 2, indexing="ij")
    images = torch.stack([ys, xs, xs]).expand(3000, 3, side, side)
    view = ResizedCrop(16, scale=(0.1, 0.5))(images, draws(3000))
    height = (view[:, 0, -1, 8] - view[:, 0, 0, 8]) * 16 / 15
    width = (view[:, 1, 8, -1] - view[:, 1, 8, 0]) * 16 / 15
    area, aspect = height * width, torch.log(width / height)
    assert 0.09 < area.min() < 0.13
    assert 0.47 < area.max() < 0.53
    assert area.mean() == pytest.approx(0.3, abs=0.01)
    assert aspect.mean() == pytest.approx(0, abs=0.02)
    assert aspect.abs().max() < math.log(4 / 3) + 0.06


def test_flip_mirrors_about_half_of_the_images(images):
    assert torch.equal(Flip()(images, Given(6, True)), tv.hflip(images))
    assert torch.equal(Flip()(images, Given(6, False)), images)
    ramp = torch.arange(4).expand(4000, 3, 4, 4)
    flipped = (Flip()(ramp, draws(4000))[:, 0, 0, 0] == 3).float().mean()
    assert flipped == pytest.approx(0.5, abs=0.03)


def test_gray_is_torchvisions_for_the_images_that_are_chosen(images):
    gray = Gray(1.0)(images, draws())
    torch.testing.assert_close(gray, tv.rgb_to_grayscale(unit(images), 3), rtol=0, atol=1e-3)
    torch.testing.assert_close(Gray(0.0)(images, draws()), unit(images))
    share = (
        (Gray(0.2)(images[:1].expand(3000, -1, -1, -1), draws(3000)).std(1).amax((1, 2)) < 1e-6)
        .float()
        .mean()
    )
    assert share == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("factors", "wanted"),
    [
        ((1.3, 1, 1), lambda x: tv.adjust_brightness(x, 1.3)),
        ((1, 0.6, 1), lambda x: tv.adjust_contrast(x, 0.6)),
        ((1, 1, 1.4), lambda x: tv.adjust_saturation(x, 1.4)),
        (
            (1.1, 0.8, 0.5),
            lambda x: tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(x, 1.1), 0.8), 0.5),
        ),
    ],
    ids=["brightness", "contrast", "saturation", "all"],
)
def test_color_jitter_is_torchvisions_where_nothing_is_clipped(images, factors, wanted):
    calm = unit(images) * 0.3 + 0.35
    view = ColorJitter()(calm, Given(6, *factors, 0.0))
    torch.testing.assert_close(view, wanted(calm), rtol=0, atol=2e-3)


def test_color_jitter_stays_in_range(images):
    view = ColorJitter(1.0, 1.0, 1.0, 0.5)(images[:1].expand(200, -1, -1, -1), draws(200))
    assert view.min() == 0
    assert view.max() == 1


def test_color_jitter_of_no_strength_changes_nothing(images):
    torch.testing.assert_close(ColorJitter(0, 0, 0, 0)(images, draws()), unit(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("turns", [0.0, 1.0, -1.0])
def test_a_full_turn_of_the_hue_is_no_turn(turns):
    turn = ColorJitter._hue(torch.tensor([turns]))[0]
    torch.testing.assert_close(turn, torch.eye(3), rtol=0, atol=1e-5)


def test_hue_keeps_gray_and_luma_and_moves_red_towards_green():
    third = ColorJitter._hue(torch.tensor([1 / 3, -1 / 3]))
    luma = torch.tensor([0.299, 0.587, 0.114])
    for matrix in third:
        torch.testing.assert_close(matrix @ torch.ones(3), torch.ones(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(luma @ matrix, luma, rtol=0, atol=1e-5)
    torch.testing.assert_close(third[0] @ third[1], torch.eye(3), rtol=0, atol=1e-5)
    red = torch.tensor([1.0, 0, 0])
    turned = [(m @ red).argmax().item() for m in third]
    assert sorted(turned) == [1, 2]
