from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from bench.augment import Chain, ColorJitter, Flip, PadCrop, RandomCrop, Resize, ResizedCrop
from bench.data.sources import Resident, Streamed, joined, subset
from bench.records import BenchError

EXACT = Chain((PadCrop(3), Flip()))
SMOOTH = Chain((ResizedCrop(12), ColorJitter()))
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Memory:
    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def read(self, i):
        return self.pixels[i]


@pytest.fixture
def pixels():
    return torch.randint(
        0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def one_batch(images, index, frames=(EXACT, SMOOTH), epoch=2):
    return next(iter(images.views([torch.tensor(index)], list(frames), 5, epoch)))


@pytest.mark.parametrize("workers", [0, 2])
def test_resident_and_streamed_give_the_same_views(pixels, workers):
    index = [4, 0, 19, 7, 4]
    expected = one_batch(Resident(pixels), index)
    found = one_batch(Streamed(Memory(pixels), workers=workers), index)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=0)


def test_the_batch_never_matters(pixels):
    whole = one_batch(Resident(pixels), list(range(20)))
    parts = [one_batch(Resident(pixels), index) for index in ([3], [9, 3, 11])]
    for view in (0, 1):
        for part, row, i in ((0, 0, 3), (1, 1, 3), (1, 0, 9), (1, 2, 11)):
            torch.testing.assert_close(parts[part][view][row], whole[view][i], atol=1e-5, rtol=0)


def test_views_and_epochs_draw_differently(pixels):
    first, second = one_batch(Resident(pixels), range(20), (EXACT, EXACT))
    later = one_batch(Resident(pixels), range(20), (EXACT,), epoch=3)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_needs_no_resampling_stands_beside_others(tmp_path, workers):
    images = Streamed(save(tmp_path, [(16, 16), (32, 32)]), workers=workers)
    first, second = one_batch(images, [0, 1], (Chain((Resize(16),)),))[0]
    assert first.max() <= 1
    assert first.mean() == pytest.approx(float(second.mean()), abs=0.1)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_global_random_state_is_used(pixels, workers):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - the state that must not change
    one_batch(Resident(pixels), [1, 2])
    one_batch(Streamed(Memory(pixels), workers=workers), [1, 2])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002 - the state that must not change
    assert random.getstate() == before[2]


def save(folder, sizes):
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(sizes):
        paths.append(folder / f"image é {number}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(paths[-1])
    return paths


def test_files_of_varying_size_are_read_and_cropped(tmp_path):
    paths = save(tmp_path, [(20, 30), (16, 16), (40, 17)])
    views = one_batch(Streamed(paths, workers=0), [2, 0, 1], (Chain((Resize(16), RandomCrop(12))),))
    assert views[0].shape == (3, 3, 12, 12)
    raw = one_batch(Streamed(paths, workers=0), [1], (lambda x, _: x,))[0][0]
    assert np.array_equal(raw.permute(1, 2, 0).numpy(), np.asarray(Image.open(paths[1])))


def test_views_of_different_sizes_are_told(tmp_path):
    images = Streamed(save(tmp_path, [(20, 30), (16, 16)]), workers=0)
    with pytest.raises(BenchError, match="crop them to one size"):
        one_batch(images, [0, 1], (lambda x, _: x,))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", ["missing", "truncated", "garbage"])
def test_a_bad_image_is_named(tmp_path, workers, harm):
    paths = save(tmp_path, [(20, 20), (20, 20)])
    if harm == "missing":
        paths[1].unlink()
    else:
        paths[1].write_bytes(paths[1].read_bytes()[:300] if harm == "truncated" else b"no image")
    with pytest.raises(BenchError, match=r"image é 1\.png") as caught:
        one_batch(Streamed(paths, workers=workers), [0, 1], (lambda x, _: x,))
    assert "\n" not in str(caught.value)


def test_subset_and_joined_renumber(pixels):
    some = [5, 2, 17]
    resident, streamed = Resident(pixels), Streamed(Memory(pixels), workers=0)
    plain = (lambda x, _: x,)
    for images in (resident, streamed):
        picked = subset(images, torch.tensor(some))
        assert torch.equal(one_batch(picked, [0, 1, 2], plain)[0], pixels[some])
        both = joined(picked, subset(images, [9]))
        assert len(both) == 4
        assert torch.equal(one_batch(both, [3, 1], plain)[0], pixels[[9, 2]])
    with pytest.raises(BenchError, match="cannot be joined"):
        joined(resident, streamed)


def test_only_bytes_of_three_channels_are_images():
    with pytest.raises(BenchError, match="uint8"):
        Resident(torch.zeros(2, 3, 4, 4))
    assert Resident(torch.zeros(2, 3, 4, 6, dtype=torch.uint8)).side is None
