"""VOC's files, written here in the published form, and what is read of them."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.ops import box_iou

from bench.data import assemble
from bench.data._lazy import Lazy
from bench.data.scenes import Scenes
from bench.data.voc import VOC_CLASSES, Voc2007, Voc2012, VocScenes
from bench.planning import plan
from bench.planning.suite import load
from bench.records import Aim, BenchError, Unit

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SIZES = {"000005": (40, 30), "000007": (25, 50), "000009": (33, 33), "000012": (20, 28)}  # width, height

# As VOC2007's: a dog with a part, a person that is difficult, and a corner as VOC2012 has a few.
ANNOTATION = """<annotation>
	<folder>VOC2007</folder>
	<filename>000005.jpg</filename>
	<source><database>The VOC2007 Database</database></source>
	<size><width>40</width><height>30</height><depth>3</depth></size>
	<segmented>0</segmented>
	<object>
		<name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
		<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>
		<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>
	</object>
	<object>
		<name>person</name><pose>Left</pose><truncated>1</truncated><difficult>1</difficult>
		<bndbox><xmin>8</xmin><ymin>12.5</ymin><xmax>40</xmax><ymax>20</ymax></bndbox>
	</object>
</annotation>"""
EMPTY = "<annotation><object><name>cat</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"


def write_voc(root, year="2007", split=("000005", "000007", "000009", "000012")):
    base = root / f"VOCdevkit/VOC{year}"
    for name in (
        "JPEGImages",
        "Annotations",
        "ImageSets/Main",
        "ImageSets/Segmentation",
        "SegmentationClass",
    ):
        (base / name).mkdir(parents=True)
    for image, (width, height) in SIZES.items():
        pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(base / "JPEGImages" / f"{image}.jpg")
        (base / "Annotations" / f"{image}.xml").write_text(ANNOTATION if image == "000005" else EMPTY)
        mask = RNG.choice(np.array([0, 8, 20, 255], np.uint8), (height, width))
        painted = Image.fromarray(mask).convert("P")
        painted.putpalette([255, 0, 0] * 256)
        painted.save(base / "SegmentationClass" / f"{image}.png")
    lists = {"trainval": split[:3], "test": split[3:], "train": split[:2], "val": split[2:3]}
    for name, ids in lists.items():
        for task in ("Main", "Segmentation"):
            (base / "ImageSets" / task / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))
    for name in ("trainval", "test"):
        for label in VOC_CLASSES:
            lines = [f"{i} {presence(i, label):2d}\n" for i in lists[name]]
            (base / "ImageSets" / "Main" / f"{label}_{name}.txt").write_text("".join(lines))
    return base


def presence(image, label):
    if image == "000005":
        return {"dog": 1, "person": 0}.get(label, -1)
    return 1 if label == "cat" else -1


def raw(images, i):
    return next(images.views([torch.tensor([i])], [lambda image, _: image], 0, 0))[0][0]


def test_images_labels_and_boxes_are_the_files(tmp_path):
    base = write_voc(tmp_path)
    train = Voc2007().load("train", tmp_path)
    assert len(train) == 3 and train.labels is None and train.masks is None
    train.images.workers = 0
    with Image.open(base / "JPEGImages/000007.jpg") as image:
        assert np.array_equal(raw(train.images, 1).permute(1, 2, 0).numpy(), np.array(image))
    dog, person, cat = (VOC_CLASSES.index(name) for name in ("dog", "person", "cat"))
    expected = torch.full((3, 20), -1, dtype=torch.int8)
    expected[0, dog], expected[0, person], expected[1:, cat] = 1, 0, 1
    assert torch.equal(train.multilabel, expected)
    found = train.boxes[0]
    # Corners 1 to 20 are the first twenty pixels: edges 0 and 20.
    assert found["boxes"].tolist() == [[0, 1, 20, 30], [7, 11.5, 40, 20]]
    assert found["labels"].tolist() == [dog, person]
    assert [Voc2007.class_names[i] for i in found["labels"]] == ["dog", "person"]
    assert found["difficult"].tolist() == [False, True]
    # Without the files of the classes, the boxes say the same.
    for path in (base / "ImageSets/Main").glob("*_trainval.txt"):
        path.unlink()
    assert torch.equal(Voc2007().load("train", tmp_path).multilabel, expected)


def test_segmentation_lists_have_masks_that_are_read_when_asked_for(tmp_path):
    base = write_voc(tmp_path)
    train = Voc2007(task="segmentation").load("train", tmp_path)
    assert isinstance(train.masks, Lazy)
    for i, name in enumerate(("000005", "000007", "000009")):
        with Image.open(base / f"SegmentationClass/{name}.png") as image:
            assert np.array_equal(train.masks[i].numpy(), np.array(image))
        assert train.masks[i].shape == raw(train.images, i).shape[1:]
    part = assemble.take(train, np.array([2, 0]))
    assert torch.equal(part.masks[0], train.masks[2]) and torch.equal(part.masks[1:][0], train.masks[0])
    aim = Aim(Unit.of("voc2007"), validation=1)
    target, _ = assemble.target(aim, Voc2007(task="segmentation"), tmp_path, CPU)
    assert [len(part) for part in (target.train, target.validation, target.test)] == [2, 1, 1]
    assert len(target.train.masks) == 2


def test_sbd_lists_and_masks(tmp_path):
    base = write_voc(tmp_path, "2012")
    sbd = tmp_path / "benchmark_RELEASE/dataset"
    (sbd / "cls").mkdir(parents=True)
    masks = {}
    for image in ("000005", "000009", "000012"):
        width, height = SIZES[image]
        masks[image] = RNG.integers(0, 21, (height, width), np.uint8)
        savemat(sbd / "cls" / f"{image}.mat", {"GTcls": {"Segmentation": masks[image], "Boundaries": 0}})
    (sbd / "train.txt").write_text("000012\n000005\n")
    (sbd / "val.txt").write_text("000009\n")
    train = Voc2012(train="sbd_train").load("train", tmp_path)
    assert [train.masks[i].tolist() for i in range(2)] == [masks[i].tolist() for i in ("000012", "000005")]
    # train_aug: all of SBD and VOC's train (5, 7) without VOC's val (9); VOC's own masks come first.
    larger = Voc2012(train="train_aug").load("train", tmp_path)
    with Image.open(base / "SegmentationClass/000005.png") as image:
        assert np.array_equal(larger.masks[0].numpy(), np.array(image))
    assert [tuple(m.shape) for m in larger.masks] == [SIZES[i][::-1] for i in ("000005", "000007", "000012")]
    (base / "SegmentationClass/000012.png").unlink()
    assert larger.masks[2].tolist() == masks["000012"].tolist()
    (base / "ImageSets/Segmentation/seg11valid.txt").write_text("000009\n")
    assert len(Voc2012(test="seg11valid").load("test", tmp_path)) == 1
    # SBD's training images are in VOC's val too: nobody is judged on what it has seen.
    (sbd / "train.txt").write_text("000012\n000009\n")
    with pytest.raises(
        BenchError, match=r"1 of the 1 images of test = 'val' are in train = 'sbd_train' too: .*seg11"
    ):
        Voc2012(train="sbd_train").load("test", tmp_path)
    assert len(Voc2012(train="train").load("test", tmp_path)) == 1


DAMAGE = {
    "no list": (lambda b: (b / "ImageSets/Main/trainval.txt").unlink(), r"trainval\.txt: missing"),
    "empty list": (lambda b: (b / "ImageSets/Main/trainval.txt").write_text(""), r"trainval\.txt: empty"),
    "twice": (
        lambda b: (b / "ImageSets/Main/trainval.txt").write_text("000005\n000005\n"),
        r"'000005' is listed twice",
    ),
    "no xml": (lambda b: (b / "Annotations/000007.xml").unlink(), r"000007\.xml: missing"),
    "cut xml": (
        lambda b: (b / "Annotations/000005.xml").write_text(ANNOTATION[:300]),
        r"000005\.xml: corrupt",
    ),
    "class": (
        lambda b: (b / "Annotations/000005.xml").write_text(ANNOTATION.replace("dog", "unicorn")),
        r"no class 'unicorn'",
    ),
    "no corner": (
        lambda b: (b / "Annotations/000005.xml").write_text(ANNOTATION.replace("<xmin>1</xmin>", "")),
        r"000005\.xml: corrupt",
    ),
    "backwards": (
        lambda b: (b / "Annotations/000005.xml").write_text(ANNOTATION.replace("<xmax>20<", "<xmax>0<")),
        r"000005\.xml: corrupt \(a box of 1, 2 to 0, 30\)",
    ),
    "class file": (
        lambda b: (b / "ImageSets/Main/dog_trainval.txt").write_text("000005 1\n"),
        r"dog_trainval\.txt: truncated: it says nothing of image '000007'",
    ),
    "class value": (
        lambda b: (b / "ImageSets/Main/dog_trainval.txt").write_text("000005 2\n"),
        r"dog_trainval\.txt: corrupt: line 1 is '000005 2'",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_one_clear_line(tmp_path, case):
    harm, message = DAMAGE[case]
    harm(write_voc(tmp_path))
    with pytest.raises(BenchError, match=message + ".*bench data get voc2007") as error:
        Voc2007().load("train", tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_masks_and_settings(tmp_path):
    base = write_voc(tmp_path)
    masks = Voc2007(task="segmentation").load("train", tmp_path).masks
    path = base / "SegmentationClass/000005.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BenchError, match=r"000005\.png: corrupt or truncated"):
        masks[0]
    Image.fromarray(np.full((30, 40), 21, np.uint8)).save(path)
    with pytest.raises(BenchError, match="class 21, expected 0 to 20 or 255"):
        masks[0]
    with pytest.raises(BenchError, match="task is 'seg'; write main or segmentation"):
        Voc2007(task="seg")
    with pytest.raises(
        BenchError, match=r"minival\.txt: missing.*lists there are: test, train, trainval, val"
    ):
        Voc2007(train="minival").load("train", tmp_path)


def test_check_counts_and_looks_at_every_image(tmp_path, monkeypatch):
    base = write_voc(tmp_path)
    problems = Voc2007().check(tmp_path)
    assert len(problems) == 2
    assert "trainval lists 3 images, expected 5011" in problems[0]
    monkeypatch.setattr(Voc2007, "counts", {"main/trainval": 3})
    assert Voc2007().check(tmp_path) == []
    path = base / "JPEGImages/000007.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    (base / "JPEGImages/000012.jpg").unlink()
    damaged, missing = Voc2007().check(tmp_path)
    assert "000007.jpg: truncated" in damaged and "000012.jpg: missing" in missing


def test_scenes_in_vocs_form_are_the_same_scenes(bench, home):
    options = ("--side", 32, "--objects", 3, "--train", 9, "--test", 4)
    assert bench("data", "scenes", "--voc", home / "data/scenes_voc", *options).code == 0
    assert bench("data", "check", "voc_scenes").out.startswith("voc_scenes: ok, train ")
    scenes = Scenes(side=32, train=9, test=4, objects=3)
    for split in ("train", "test"):
        wanted = scenes.load(split, home)
        for task in ("main", "segmentation"):
            found = VocScenes(task=task).load(split, home / "data")
            assert torch.equal(found.multilabel, wanted.multilabel)
            for one, other in zip(found.boxes, wanted.boxes, strict=True):
                assert all(torch.equal(one[key], other[key]) for key in ("boxes", "labels", "difficult"))
        assert all(torch.equal(a, b) for a, b in zip(found.masks, wanted.masks, strict=True))
        found.images.workers = 0
        pixels = torch.stack([raw(found.images, i) for i in range(len(found))]).float()
        apart = (pixels - wanted.images.pixels.float()).abs()
        assert apart.mean() < 1 and apart.max() <= 8  # JPEG at its best is not lossless
    assert VocScenes.class_names == Scenes.class_names
    val = VocScenes(train="val").load("train", home / "data")
    assert torch.equal(val.multilabel, scenes.load("train", home).multilabel[1::2])


SMALL = ("--side", 64, "--objects", 3, "--train", 6, "--test", 4)


@pytest.mark.parametrize("finder", ["selective_search", "windows"])
def test_scenes_come_with_proposals_of_their_own(bench, home, finder):
    if finder == "selective_search":
        pytest.importorskip("cv2", reason="OpenCV is missing: pip install opencv-contrib-python-headless")
    said = bench("data", "scenes", "--voc", home / "data/scenes_voc", *SMALL, "--proposals", finder)
    assert (said.code, said.err) == (0, "")
    assert "proposals = .../proposals.npz" in said.out
    dataset = VocScenes(proposals="scenes_voc/proposals.npz")
    for split, count in (("train", 6), ("test", 4)):
        found = dataset.load(split, home / "data").boxes
        assert len(found) == count
        met = [box_iou(one["boxes"][~one["difficult"]], one["proposals"]).amax(1) >= 0.5 for one in found]
        assert torch.cat(met).float().mean() > 0.8
    # Written again without them: those of other images do not stay behind.
    assert bench("data", "scenes", "--voc", home / "data/scenes_voc", *SMALL).code == 0
    with pytest.raises(BenchError, match=r"proposals\.npz: missing"):
        dataset.load("test", home / "data")


def test_fast_r_cnn_runs_on_the_proposals_of_a_file(bench, home, suite):
    bench("data", "scenes", "--voc", home / "data/scenes_voc", *SMALL, "--proposals", "windows")
    target = '{name = "voc_scenes", proposals = "scenes_voc/proposals.npz"}'
    few = "steps = 2, images = 2, most = 60, hidden = 8, roi_size = 2, sides = [0], test_side = 0"
    path = suite(
        f"[target]\ndataset = {target}\nvalidation = 0\n[methods]\nrandom = {{}}",
        top='seeds = 1\nbackbone = "alexnet_small"',
        data='dataset = {name = "scenes", side = 32, train = 12, test = 12}',
        protocols=f'voc_detection = {{proposals = "file", {few}}}',
    )
    ended = bench("run", path, "--jobs", 0)
    assert ended.code == 0, ended.err
    with (home / "results/toy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == {"mAP", "ap_11pt", "ap_envelope"}
    assert {(row["status"], row["dataset"]) for row in rows} == {("ok", "voc_scenes")}


def test_scenes_do_not_overwrite_another_folder(bench, home):
    (home / "data").mkdir()
    (home / "data/thesis.txt").write_text("five years")
    found = bench("data", "scenes", "--voc", home / "data")
    assert found.code == 2
    assert "is there already" in found.err


def test_methods_that_need_one_class_an_image_are_skipped(suite):
    path = suite("[methods]\nsupervised = {}\nrandom = {}", data='dataset = "voc2007"')
    path.write_text(path.read_text().replace("[methods]", '[target]\ndataset = "dots"\n[methods]', 1))
    reasons = {p.label: p.cell.skip for p in plan.cells(load(str(path)))}
    assert reasons["supervised"] == "supervised needs one class an image; voc2007 has multilabel, boxes, mask"
    assert reasons["random"] == ""
