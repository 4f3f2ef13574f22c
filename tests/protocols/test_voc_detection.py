"""Where boxes and regions lie, who teaches, and that both detectors learn and resume."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from bench import regions
from bench.backbones.alexnet import AlexNet
from bench.backbones.alexnet_small import AlexNetSmall
from bench.contracts import BenchError, Measurement, Picture, Samples, Target
from bench.data.scenes import Scenes
from bench.data.sources import Streamed
from protocols import _proposals
from protocols._dense import Below
from protocols._rcnn import Heads, Pool, Rcnn, region_head
from protocols.voc_detection import VocDetection, _placed, _Training


class Listed:
    """Images of any size, in memory: read one by one, as files are."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def read(self, i):
        return self.images[i]


def rectangles(name, count, seed, sizes=((24, 24),)):
    """One bright rectangle an image, red (class 0) or green (class 1); every sixth is difficult."""
    generator = torch.Generator().manual_seed(seed)
    images, boxes = [], []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        image = torch.randint(0, 60, (3, height, width), generator=generator)
        w, h = (int(torch.randint(8, 13, (), generator=generator)) for _ in range(2))
        x, y = (int(torch.randint(0, s - 12, (), generator=generator)) for s in (width, height))
        image[i % 2, y : y + h, x : x + w] += 190
        images.append(image.to(torch.uint8))
        box = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32)
        boxes.append({"boxes": box, "labels": torch.tensor([i % 2]), "difficult": torch.tensor([i % 6 == 5])})
    side = sizes[0][0] if len(set(sizes)) == 1 else None
    return Samples(name, Streamed(Listed(images), workers=0, side=side), boxes=boxes)


def target(sizes=((24, 24),)):
    return Target(rectangles("a", 24, 1, sizes), rectangles("b", 0, 2), rectangles("c", 10, 3, sizes), 2)


SMALL = VocDetection(
    proposals="windows",
    freeze="",
    hidden=32,
    roi_size=3,
    steps=60,
    images=4,
    rois=32,
    lr=0.02,
    sides=(0,),
    test_side=0,
    most=150,
    anchors=(8, 12),
    pictures=1,
)


def values(found):
    return {(m.metric, m.split): m.value for m in found if isinstance(m, Measurement)}


@pytest.mark.parametrize("turn", [False, True])
def test_boxes_go_where_their_image_goes(turn):
    image = torch.zeros(3, 30, 60, dtype=torch.uint8)
    image[:, 10:20, 6:24] = 255
    out, place = _placed(image, 60, 90, turn)
    assert out.shape == (3, 45, 90)  # the longer side is bounded: a scale of 1.5
    left, top, right, bottom = place(torch.tensor([[6.0, 10, 24, 20]]))[0].int().tolist()
    inside = out[0, top:bottom, left:right]
    assert inside[1:-1, 1:-1].min() > 0.99
    assert out.sum() / 3 == pytest.approx(inside.numel(), rel=0.02)
    if not turn:
        assert place.back(place(torch.tensor([[6.0, 10, 24, 20]]))).tolist() == [[6, 10, 24, 20]]


@pytest.mark.parametrize("kind", ["align", "pool"])
def test_regions_are_read_where_their_pixels_lie(kind):
    """The maps hold the pixel at which each cell of the real net is centered: a region must see its own."""
    encoder = AlexNet(top=False).build(generator=torch.Generator().manual_seed(0), width=0.05)
    below = Below(encoder, "", "", settled=True)
    cells = below(below.input(torch.zeros(1, 3, 400, 400))).shape[-1]
    x = below.first + below.stride * torch.arange(cells, dtype=torch.float32)
    maps = x.expand(1, 1, cells, cells).contiguous()
    pool = Pool(kind, 4, below.stride, below.first)
    box = torch.tensor([[100.0, 100, 260, 260]])
    seen = pool({"0": maps}, [box], [(400, 400)])[0, 0, 0]
    if kind == "align":  # the middles of the four bins
        torch.testing.assert_close(seen, torch.tensor([120.0, 160, 200, 240]) - 0.5, rtol=0, atol=0.1)
    else:  # the highest of each bin, to within a cell
        assert ((seen - torch.tensor([140.0, 180, 220, 260])).abs() <= below.stride).all()


def test_what_overlaps_too_little_is_no_background():
    heads = Heads(None, None, None, 0.5, 0.5, 64, 0.25, None, 0.0, 0.3, 100)
    heads.lowest = 0.1
    truth = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 4], [0, 0, 1, 5], [50, 50, 60, 60]])
    _, labels = heads.assign_targets_to_proposals([boxes], [truth], [torch.tensor([7])])
    assert labels[0].tolist() == [7, 0, -1, -1]


