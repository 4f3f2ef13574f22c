"""Folders of images in the layouts that people have, against torchvision's own readers; and as the command runs them."""

from __future__ import annotations

import io
import json
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import ImageFolder

from bench.data._decode import rgb
from bench.data.folder import Folder
from bench.data.folders import ImageNet, Places365
from bench.records import BenchError

RNG = np.random.default_rng(0)
NAMES = ("cat", "ant", "Bee", "été")


def picture(side=12):
    return Image.fromarray(RNG.integers(0, 256, (side, side + 2, 3), np.uint8))


def write(place, names=NAMES, count=4):
    for name in names:
        (place / name / "deeper").mkdir(parents=True)
        for i in range(count):
            picture().save(place / name / f"{name}_{i}.{('jpg', 'JPEG', 'png', 'webp')[i % 4]}")
        picture().save(place / name / "deeper" / "a.jpg")
    return place


def pixels(samples):
    reader = samples.images.reader
    return [reader.read(i) for i in range(len(reader))]


def equal(samples, other):
    assert samples.labels.tolist() == other.labels.tolist()
    assert all(map(torch.equal, pixels(samples), pixels(other)))


def spoil(place):
    """What is no data."""
    (place / ".ipynb_checkpoints").mkdir()
    (place / NAMES[0] / ".ipynb_checkpoints").mkdir()
    (place / NAMES[0] / ".ipynb_checkpoints" / "a-checkpoint.jpg").write_bytes(b"")
    (place / NAMES[1] / "._x.JPEG").write_bytes(b"")
    (place / NAMES[1] / "x.jpg").mkdir()
    (place / NAMES[1] / "notes.txt").write_text("no image")


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_paths_labels_and_pixels_are_those_of_torchvisions_image_folder(tmp_path, test):
    for name in ("train", test):
        write(tmp_path / name)
    theirs = {name: ImageFolder(tmp_path / name) for name in ("train", test)}
    expected = {
        name: ([*found.imgs], [np.asarray(image) for image, _ in found]) for name, found in theirs.items()
    }
    spoil(tmp_path / "train")  # torchvision itself takes some of it
    for split, name in (("train", "train"), ("test", test)):
        samples = Folder(root=str(tmp_path)).load(split, tmp_path)
        reader = samples.images.reader
        paths = [(reader.path(i), label) for i, label in enumerate(samples.labels.tolist())]
        assert paths == expected[name][0]
        found = [image.permute(1, 2, 0).numpy() for image in pixels(samples)]
        assert all(map(np.array_equal, found, expected[name][1]))
    listed = sorted(path for images, _ in expected.values() for path, _ in images)
    assert [str(path) for path in Folder(root=str(tmp_path)).paths(tmp_path)] == listed


def test_a_fraction_is_drawn_by_name_alone(tmp_path):
    write(tmp_path / "one", count=40)
    parts = {
        f: [Folder(root="one", test_fraction=f).load(s, tmp_path) for s in ("train", "test")]
        for f in (0.2, 0.5)
    }
    whole = len(ImageFolder(tmp_path / "one"))
    names = {}
    for fraction, (train, test) in parts.items():
        found = [[part.images.reader.path(i) for i in range(len(part))] for part in (train, test)]
        assert not set(found[0]) & set(found[1])
        assert len(train) + len(test) == whole
        assert abs(len(test) - fraction * whole) < 4 * (whole * fraction * (1 - fraction)) ** 0.5
        names[fraction] = set(found[1])
    assert names[0.2] < names[0.5]
    (tmp_path / "one").rename(tmp_path / "moved")
    again = Folder(root="moved", test_fraction=0.2).load("test", tmp_path).images.reader
    assert {again.path(i).replace("moved", "one") for i in range(len(again))} == names[0.2]


