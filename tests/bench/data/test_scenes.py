from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from bench.data import scenes
from bench.data._layout import CLASSES, OBJECT, WORDS, Uniforms, grounds, things, words
from bench.data._render import render_all
from bench.data.scenes import Scenes
from bench.records import BenchError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def several():
    return render_all(1, 96, 48, 4)


def test_parameters_are_pinned():
    block, grain = words(1, np.arange(40), WORDS + OBJECT, 96)
    u = Uniforms(block)
    ground, thing = grounds(u), things(u, np.arange(40), 1)
    state = hashlib.sha256(grain.tobytes())
    for values in (
        ground.tones,
        ground.fine,
        ground.pose,
        thing.center,
        thing.scale,
        thing.colors,
        thing.wiggle,
    ):
        state.update(np.ascontiguousarray(values, "<f8").tobytes())
    assert state.hexdigest()[:16] == "f34eb1f2d811fb6f"


def test_pixels_are_about_what_they_were():
    images = render_all(1, 12, 32, 1).images.double()
    expected = torch.tensor(
        [131.29, 45.99, 111.64, 150.8, 91.33, 87.41, 34.9, 144.25, 59.86, 116.52, 83.3, 91.38]
    )
    torch.testing.assert_close(images.mean((1, 2, 3)), expected.double(), atol=0.1, rtol=0)


def test_neither_chunks_nor_threads_nor_the_number_of_images_matter():
    whole = render_all(2, 50, 32, 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        other = render_all(2, 50, 32, 3, chunk=7)
    finally:
        torch.set_num_threads(threads)
    for name in ("images", "masks", "boxes", "labels", "difficult", "counts", "areas"):
        assert torch.equal(getattr(whole, name), getattr(other, name)), name
    assert torch.equal(render_all(2, 9, 32, 1).images, render_all(2, 30, 32, 1, chunk=11).images[:9])


def test_splits_show_different_images():
    assert not torch.equal(render_all(1, 4, 32, 1).images, render_all(2, 4, 32, 1).images)


def test_one_object_has_the_box_of_its_mask():
    scene = render_all(1, 60, 64, 1)
    assert scene.counts.tolist() == [1] * 60
    assert scene.labels.tolist() == [i % 12 for i in range(60)]
    for mask, box, label in zip(
        scene.masks.numpy(), scene.boxes.tolist(), scene.labels.tolist(), strict=True
    ):
        rows, columns = np.nonzero(mask)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert set(np.unique(mask)) == {0, label + 1}
    assert 0.06 < (scene.masks > 0).float().mean() < 0.2


def test_objects_lie_inside(several):
    scene = render_all(1, 120, 48, 1)
    for found, side in ((scene, 48), (several, 48)):
        assert (found.boxes[:, :2] >= 0).all()
        assert (found.boxes[:, 2:] <= side).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    center = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
    assert ((center > 2) & (center < 46)).all()


def test_several_objects_in_vocs_form(several):
    samples = scenes._samples("x", several)
    image = 0
    for image, record in enumerate(samples.boxes):
        mask = samples.masks[image]
        assert 1 <= len(record["boxes"]) <= 4
        assert set(mask.unique().tolist()) - {0} <= {c + 1 for c in record["labels"].tolist()}
        for (x0, y0, x1, y1), label in zip(
            record["boxes"].int().tolist(), record["labels"].tolist(), strict=True
        ):
            assert (mask[y0:y1, x0:x1] == label + 1).any()
        present = samples.multilabel[image]
        assert set(np.flatnonzero(present.numpy() >= 0)) == set(record["labels"].tolist())
        assert samples.labels[image] in record["labels"]
    assert image == 95
    assert (several.counts > 1).float().mean() > 0.5


def test_hidden_objects_are_difficult():
    scene = render_all(1, 400, 32, 6)
    assert 0.002 < scene.difficult.float().mean() < 0.2
    assert (scene.areas[scene.difficult].float().mean()) < scene.areas[~scene.difficult].float().mean()


def test_every_class_can_be_told_by_its_shape():
    # The mean masks of two classes overlap less than a class's own halves do.
    scene = render_all(1, 1200, 32, 1)
    halves = []
    for c in range(len(CLASSES)):
        crops = [crop(scene.masks[i], scene.boxes[i]) for i in range(c, 1200, 12)]
        halves.append((torch.stack(crops[::2]).mean(0).flatten(), torch.stack(crops[1::2]).mean(0).flatten()))
    a, b = (torch.stack(list(half)) for half in zip(*halves, strict=True))
    assert torch.cdist(a, b).argmin(1).tolist() == list(range(12))


def crop(mask, box):
    x0, y0, x1, y1 = box.int().tolist()
    part = (mask[y0:y1, x0:x1] > 0).float()[None, None]
    return torch.nn.functional.interpolate(part, (16, 16), mode="bilinear", align_corners=False)[0, 0]


def test_a_damaged_cache_file_is_rendered_again(cache, tmp_path):
    dataset = Scenes(side=16, train=30, test=10)
    first = dataset.load("test", tmp_path)
    (path,) = (cache / "scenes").iterdir()
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], b"", good[:-200] + bytes([good[-200] ^ 255]) + good[-199:]):
        path.write_bytes(bad)
        again = dataset.load("test", tmp_path)
        assert torch.equal(again.images.pixels, first.images.pixels)
        assert path.read_bytes() == good
    assert [p.name for p in (cache / "scenes").iterdir()] == [path.name]


def test_the_cache_is_read(tmp_path, monkeypatch):
    dataset = Scenes(side=16, train=30, test=10)
    first = dataset.load("train", tmp_path)
    monkeypatch.setattr(scenes, "render_all", None)
    again = dataset.load("train", tmp_path)
    assert torch.equal(again.images.pixels, first.images.pixels)
    assert torch.equal(again.boxes[3]["boxes"], first.boxes[3]["boxes"])
    assert again.name == first.name


def test_an_unwritable_cache_costs_only_time(tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("BENCH_CACHE", str(blocker))
    assert len(Scenes(side=16, train=5, test=5).load("test", tmp_path)) == 5


def test_names_tell_settings_and_splits_apart(tmp_path):
    names = {
        Scenes(side=side, train=4, test=4).load(split, tmp_path).name
        for side in (8, 16)
        for split in ("train", "test")
    }
    assert len(names) == 4


@pytest.mark.parametrize("settings", [{"side": 4}, {"objects": 0}, {"train": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(BenchError, match=f"scenes: {next(iter(settings))}"):
        Scenes(**settings)
