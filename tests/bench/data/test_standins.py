"""Stand-ins are read back by the project's readers and, independently, by torchvision's and scipy's."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from bench.data import standins
from bench.data.cifar import Cifar10, Cifar100
from bench.data.folders import ImageNet
from bench.records import BenchError


def bench(*args, **kwargs):
    command = [sys.executable, "-m", "bench", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


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


def test_check_tells_a_stand_in_from_the_published_files(tmp_path):
    standins.write("cifar10", tmp_path, images_per_class=2)
    told = bench("data", "check", "cifar10", "--data", tmp_path)
    assert told.returncode == 2
    assert ": a stand-in, written by" in told.stdout
    assert "MD5" not in told.stdout