def tar_of(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members(place, prefix=""):
    found = [
        (f"{prefix}{p.relative_to(place).as_posix()}", p.read_bytes())
        for p in place.rglob("*")
        if p.is_file()
    ]
    return [found[i] for i in RNG.permutation(len(found))]


FORMS = {
    "plain": lambda place, out: tar_of(out.with_suffix(".tar"), members(place)),
    "outer folders": lambda place, out: tar_of(out.with_suffix(".tar"), members(place, "./data/train/")),
    "a tar a class": lambda place, out: [tar_of(out / f"{c.name}.tar", members(c)) for c in place.iterdir()],
    "tar of tars": lambda place, out: tar_of(
        out.with_suffix(".tar"),
        [
            (f"{c.name}.tar", tar_of(place.parent / "t" / f"{c.name}.tar", members(c)).read_bytes())
            for c in place.iterdir()
        ],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_tar_is_read_as_the_folder_that_it_was_made_of(tmp_path, form, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    for name in ("train", "test"):
        place = write(tmp_path / "plain" / name)
        for deeper in place.glob("*/deeper"):  # a tar a class holds its files at the top
            for path in deeper.iterdir():
                path.unlink()
            deeper.rmdir()
        FORMS[form](place, tmp_path / "packed" / name)
    plain, packed = Folder(root="plain"), Folder(root="packed")
    assert packed.facts(tmp_path) == plain.facts(tmp_path)
    for split in ("train", "test"):
        equal(packed.load(split, tmp_path), plain.load(split, tmp_path))
    assert all(path.suffix == ".tar" for path in packed.paths(tmp_path))
    with monkeypatch.context() as patch:  # the index is kept: no tar is opened again
        patch.setattr(tarfile, "open", None)
        equal(packed.load("train", tmp_path), plain.load("train", tmp_path))


def jpeg():
    data = io.BytesIO()
    picture().save(data, "JPEG")
    return data.getvalue()


@pytest.mark.parametrize("form", ["cls", "json"])
def test_shards_of_webdataset(tmp_path, form, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    expected = []
    for split in ("train", "val"):
        for shard in range(3):
            found = []
            for i in range(5):
                label, image = (2 * shard + i) % 4, jpeg()
                said = str(label) if form == "cls" else json.dumps({"label": label, "caption": "a"})
                found += [(f"{shard}{i}.jpg", image), (f"{shard}{i}.{form}", said.encode())]
                expected += [(label, image)] * (split == "train")
            tar_of(tmp_path / "own" / f"{split}-{shard:06d}.tar", found)
    samples = Folder(root="own").load("train", tmp_path)
    assert samples.labels.tolist() == [label for label, _ in expected]
    for found, (_, data) in zip(pixels(samples), expected, strict=True):
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(data))))
    assert Folder(root="own").facts(tmp_path).classes == 4


@pytest.mark.parametrize("harm", ["truncated", "gzip", "no image", "damaged image"])
def test_bad_tars_are_one_line(tmp_path, harm, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    place = write(tmp_path / "plain")
    for name in ("train", "test"):
        path = tar_of(tmp_path / "own" / f"{name}.tar", members(place))
        if harm == "truncated":
            path.write_bytes(path.read_bytes()[:-11_000])
        elif harm == "gzip":
            with tarfile.open(path, "w:gz") as tar:
                tar.add(place, "x")
        elif harm == "no image":
            tar_of(path, [("a/b.txt", b"1")])
        else:
            tar_of(path, [("a/b.jpg", b"1")])
    with pytest.raises(BenchError, match=r"(train|test)\.tar") as caught:
        pixels(Folder(root="own").load("train", tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageNet, "classes", 4)
    wnids = ["n01", "n02", "n03", "n04"]
    write(tmp_path / "imagenet" / "train", wnids, 2)
    (tmp_path / "imagenet" / "val").mkdir()
    truth = [2, 0, 3, 3, 1, 0]
    for i in range(6):
        picture().save(tmp_path / "imagenet" / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG", "JPEG")
    return tmp_path, wnids, truth


def devkit(base, wnids, truth):
    ids = {wnid: (3 * k + 1) % 4 + 1 for k, wnid in enumerate(wnids)}  # not in the order of the names
    rows = np.array(
        [(ids[w], w, "words", "gloss", 0) for w in wnids],
        [("ILSVRC2012_ID", "i4"), *((k, "O") for k in ("WNID", "words", "gloss")), ("num_children", "i4")],
    )
    folder = base / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": rows})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(
        "".join(f"{ids[wnids[t]]}\n" for t in truth)
    )


LISTS = {
    "names": ("val.txt", lambda w, t, i: f"ILSVRC2012_val_{i + 1:08d}.JPEG {w[t]}\n"),
    "places": ("val.txt", lambda _, t, i: f"ILSVRC2012_val_{i + 1:08d}.JPEG {t}\n"),
    "kaggle": (
        "LOC_val_solution.csv",
        lambda w, t, i: f"ILSVRC2012_val_{i + 1:08d},{w[t]} 1 2 3 4 {w[t]} 1 2 3 4\n",
    ),
}


@pytest.mark.parametrize("form", [*LISTS, "devkit"])
def test_imagenets_flat_validation_folder_with_its_list(imagenet, form):
    root, wnids, truth = imagenet
    if form == "devkit":
        devkit(root / "imagenet", wnids, truth)
    else:
        file, line = LISTS[form]
        head = "ImageId,PredictionString\n" * (form == "kaggle")
        lines = [line(wnids, truth[i], i) for i in RNG.permutation(6)]
        (root / "imagenet" / file).write_text(head + "".join(lines))
    assert ImageNet().load("val", root).labels.tolist() == truth
    some = ImageNet(subset=("n04", "n01"))
    assert some.facts(root).classes == 2
    assert some.load("val", root).labels.tolist() == [0, 1, 1, 0]
    assert some.load("train", root).labels.tolist() == [0] * 3 + [1] * 3


def test_a_flat_validation_folder_without_its_list_is_told(imagenet):
    root, _, _ = imagenet
    with pytest.raises(
        BenchError, match=r"imagenet/val: images without class folders need the list.*val\.txt"
    ):
        ImageNet().load("val", root)


def test_imagenet_out_of_its_own_tars(imagenet, monkeypatch):
    root, wnids, truth = imagenet
    monkeypatch.setenv("BENCH_CACHE", str(root / "cache"))
    devkit(root / "imagenet", wnids, truth)
    plain = {split: ImageNet().load(split, root) for split in ("train", "val")}
    base, packed = root / "imagenet", root / "packed" / "imagenet"
    inner = [
        (f"{w}.tar", tar_of(root / "t" / f"{w}.tar", members(base / "train" / w)).read_bytes()) for w in wnids
    ]
    tar_of(packed / "ILSVRC2012_img_train.tar", inner)
    tar_of(packed / "ILSVRC2012_img_val.tar", members(base / "val"))
    devkit(packed, wnids, truth)
    for split, found in plain.items():
        equal(ImageNet().load(split, root / "packed"), found)


def test_places365_as_it_is_published(tmp_path, monkeypatch):
    monkeypatch.setattr(Places365, "classes", 3)
    base = tmp_path / "places365"
    kinds = ["/a/abbey", "/a/alcove", "/z/zoo"]
    for kind in kinds:
        (base / f"data_256{kind}").mkdir(parents=True)
        picture().save(base / f"data_256{kind}" / "00000001.jpg")
    (base / "val_256").mkdir()
    for i in range(3):
        picture().save(base / "val_256" / f"Places365_val_{i + 1:08d}.jpg")
    (base / "categories_places365.txt").write_text("".join(f"{kind} {i}\n" for i, kind in enumerate(kinds)))
    (base / "places365_train_standard.txt").write_text(
        "".join(f"{kind}/00000001.jpg {i}\n" for i, kind in enumerate(kinds))
    )
    (base / "places365_val.txt").write_text(
        "".join(f"Places365_val_{i + 1:08d}.jpg {2 - i}\n" for i in range(3))
    )
    assert Places365().load("train", tmp_path).labels.tolist() == [0, 1, 2]
    val = Places365().load("val", tmp_path)
    assert val.labels.tolist() == [2, 1, 0]
    first = np.asarray(Image.open(base / "val_256" / "Places365_val_00000001.jpg"))
    assert np.array_equal(pixels(val)[0].permute(1, 2, 0).numpy(), first)
    assert len(Places365().paths(tmp_path)) == 9


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_files_are_copied_to_the_nodes_disk_once_and_read_from_there(tmp_path, monkeypatch, form):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "node"))
    for name in ("train", "test"):
        place = write(tmp_path / "plain" / name)
        if form == "tar":
            tar_of(tmp_path / "own" / f"{name}.tar", members(place))
    root = "own" if form == "tar" else "plain"
    plain, here = Folder(root=root), Folder(root=root, stage="$SLURM_TMPDIR")
    assert plain.load("train", tmp_path).name == here.load("train", tmp_path).name
    equal(here.load("train", tmp_path), plain.load("train", tmp_path))
    reader = here.load("train", tmp_path).images.reader
    assert all(reader.path(i).startswith(str(tmp_path / "node")) for i in range(len(reader)))
    before = {p: p.stat().st_ino for p in (tmp_path / "node").rglob("*") if p.is_file()}
    here.load("train", tmp_path)
    assert {p: p.stat().st_ino for p in (tmp_path / "node").rglob("*") if p.is_file()} == before
    monkeypatch.delenv("SLURM_TMPDIR")
    with pytest.raises(
        BenchError, match=r"folder\.stage = '\$SLURM_TMPDIR': a variable in it is not set here"
    ):
        here.load("train", tmp_path)


SUITE = """
data = {{dataset = {{name = "folder", root = "own"{more}}}}}
protocols = {{knn = {{k = 3, side = 8}}}}
[methods]
random = {{}}
[backbone]
name = "alexnet_small"
"""


@pytest.mark.slow
def test_the_command_runs_a_folder_and_tells_what_is_missing(bench, home):
    suite = home / "own.toml"
    suite.write_text('backbone = "alexnet_small"\n' + SUITE.format(more="").split("[backbone]")[0])
    done = bench("run", suite, "--jobs", 0)
    assert done.code == 2
    assert "own: there is no such folder; write the folder of your images as folder.root" in done.err
    for name in ("train", "val"):
        write(home / "data" / "own" / name, count=8)
    done = bench("run", suite, "--jobs", 0)
    assert done.code == 0, done.err
    assert "nothing to do" in bench("run", suite, "--jobs", 0).out
    staged = SUITE.format(more=f', stage = "{home}/node"').split("[backbone]")[0]
    suite.write_text('backbone = "alexnet_small"\n' + staged)
    assert (
        "nothing to do" in bench("run", suite, "--jobs", 0).out
    )  # where files are read is no part of an identity
    suite.write_text(suite.read_text().replace('root = "own"', 'root = "own", subset = ["cat", "ant"]'))
    done = bench("run", suite, "--jobs", 0)
    assert done.code == 0, done.err
    assert (home / "node").is_dir()
    suite.write_text(suite.read_text().replace('"ant"', '"dog"'))
    assert "there is no class 'dog'" in bench("run", suite, "--jobs", 0).err


def test_check_counts_and_names_every_bad_file(bench, home):
    for name in ("train", "val"):
        write(home / "data" / "own" / name)
    asked = ("data", "check", "folder", "--set", "root=own")
    done = bench(*asked, "--deep")
    assert (done.code, done.out) == (
        0,
        "folder: ok, train 20 (5 to 5 in each of 4 classes), test 20 (5 to 5 in each of 4 classes)\n",
    )
    train = home / "data" / "own" / "train"
    (train / "ant" / "ant_0.jpg").write_bytes(b"")
    (train / "ant" / "ant_2.png").write_text("<html>")
    cut = train / "cat" / "cat_1.JPEG"
    cut.write_bytes(cut.read_bytes()[:-200])
    shallow, deep = bench(*asked), bench(*asked, "--deep")
    assert (shallow.code, deep.code) == (2, 2)
    for done in (shallow, deep):
        assert "ant_0.jpg: empty" in done.out
        assert "ant_2.png: no .png file by its first bytes" in done.out
    assert "cat_1.JPEG" not in shallow.out
    assert f"{cut}: not a readable image" in deep.out


def test_check_compares_with_the_published_counts_unless_it_is_a_stand_in(bench, imagenet):
    root, wnids, truth = imagenet
    devkit(root / "imagenet", wnids, truth)
    done = bench("data", "check", "imagenet", "--data", root)
    assert done.code == 2
    assert "imagenet train: 12 images, published are 1,281,167" in done.out
    (root / "imagenet" / "STANDIN.json").write_text("{}")
    done = bench("data", "check", "imagenet", "--data", root)
    assert done.code == 0
    assert "a stand-in" in done.out


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"]


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_torchvisions_loader(tmp_path, mode):
    from torchvision.datasets.folder import default_loader

    path = tmp_path / ("a.jpg" if mode in {"CMYK", "YCbCr"} else "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, which torchvision does not undo
    more = {"transparency": bytes(range(256))} if mode == "P" else {}
    picture(16).convert(mode).save(path, exif=exif, **more)
    assert np.array_equal(rgb(str(path), str(path)).permute(1, 2, 0).numpy(), _quiet(default_loader, path))


def _quiet(load, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(load(str(path)))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_of_gray_become_eight(tmp_path, name):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 256 256 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(tmp_path / name)
    found = rgb(str(tmp_path / name), name)
    assert abs(found.double().mean().item() - 127.5) < 0.01
    assert (found.min().item(), found.max().item()) == (0, 255)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_no_known_range_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tif")
    with pytest.raises(
        BenchError, match=r"^x\.tif: not a readable image .mode [IF]: pixels of no known range"
    ):
        rgb(str(tmp_path / "a.tif"), "x.tif")
