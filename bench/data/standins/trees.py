"""Stand-ins of the sets that are folders of JPEGs: ImageNet, Places205, Places365."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from bench.data.standins.pictures import picture, stream

# Width and height: mostly ImageNet's usual ones, some smaller than a crop, some large.
_SIZES = (
    (500, 375),
    (375, 500),
    (500, 333),
    (400, 300),
    (224, 224),
    (120, 160),
    (640, 480),
    (500, 375),
    (90, 67),
)
_LARGE = (1600, 1200)
_ORIENTATION = 0x0112  # EXIF's


def imagenet(root: Path, count: int, form: str) -> None:
    """A thousand class folders; JPEGs of many sizes and kinds; lists that show a hundredth and a tenth of the labels."""
    base = root / "imagenet"
    wnids = [f"n{1440764 + 1009 * c:08d}" for c in range(1000)]
    names = {wnid: [f"{wnid}_{10 + 7 * i}.JPEG" for i in range(count)] for wnid in wnids}
    for c, wnid in enumerate(wnids):
        for i, name in enumerate(names[wnid]):
            _save(base / "train" / wnid / name, c, c * count + i)
        _save(base / "val" / wnid / f"ILSVRC2012_val_{c + 1:08d}.JPEG", c, 1000 * count + c)
    for s4l, simclr, share in (("13000", "1percent", 100), ("128000", "10percent", 10)):
        each = max(1 if share == 100 else 2, count // share)
        shown = [name for wnid in wnids for name in names[wnid][:each]]
        (base / f"label_map_count_{s4l}_index_0").write_text(json.dumps({"values": shown}), "ascii")
        (base / f"{simclr}.txt").write_text("".join(f"{name}\n" for name in shown), "ascii")


def _save(path: Path, label: int, number: int) -> None:
    """As in ImageNet some are gray, CMYK, turned by EXIF, or PNGs by the name of JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = stream(11, number)
    size = _LARGE if number % 200 == 77 else _SIZES[number % len(_SIZES)]
    image = picture(label, *size, rng)
    exif = Image.Exif()
    kind = number % 40
    if kind in {5, 15}:
        image = image.convert("L" if kind == 5 else "CMYK")
    if kind == 35:
        exif[_ORIENTATION] = 6
    image.save(path, "PNG" if kind == 25 else "JPEG", quality=85, exif=exif)


def places205(root: Path, count: int, form: str) -> None:
    """A folder a class, JPEGs of 256 x 256."""
    for c in range(205):
        for split, n in (("train", count), ("val", 1)):
            for i in range(n):
                name = f"gsun_{np.base_repr(i, 36).lower():0>8}.jpg"
                _place(root / "places205" / split / f"place_{c:03d}" / name, c, 12, i, split == "val")


def places365(root: Path, count: int, form: str) -> None:
    """Training images in folders as a/abbey, some one deeper, a flat "val", and the lists of classes and images."""
    base = root / "places365"
    base.mkdir()
    places = sorted(_kind(c) for c in range(365))
    train, val = [], []
    for c, kind in enumerate(places):
        train += [f"{kind}/{i + 1:08d}.jpg {c}" for i in range(count)]
        val.append(f"Places365_val_{c + 1:08d}.jpg {c}")
        for i in range(count):
            _place(base / "data_256_standard" / f"{kind[1:]}/{i + 1:08d}.jpg", c, 13, i, test=False)
        _place(base / "val_256" / f"Places365_val_{c + 1:08d}.jpg", c, 13, 0, test=True)
    lists = {
        "categories_places365.txt": [f"{kind} {c}" for c, kind in enumerate(places)],
        "places365_train_standard.txt": train,
        "places365_val.txt": val,
    }
    for name, lines in lists.items():
        (base / name).write_text("".join(f"{line}\n" for line in lines), "ascii")


def _kind(c: int) -> str:
    letter = "abcdefghijklmnopqrstuvwxyz"[c % 26]
    return f"/{letter}/{letter}_place_{c:03d}" + ("/outdoor" if c % 9 == 0 else "")


def _place(path: Path, label: int, seed: int, i: int, test: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(label, 256, 256, stream(seed, label, i, int(test))).save(path, "JPEG", quality=85)
