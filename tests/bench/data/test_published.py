"""Small files in the published formats, written by the tests themselves."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from bench.data import assemble
from bench.data.cifar import Cifar10, Cifar100
from bench.data.digits import Digits
from bench.data.folders import ImageNet, Places205
from bench.data.stl10 import Stl10
from bench.data.svhn import Svhn
from bench.records import Aim, BenchError, Data, Unit

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 3, 32, 32), np.uint8)
LABELS = (np.arange(12) * 7 % 10).tolist()


def python2_pickle(batch):
    """A batch as Python 2 wrote it: byte strings (SHORT_BINSTRING, BINSTRING) and numpy.core by its old name."""
    data = batch[b"data"]
    out = b"\x80\x02}("
    for key, value in batch.items():
        out += b"U" + bytes([len(key)]) + key
        if key == b"data":
            out += b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01bt"
            out = out[:-1] + b"tR(K\x01" + b"".join(b"J" + struct.pack("<i", s) for s in data.shape) + b"\x86"
            out += (
                b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            )
            out += b"\x89T" + struct.pack("<i", data.nbytes) + data.tobytes() + b"tb"
        else:
            out += b"](" + b"".join(b"K" + bytes([v]) for v in value) + b"e"
    return out + b"u."


def write_cifar10(root, dump=pickle.dumps):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    flat = PIXELS.reshape(12, -1)
    for i in range(5):
        part = slice(2 * i, 2 * i + 2)
        (folder / f"data_batch_{i + 1}").write_bytes(dump({b"data": flat[part], b"labels": LABELS[part]}))
    (folder / "test_batch").write_bytes(dump({b"data": flat[10:], b"labels": LABELS[10:]}))
    return folder


DUMPS = [python2_pickle, lambda b: pickle.dumps(b, 2), lambda b: pickle.dumps(b, 4)]


@pytest.mark.parametrize("dump", DUMPS)
def test_cifar10_python_form(tmp_path, dump):
    write_cifar10(tmp_path, dump)
    train, test = (Cifar10().load(split, tmp_path) for split in ("train", "test"))
    assert np.array_equal(train.images.pixels.numpy(), PIXELS[:10])
    assert np.array_equal(test.images.pixels.numpy(), PIXELS[10:])
    assert train.labels.tolist() == LABELS[:10]


def test_cifar10_binary_form(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = np.concatenate([np.array(LABELS, np.uint8)[:, None], PIXELS.reshape(12, -1)], 1)
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(records[2 * i : 2 * i + 2].tobytes())
    (folder / "test_batch.bin").write_bytes(records[10:].tobytes())
    train = Cifar10().load("train", tmp_path)
    assert np.array_equal(train.images.pixels.numpy(), PIXELS[:10])
    assert train.labels.tolist() == LABELS[:10]
    (folder / "test_batch.bin").write_bytes(records[10:].tobytes()[:-1])
    with pytest.raises(BenchError, match=r"test_batch\.bin: truncated.*bench data get cifar10"):
        Cifar10().load("test", tmp_path)


def test_cifar100_takes_fine_labels(tmp_path):
    fine, coarse = [99, 3], [1, 2]
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test"):
        batch = {b"data": PIXELS[:2].reshape(2, -1), b"fine_labels": fine, b"coarse_labels": coarse}
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(batch))
    assert Cifar100().load("test", tmp_path).labels.tolist() == fine
    other = tmp_path / "binary"
    (other / "cifar-100-binary").mkdir(parents=True)
    record = bytes([1, 99]) + PIXELS[0].tobytes()
    (other / "cifar-100-binary" / "train.bin").write_bytes(record)
    assert Cifar100().load("train", other).labels.tolist() == [99]


class Poison:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('poisoned').touch()",))


@pytest.mark.parametrize("poison", [Poison(), {b"data": np.array([Poison()], dtype=object)}])
def test_a_poisoned_pickle_is_refused(tmp_path, monkeypatch, poison):
    monkeypatch.chdir(tmp_path)
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(poison))
    with pytest.raises(BenchError, match=r"test_batch: refused.*eval, which is not admitted"):
        Cifar10().load("test", tmp_path)
    assert not (tmp_path / "poisoned").exists()


@pytest.mark.parametrize("content", [None, b"", "half", pickle.dumps([1]), pickle.dumps({b"data": 3})])
def test_damaged_cifar_is_one_line_naming_the_file(tmp_path, content):
    path = write_cifar10(tmp_path) / "data_batch_3"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000] if content == "half" else content)
    with pytest.raises(BenchError, match=r"data_batch_3: .*bench data get cifar10") as caught:
        Cifar10().load("train", tmp_path)
    assert "\n" not in str(caught.value)


def test_cifar_labels_out_of_range_are_refused(tmp_path):
    path = write_cifar10(tmp_path) / "test_batch"
    path.write_bytes(pickle.dumps({b"data": PIXELS[:1].reshape(1, -1), b"labels": [10]}))
    with pytest.raises(BenchError, match="0 to 9"):
        Cifar10().load("test", tmp_path)


def test_check_tells_files_that_are_not_the_published_ones(tmp_path):
    assert len(Cifar10().check(tmp_path)) == 2  # both splits are missing
    write_cifar10(tmp_path)
    problems = Cifar10().check(tmp_path)
    assert sum("MD5" in line for line in problems) == 6
    assert any("10 images, expected 50000" in line for line in problems)


def test_svhn(tmp_path):
    (tmp_path / "svhn").mkdir()
    path = tmp_path / "svhn" / "train_32x32.mat"
    labels = np.array([1, 10, 9], np.uint8)[:, None]
    savemat(path, {"X": PIXELS[:3].transpose(2, 3, 1, 0), "y": labels}, do_compression=True)
    samples = Svhn().load("train", tmp_path)
    assert np.array_equal(samples.images.pixels.numpy(), PIXELS[:3])
    assert samples.labels.tolist() == [1, 0, 9]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BenchError, match=r"train_32x32\.mat: corrupt.*bench data get svhn") as caught:
        Svhn().load("train", tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(BenchError, match=r"extra_32x32\.mat: missing"):
        Svhn().load("extra", tmp_path)


def write_stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    images = RNG.integers(0, 256, (4, 3, 96, 96), np.uint8)
    for split in ("train", "test", "unlabeled"):
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())  # column by column
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes(bytes([1, 10, 5, 2]))
    (folder / "fold_indices.txt").write_text("0 2 \n3 1 \n" + "0 \n" * 8)
    return folder, images


def test_stl10(tmp_path):
    folder, images = write_stl10(tmp_path)
    assert np.array_equal(Stl10().load("train", tmp_path).images.pixels.numpy(), images)
    assert Stl10().load("test", tmp_path).labels.tolist() == [0, 9, 4, 1]
    assert Stl10().load("unlabeled", tmp_path).labels is None
    fold = Stl10(fold=1).load("train", tmp_path)
    assert np.array_equal(fold.images.pixels.numpy(), images[[3, 1]])
    assert fold.labels.tolist() == [1, 9]
    (folder / "train_y.bin").write_bytes(b"\1\2")
    with pytest.raises(BenchError, match=r"train_y\.bin: truncated: 2 labels for 4 images"):
        Stl10().load("train", tmp_path)
    (folder / "test_X.bin").write_bytes(b"\1" * 30_000)
    with pytest.raises(BenchError, match=r"test_X\.bin: truncated"):
        Stl10().load("test", tmp_path)


class Three(Places205):
    classes = 3


def write_folders(root):
    for split in ("train", "val"):
        for c, name in enumerate(("cat", "ant", "bee")):
            folder = root / "places205" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (20 + c, 10 + i), (c * 50, 0, 0)).save(folder / f"{i}.JPEG")
    return root / "places205"


def test_folders_are_sorted_classes_of_streamed_files(tmp_path):
    write_folders(tmp_path)
    samples = Three().load("val", tmp_path)
    assert samples.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.images.side is None
    widths = [samples.images.reader.read(i).shape[2] for i in range(6)]
    assert widths == [21, 21, 22, 22, 20, 20]  # ant, bee, cat


def test_folders_that_disagree_are_told(tmp_path):
    base = write_folders(tmp_path)
    (base / "val" / "dog").mkdir()
    with pytest.raises(BenchError, match="val/dog: there is no class 'dog' in train"):
        Three().load("train", tmp_path)
    (base / "val" / "dog").rmdir()
    for path in (base / "train" / "bee").iterdir():
        path.unlink()
    with pytest.raises(BenchError, match="train/bee: empty"):
        Three().load("train", tmp_path)
    with pytest.raises(BenchError, match="3 class folders, expected 205"):
        Places205().load("val", tmp_path)
    with pytest.raises(BenchError, match=r"imagenet/train: missing.*image-net\.org"):
        ImageNet().load("train", tmp_path)
    with pytest.raises(BenchError, match="cannot be downloaded freely"):
        ImageNet().get(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["cat/1.JPEG\nant/0.JPEG\n", "cat/1.png ant/0", '{"values": ["ant/0.JPEG", "cat/1.JPEG", "cat/1.JPEG"]}'],
)
def test_a_list_of_names_shows_some_labels_and_hides_the_rest(tmp_path, text):
    write_folders(tmp_path)
    (tmp_path / "some.txt").write_text(text)
    dataset = Three(label_file=str(tmp_path / "some.txt"))
    assert dataset.load("train", tmp_path).labels.tolist() == [0, -1, -1, -1, -1, 2]
    assert dataset.load("val", tmp_path).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.load("train", tmp_path).name != Three().load("train", tmp_path).name


def test_names_alone_will_do_where_no_two_classes_share_them(tmp_path):
    base = write_folders(tmp_path)
    (base / "train" / "ant" / "0.JPEG").rename(base / "train" / "ant" / "ant_7.JPEG")
    (tmp_path / "some.txt").write_text("ant_7.JPEG")
    known = Three(label_file=str(tmp_path / "some.txt")).load("train", tmp_path).labels
    assert (known.sort().values.tolist(), int(known.max())) == ([-1] * 5 + [0], 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "cat/1.JPEG\ncow/3.JPEG",
            "names 'cow/3', and no training image is called so; write one image a line",
        ),
        ("1.JPEG", "names '1', which more than one class has; write CLASS/NAME"),
        ("", "names no image"),
        ('{"names": []}', "not S4L's JSON"),
        ('{"values": [3]}', "not S4L's JSON"),
        (None, "cannot be read as a list of images"),
    ],
)
def test_wrong_lists_of_names_are_told(tmp_path, text, told):
    write_folders(tmp_path)
    if text is not None:
        (tmp_path / "some.txt").write_text(text)
    with pytest.raises(BenchError) as error:
        Three(label_file=str(tmp_path / "some.txt")).load("train", tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'some.txt'}: {told}")
    assert "\n" not in str(error.value)


def test_a_list_that_changed_since_it_was_planned_is_told(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "some.txt").write_text("cat/1.JPEG")
    with pytest.raises(BenchError, match="changed since it was planned"):
        Three(label_file=str(tmp_path / "some.txt"), label_file_sha256="0" * 64).load("train", tmp_path)


def test_methods_and_protocols_see_the_listed_labels_alone(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "some.txt").write_text("cat/1.JPEG\nant/0.JPEG\n")
    dataset = Three(label_file=str(tmp_path / "some.txt"))
    unit = Unit.of("places205", {"label_file": dataset.label_file})
    seen, info = assemble.training_set(Data(unit), dataset, tmp_path, True, torch.device("cpu"))
    assert (seen.labels.tolist(), info["labeled"], info["unlabeled"]) == ([0, -1, -1, -1, -1, 2], 2, 4)
    judged, _ = assemble.target(Aim(unit, validation=0), dataset, tmp_path, torch.device("cpu"))
    assert judged.train.labels.tolist() == [0, 2]
    assert len(judged.test) == 6


def test_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    parts = {split: Digits().load(split, tmp_path) for split in ("train", "val", "test")}
    assert [len(p) for p in parts.values()] == [1000, 297, 500]
    assert not parts["train"].images.color
    table = load_digits()
    small = {tuple(np.round(image / 16 * 255).astype(int).flat) for image in table.images}
    seen = set()
    for part in parts.values():
        pixels = part.images.pixels
        assert torch.equal(pixels[:, 0], pixels[:, 2])
        # The corners of a bilinear enlargement are the corners of the original.
        for image in pixels[:, 0].numpy():
            seen.add((image[0, 0], image[0, -1], image[-1, 0], image[-1, -1], image.tobytes()))
    assert len(seen) == len(small)
    corners = sorted(tuple(image[[0, 0, 7, 7], [0, 7, 0, 7]]) for image in np.round(table.images / 16 * 255))
    assert sorted(s[:4] for s in seen) == corners
    assert (
        sum(torch.bincount(p.labels, minlength=10) for p in parts.values()).tolist()
        == np.bincount(table.target).tolist()
    )
    assert Digits(side=32).load("val", tmp_path).images.side == 32
    with pytest.raises(BenchError, match="16 or 32"):
        Digits(side=20)


def test_an_unknown_split_is_told(tmp_path):
    for dataset in (Digits(), Cifar10(), Svhn(), Stl10(), ImageNet()):
        with pytest.raises(BenchError, match="no split 'nope'; its splits are: train"):
            dataset.load("nope", tmp_path)


@pytest.mark.parametrize("dataset", [Cifar10(), Cifar100(), Svhn(), Stl10()])
def test_a_failed_download_says_how_to_do_without(tmp_path, monkeypatch, dataset):
    def fail(*_, **__):
        raise OSError("no route\nto host")

    for name in ("CIFAR10", "CIFAR100", "SVHN", "STL10"):
        monkeypatch.setattr(f"torchvision.datasets.{name}.__init__", fail)
    with pytest.raises(
        BenchError, match=f"{dataset.name}: the download failed .no route to host.*{tmp_path}"
    ) as caught:
        dataset.get(tmp_path)
    assert "\n" not in str(caught.value)


def test_every_dataset_names_the_files_that_it_reads(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    write_folders(tmp_path)
    write_stl10(tmp_path)
    (tmp_path / "svhn").mkdir()
    for split in ("train", "test"):
        savemat(
            tmp_path / "svhn" / f"{split}_32x32.mat",
            {"X": PIXELS[:3].transpose(2, 3, 1, 0), "y": np.ones((3, 1), np.uint8)},
        )
    opened = []
    real = io.open

    def recorded(file, *more, **named):
        opened.append(Path(file))
        return real(file, *more, **named)

    for dataset in (Cifar10(), Three(), Stl10(), Stl10(fold=1), Svhn()):
        opened.clear()
        with monkeypatch.context() as patch:
            patch.setattr("io.open", recorded)
            patch.setattr("builtins.open", recorded)
            for split in ("train", dataset.test_split, *({"unlabeled"} & set(dataset.splits))):
                images = dataset.load(split, tmp_path).images
                if hasattr(images, "reader"):
                    list(map(images.reader.read, range(len(images))))
        assert dataset.paths(tmp_path) == sorted(set(opened))
    assert Digits().paths(tmp_path) == []


def test_what_begins_with_a_dot_is_no_data(tmp_path):
    base = write_folders(tmp_path)
    before = Three().paths(tmp_path)
    for split in ("train", "val"):
        (base / split / ".ipynb_checkpoints").mkdir()
        (base / split / "ant" / ".ipynb_checkpoints").mkdir()
        for name in ("._0.JPEG", ".hidden.png", ".ipynb_checkpoints/0-checkpoint.jpg"):
            (base / split / "ant" / name).write_bytes(b"no image")
        (base / split / "cat" / "x.jpg").mkdir()
    assert Three().paths(tmp_path) == before
    assert Three().load("train", tmp_path).labels.tolist() == [0, 0, 1, 1, 2, 2]
