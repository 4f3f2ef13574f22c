"""Stand-ins are read back by the project's readers and, independently, by torchvision's and scipy's."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat
from torchvision import datasets
from torchvision.ops import box_iou

from bench.data import assemble, proposals, standins
from bench.data.cifar import Cifar10, Cifar100
from bench.data.folders import ImageNet, Places205
from bench.data.stl10 import Stl10
from bench.data.svhn import Svhn
from bench.data.voc import VOC_CLASSES, Voc2007, Voc2012
from bench.records import Aim, BenchError, Unit


def bench(*args, **kwargs):
    command = [sys.executable, "-m", "bench", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **kwargs)


@pytest.mark.parametrize(("unit", "other"), [(Cifar10(), datasets.CIFAR10), (Cifar100(), datasets.CIFAR100)])
def test_cifar_is_torchvisions_in_both_forms(tmp_path, monkeypatch, unit, other):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # published checksums
    python, binary = tmp_path / "python", tmp_path / "binary"
    standins.write(unit.name, python, images_per_class=5)
    standins.write(unit.name, binary, images_per_class=5, form="binary")
    for split in ("train", "test"):
        theirs = other(str(python), train=split == "train")
        for root in (python, binary):
            ours = unit.load(split, root)
            assert np.array_equal(ours.images.pixels.permute(0, 2, 3, 1).numpy(), theirs.data)
            assert ours.labels.tolist() == theirs.targets
        assert len(theirs.classes) == unit.classes
        assert set(theirs.targets) == set(range(unit.classes))
    assert len(theirs) < len(unit.load("train", python)) == 5 * unit.classes


@pytest.mark.slow
def test_imagenet_is_torchvisions_with_all_kinds_of_files(tmp_path):
    base = standins.write("imagenet", tmp_path, images_per_class=2)
    kinds, sides = set(), []
    for split, count in (("train", 2000), ("val", 1000)):
        theirs = datasets.ImageFolder(str(base / split))
        ours = ImageNet().load(split, tmp_path)
        assert [ours.images.reader.path(i) for i in range(len(ours))] == [path for path, _ in theirs.samples]
        assert ours.labels.tolist() == theirs.targets
        assert len(ours) == count
        for path, _ in theirs.samples:
            with Image.open(path) as image:
                kinds.add((image.format, image.mode, image.getexif().get(0x0112, 1)))
                sides.append(image.size)
        for i in range(0, len(ours), 37):
            pixels = ours.images.reader.read(i).permute(1, 2, 0).numpy()
            assert np.array_equal(pixels, np.asarray(theirs[i][0]))
    assert {("JPEG", "RGB", 1), ("JPEG", "L", 1), ("JPEG", "CMYK", 1), ("JPEG", "RGB", 6)} <= kinds
    assert ("PNG", "RGB", 1) in kinds
    assert min(map(min, sides)) < 100
    assert max(map(max, sides)) > 1000
    for name, each in (("label_map_count_13000_index_0", 1), ("10percent.txt", 2)):
        labels = ImageNet(label_file=str(base / name)).load("train", tmp_path).labels
        assert np.bincount(labels[labels >= 0]).tolist() == [each] * 1000


@pytest.mark.slow
def test_the_command_writes_the_same_again_and_nothing_over_other_files(tmp_path):
    args = ("data", "standin", "cifar10", tmp_path, "--images-per-class", 2)
    assert bench(*args).returncode == 0
    folder = tmp_path / "cifar-10-batches-py"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert json.loads(first["STANDIN.json"])["standin"] == "cifar10"
    assert bench(*args).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    (folder / "test_batch").write_bytes(b"the real one")
    told = bench(*args)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "holds test_batch, which is not a stand-in's" in told.stderr
    assert (folder / "test_batch").read_bytes() == b"the real one"
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.parametrize("form", ["python", "binary"])
def test_a_folder_without_the_marker_is_left_alone(tmp_path, form):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"real")
    with pytest.raises(BenchError, match=r"cifar-10-batches-py: is there already.*name another folder"):
        standins.write("cifar10", tmp_path, images_per_class=2, form=form)


@pytest.mark.parametrize("name", ["test_batch", "notes.txt"])
def test_files_put_into_a_stand_in_are_left_alone(tmp_path, name):
    folder = standins.write("cifar10", tmp_path, images_per_class=2)
    (folder / name).write_bytes(b"mine")
    with pytest.raises(BenchError, match=f"holds {name}, which is not a stand-in's"):
        standins.write("cifar10", tmp_path, images_per_class=2)
    assert (folder / name).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("cifar11",), "there is no stand-in of 'cifar11'; there are: cifar10, "),
        (("cifar10", 1), "at least 2 images a class, not 1"),
        (("cifar10", 2, "bin"), "no form 'bin'; write python or binary"),
    ],
)
def test_what_cannot_be_written_is_told(tmp_path, args, told):
    settings = dict(zip(("images_per_class", "form"), args[1:], strict=False))
    with pytest.raises(BenchError, match=told):
        standins.write(args[0], tmp_path, **settings)


@pytest.mark.slow
def test_check_tells_a_stand_in_from_the_published_files(tmp_path):
    standins.write("cifar10", tmp_path, images_per_class=2)
    told = bench("data", "check", "cifar10", "--data", tmp_path)
    assert told.returncode == 0
    assert ", a stand-in, not the published files" in told.stdout
    assert "MD5" not in told.stdout


def test_svhn_is_scipys_and_torchvisions(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda _: True)
    base = standins.write("svhn", tmp_path, images_per_class=5)
    for split in ("train", "extra", "test"):
        table = loadmat(str(base / f"{split}_32x32.mat"))
        theirs = datasets.SVHN(str(base), split=split)
        ours = Svhn().load(split, tmp_path)
        assert np.array_equal(ours.images.pixels.numpy(), theirs.data)
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert np.array_equal(table["X"][..., 3], ours.images.pixels[3].permute(1, 2, 0).numpy())
        assert sorted(set(table["y"].ravel().tolist())) == list(range(1, 11))


def test_stl10_is_torchvisions_with_its_folds(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda _: True)
    base = standins.write("stl10", tmp_path, images_per_class=5)
    for split in ("train", "test", "unlabeled"):
        theirs, ours = datasets.STL10(str(tmp_path), split=split), Stl10().load(split, tmp_path)
        assert np.array_equal(ours.images.pixels.numpy(), theirs.data)
        assert split == "unlabeled" or ours.labels.tolist() == theirs.labels.tolist()
    folds = [
        np.fromstring(line, np.int64, sep=" ")
        for line in (base / "fold_indices.txt").read_text().splitlines()
    ]
    assert len(folds) == 10
    for fold in (0, 9):
        part = Stl10(fold=fold).load("train", tmp_path)
        theirs = datasets.STL10(str(tmp_path), split="train", folds=fold)
        assert np.array_equal(part.images.pixels.numpy(), theirs.data)
        assert np.bincount(part.labels).tolist() == [1] * 10


def test_places205_is_torchvisions(tmp_path):
    base = standins.write("places205", tmp_path, images_per_class=2)
    for split in ("train", "val"):
        theirs, ours = datasets.ImageFolder(str(base / split)), Places205().load(split, tmp_path)
        assert ours.labels.tolist() == theirs.targets
        assert len(theirs.classes) == 205
        pixels = ours.images.reader.read(7).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, np.asarray(theirs[7][0]))


def test_places365_is_torchvisions(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Places365, "_check_integrity", lambda *_: True)
    base = standins.write("places365", tmp_path, images_per_class=2)
    for split, count in (("train-standard", 730), ("val", 365)):
        theirs = datasets.Places365(str(base), split=split, small=True)
        assert len(theirs) == count
        assert set(theirs.targets) == set(range(365))
        assert [theirs.class_to_idx[name] for name in theirs.classes] == list(range(365))
        assert theirs[count - 1][0].size == (256, 256)
    assert any(path.endswith("outdoor") for path in theirs.classes)


def annotated(dataset):
    """What torchvision reads: boxes (1-based, inclusive), classes and difficulty, by image."""
    found = {}
    for path, (_, told) in zip(dataset.images, dataset, strict=True):
        rows = [
            (o["name"], o["difficult"], *(int(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")))
            for o in told["annotation"]["object"]
        ]
        found[Path(path).stem] = rows
    return found


@pytest.mark.parametrize(("unit", "year", "splits"), [
    (Voc2007(), "2007", {"train": "trainval", "test": "test"}),
    (Voc2012(task="main", train="train", test="val"), "2012", {"train": "train", "test": "val"}),
])  # fmt: skip
def test_voc_boxes_and_presence_are_torchvisions(tmp_path, unit, year, splits):
    standins.write(unit.name, tmp_path, images_per_class=4)
    for split, name in splits.items():
        theirs = datasets.VOCDetection(str(tmp_path), year=year, image_set=name)
        ours, found = unit.load(split, tmp_path), annotated(theirs)
        assert [Path(ours.images.reader.path(i)).stem for i in range(len(ours))] == list(found)
        for i, rows in enumerate(found.values()):
            boxes = ours.boxes[i]
            corners = (boxes["boxes"] + torch.tensor([1, 1, 0, 0])).tolist()
            assert corners == [list(row[2:]) for row in rows]
            assert [VOC_CLASSES[c] for c in boxes["labels"]] == [row[0] for row in rows]
            assert boxes["difficult"].tolist() == [row[1] == "1" for row in rows]
            for label, kind in enumerate(VOC_CLASSES):
                seen = {row[1] for row in rows if row[0] == kind}
                assert ours.multilabel[i, label] == (-1 if not seen else 1 if "0" in seen else 0)
        assert set(ours.multilabel.flatten().tolist()) == {-1, 0, 1}
        assert ((ours.multilabel == 1).sum(0) > 0).all()


@pytest.mark.parametrize(("unit", "year"), [(Voc2007(task="segmentation"), "2007"), (Voc2012(), "2012")])
def test_voc_masks_are_torchvisions(tmp_path, unit, year):
    standins.write(unit.name, tmp_path, images_per_class=4)
    name = "trainval" if year == "2007" else "train"
    theirs, ours = (
        datasets.VOCSegmentation(str(tmp_path), year=year, image_set=name),
        unit.load("train", tmp_path),
    )
    assert len(ours) == len(theirs) < len(datasets.VOCDetection(str(tmp_path), year=year, image_set=name))
    seen = set()
    for i, (picture, mask) in enumerate(theirs):
        assert mask.mode == "P"
        assert np.array_equal(ours.masks[i].numpy(), np.asarray(mask))
        assert np.array_equal(ours.images.reader.read(i).permute(1, 2, 0).numpy(), np.asarray(picture))
        seen |= set(np.unique(np.asarray(mask)).tolist())
    assert seen == {*range(21), 255}


def test_sbd_is_torchvisions_and_its_lists_share_no_image_with_those_judged(tmp_path):
    standins.write("voc2012", tmp_path, images_per_class=4)
    unit = Voc2012(train="sbd_train", test="seg11valid")
    theirs = datasets.SBDataset(
        str(tmp_path / "benchmark_RELEASE/dataset"), image_set="train", mode="segmentation"
    )
    ours, judged = unit.load("train", tmp_path), unit.load("test", tmp_path)
    assert len(ours) == len(theirs) > 0 < len(judged)
    for i in range(0, len(ours), 9):
        assert np.array_equal(ours.masks[i].numpy(), np.asarray(theirs[i][1]))
    edges = datasets.SBDataset(
        str(tmp_path / "benchmark_RELEASE/dataset"), image_set="val", mode="boundaries"
    )
    assert edges[0][1].shape[0] == 20
    assert Voc2012(train="train_aug").load("train", tmp_path).masks is not None


def test_voc_proposals_are_the_same_in_both_forms(tmp_path):
    base = standins.write("voc2007", tmp_path, images_per_class=2)
    ours = Voc2007(proposals="VOCdevkit/VOC2007/proposals.npz").load("test", tmp_path)
    converted = proposals.convert(base / "voc_2007_test.mat", "yxyx", 1)
    for i, found in enumerate(ours.boxes):
        name = Path(ours.images.reader.path(i)).stem
        assert np.array_equal(converted[name], found["proposals"].numpy())
        covered = box_iou(found["boxes"], found["proposals"]).max(1).values
        assert (covered > 0.5).all()


def test_a_stand_ins_samples_are_named_so(tmp_path):
    standins.write("cifar10", tmp_path, images_per_class=2)
    made, _ = assemble.target(Aim(Unit.of("cifar10"), validation=0), Cifar10(), tmp_path, torch.device("cpu"))
    (tmp_path / "cifar-10-batches-py" / standins.MARKER).unlink()
    real, _ = assemble.target(Aim(Unit.of("cifar10"), validation=0), Cifar10(), tmp_path, torch.device("cpu"))
    assert made.train.name == f"standin-{real.train.name}"
    assert made.test.name == f"standin-{real.test.name}"


SUITE = """
seeds = 1
budget = "1 epochs"
backbone = "alexnet_small"
threads = 1
data = {{dataset = {data}}}
target = {{validation = 0}}
[methods]
rotation = {{crop = 24, batch_size = 64}}
[protocols]
{protocol}
"""
KNN = "knn = {k = 3, side = 24}"
DETECTION = (
    'voc_detection = {proposals = "windows", hidden = 16, steps = 2, images = 2, rois = 8, pool = "align", '
    "sides = [64], test_side = 64}"
)
SEGMENTATION = 'voc_segmentation = {head = "conv", width = 8, pad = 0, steps = 2, images = 2, crop = 64}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "protocol", "metric"),
    [
        ("cifar10", KNN, "top1"),
        ("cifar100", KNN, "top1"),
        ("svhn", KNN, "top1"),
        ("stl10", KNN, "top1"),
        ("imagenet", KNN, "top1"),
        ("places205", KNN, "top1"),
        ("voc2007", DETECTION, "mAP"),
        ("voc2012", SEGMENTATION, "mIoU"),
    ],
)
def test_a_suite_runs_on_a_stand_in(home, name, protocol, metric):
    assert bench("data", "standin", name, "data", "--images-per-class", 4).returncode == 0
    Path("tried.toml").write_text(SUITE.format(data=f'"{name}"', protocol=protocol))
    told = bench("run", "tried.toml", "--jobs", 0)
    assert told.returncode == 0, told.stdout + told.stderr
    with Path("results/tried.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == metric]
    assert rows
    for row in rows:
        assert (row["status"], row["split_digest"][:7]) == ("ok", "standin")
        assert np.isfinite(float(row["value"]))