def test_difficult_objects_teach_nothing(model, make_run):
    training = _Training(SMALL, model.encoder, target(), make_run())
    assert not set(training.rows.tolist()) & {5, 11, 17, 23}
    assert len(training.rows) == 20
    truth = training.truth[0]
    both = {k: torch.cat([v, v]) for k, v in truth.items()}
    both["difficult"] = torch.tensor([True, False])
    training.truth[0] = both
    assert len(training._taught(0, _placed(torch.zeros(3, 24, 24), 0, 0, False)[1])["labels"]) == 1


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """Renders scenes of up to four objects."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    return lambda side, count: Scenes(side=side, train=count, objects=4).load("train", tmp_path)


def overlaps(samples, boxes):
    """Of each object that is not difficult, the most (IoU) with a box of its image."""
    best = [
        box_iou(truth["boxes"][~truth["difficult"]], b).amax(1)
        for truth, b in zip(samples.boxes, boxes, strict=True)
    ]
    return torch.cat(best)


def opencv():
    pytest.importorskip("cv2", reason="OpenCV is missing: pip install opencv-contrib-python-headless")


def test_windows_find_most_objects_of_scenes(scenes, make_run):
    samples = scenes(64, 60)
    boxes = _proposals.windows(samples, make_run())
    assert {len(b) for b in boxes} == {len(boxes[0])}
    assert (boxes[0] >= 0).all() and (boxes[0] <= 64 + 1e-4).all()
    assert (overlaps(samples, boxes) >= 0.5).float().mean() > 0.9


def test_selective_search_follows_the_objects_with_a_tenth_of_the_windows(scenes, make_run):
    opencv()
    samples, run = scenes(128, 30), make_run()
    found, fixed = _proposals.selective_search(samples, run), _proposals.windows(samples, run)
    for boxes in found:
        left, top, right, bottom = boxes.unbind(1)
        assert ((left >= 0) & (left + 4 <= right) & (right <= 128)).all()
        assert ((top >= 0) & (top + 4 <= bottom) & (bottom <= 128)).all()
        assert len(boxes.unique(dim=0)) == len(boxes)
    assert sum(map(len, found)) < sum(map(len, fixed)) / 10
    ours, theirs = overlaps(samples, found), overlaps(samples, fixed)
    assert (ours >= 0.5).float().mean() > 0.95
    # Windows come in steps, segments end where objects end: more objects are met closely. As many windows miss most.
    assert (ours >= 0.8).sum() > 1.5 * (theirs >= 0.8).sum()
    few = [boxes[: len(b)] for boxes, b in zip(fixed, found, strict=True)]
    assert (overlaps(samples, few) >= 0.5).float().mean() < 0.8


def test_selective_search_is_the_same_whatever_was_searched_before(scenes, make_run):
    opencv()
    samples = scenes(128, 4)
    first = _proposals.selective_search(samples, make_run())
    again = _proposals.selective_search(samples, make_run())  # with a cache of its own
    assert [b.tolist() for b in again] == [b.tolist() for b in first]
    _, search = regions.selective_search()
    image = samples.images.pixels[3]
    assert search(image).tolist() == first[3].tolist()
    # The first few are some of every size, as whoever takes ``most`` of them needs.
    sizes = (first[3][:, 2:] - first[3][:, :2]).prod(1)
    half = len(sizes) // 2
    assert 0.5 < sizes[:half].median() / sizes[half:].median() < 2


def test_what_judges_regions_is_the_encoders_as_far_as_it_has_it():
    generator = torch.Generator().manual_seed(0)
    encoder = AlexNet().build(generator=generator, width=0.03125)
    below = Below(encoder, "", "conv1", settled=True)
    head, width = region_head(encoder, below, Rcnn(), generator)
    assert width == encoder.dim
    maps = torch.rand(2, below.channels, 6, 6)
    torch.testing.assert_close(head.eval()(maps), encoder.eval().top(maps))
    # Above a lower layer, the trunk's rest with its weights; without fully connected layers, two new ones.
    small = AlexNetSmall().build(generator=generator)
    inner = Below(small, "conv3", "conv1", settled=True)
    head, width = region_head(small, inner, Rcnn(), generator)
    maps = torch.rand(2, inner.channels, 6, 6)
    expected = small.eval().trunk[small_index(small, "conv3") + 1 :](maps).mean((2, 3))
    torch.testing.assert_close(head.eval()(maps), expected)
    head, width = region_head(small, Below(small, "", "", settled=True), Rcnn(hidden=8), generator)
    assert head(torch.rand(2, 64, 6, 6)).shape == (2, width) == (2, 8)


def small_index(encoder, layer):
    return [name for name, _ in encoder.trunk.named_children()].index(layer)


@pytest.mark.slow
@pytest.mark.parametrize("proposals", ["windows", "rpn"])
def test_it_learns_on_images_of_many_sizes(model, make_run, proposals):
    sizes = ((24, 24), (24, 30), (28, 24))
    protocol = replace(SMALL, proposals=proposals, steps=120, pool="align", most=400, background=(0.0, 0.5))
    found = list(protocol.evaluate(model, target(sizes), make_run()))
    result = values(found)
    assert set(result) == {(name, "test") for name in ("mAP", "ap_11pt", "ap_envelope")}
    assert result["mAP", "test"] == result["ap_11pt", "test"] > 60
    assert [p.image.shape for p in found if isinstance(p, Picture)] == [(3, 384, 384)]


def test_pictures_name_the_classes(model, make_run):
    named = replace(target(), class_names=("red", "green"))
    made = []
    for one in (target(), named):
        found = replace(SMALL, steps=1, most=20).evaluate(model, one, make_run())
        made += [p.image for p in found if isinstance(p, Picture)]
    assert (made[0] != made[1]).any()


@pytest.mark.parametrize("proposals", ["windows", "rpn"])
def test_an_interrupted_run_ends_with_the_same_numbers(model, make_run, killed, proposals):
    protocol = replace(SMALL, proposals=proposals, steps=12, most=60)
    undisturbed = values(protocol.evaluate(model, target(), make_run()))
    run = make_run(kill_at=7)
    with pytest.raises(killed):
        list(protocol.evaluate(model, target(), run))
    assert values(protocol.evaluate(model, target(), run)) == undisturbed


def test_proposals_from_a_file_come_with_the_boxes(model, make_run):
    bare = target()
    with pytest.raises(BenchError, match="a comes without proposals; name a file"):
        list(replace(SMALL, proposals="file").evaluate(model, bare, make_run()))

    def with_proposals(samples):
        boxes = [{**b, "proposals": b["boxes"] + torch.tensor([1.0, 0, 1, 0])} for b in samples.boxes]
        return replace(samples, boxes=boxes)

    told = Target(with_proposals(bare.train), bare.validation, with_proposals(bare.test), 2)
    protocol = replace(SMALL, proposals="file", steps=40)
    assert values(protocol.evaluate(model, told, make_run()))["mAP", "test"] > 80


def test_without_opencv_one_line_says_what_to_do(model, make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        BenchError, match=r"pip install opencv-contrib-python-headless \(the extra voc\); or name a"
    ):
        list(replace(SMALL, proposals="selective_search").evaluate(model, target(), make_run()))


def test_selective_search_is_kept(make_run, monkeypatch):
    calls = []

    def search(image):
        calls.append(tuple(image.shape))
        return torch.tensor([[0.0, 0, 5, 5], [1, 1, 9, float(len(calls))]])

    monkeypatch.setattr(regions, "selective_search", lambda: ("1.0", search))
    samples, run = rectangles("a", 3, 1, ((24, 24), (24, 30))), make_run()
    first = _proposals.selective_search(samples, run)
    again = _proposals.selective_search(samples, run)
    assert calls == [(3, 24, 24), (3, 24, 30), (3, 24, 24)]
    assert [b.tolist() for b in first] == [b.tolist() for b in again]
    assert first[2].tolist() == [[0, 0, 5, 5], [1, 1, 9, 3]]
    monkeypatch.setattr(regions, "selective_search", lambda: ("2.0", search))
    assert _proposals.selective_search(samples, run)[0].tolist() == [[0, 0, 5, 5], [1, 1, 9, 4]]


KILLED = """
import os, signal, sys, types
from pathlib import Path
import torch
from bench import regions
from bench.cache import FileCache
from bench.contracts import Samples
from bench.data.sources import Resident
from protocols import _proposals

limit, searched = int(sys.argv[2]), 0

def search(image):
    global searched
    if searched == limit:
        os.kill(os.getpid(), signal.SIGKILL)
    searched += 1
    return torch.full((searched % 2, 4), float(image[0, 0, 0]))

regions.selective_search = lambda: ("1.0", search)
_proposals.SLICE_SECONDS = 0.0
pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 8, 8).contiguous()
run = types.SimpleNamespace(cache=FileCache(Path(sys.argv[1])))
found = _proposals.selective_search(Samples("ten", Resident(pixels)), run)
print(searched, [len(boxes) for boxes in found])
"""


@pytest.mark.slow
def test_a_killed_selective_search_goes_on_where_it_was(tmp_path):
    def started(limit):
        line = [sys.executable, "-c", KILLED, str(tmp_path), str(limit)]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    assert started(6).returncode == -signal.SIGKILL
    assert (
        started(-1).stdout == f"4 {[1, 0, 1, 0, 1, 0, 1, 0, 1, 0]}\n"
    )  # six were kept, with and without boxes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"proposals": "edge_boxes"},
            r"proposals is 'edge_boxes'; write one of selective_search, file, windows, rpn",
        ),
        ({"ap": "map"}, "ap is 'map'; write one of ap_11pt, ap_envelope"),
        ({"pool": "crop"}, "pool is 'crop'; write one of pool, align"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(BenchError, match=message):
        VocDetection(**settings)
