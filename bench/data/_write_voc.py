"""``scenes`` in VOC's own form on disk, so that whatever reads VOC can be tried without it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from bench import regions
from bench.contracts import Samples
from bench.data import proposals
from bench.data._layout import CLASSES
from bench.data.scenes import Scenes
from bench.data.sources import Files
from bench.records import BenchError

PROPOSALS = "proposals.npz"
QUALITY = 100  # JPEG's, without subsampling: pixels come back to within a few levels

_FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationClass")


def write(scenes: Scenes, folder: Path, finder: str = "") -> int:
    """The training and test images of ``scenes`` below ``folder``; returns their number.

    Of the training images (trainval) every second is in train, the rest in val, as about half are in VOC.

    :param finder: ``selective_search`` or ``windows``: what finds each image's proposals, which are then written
        beside the images (``proposals.npz``); "": there are none.
    :raises BenchError: the folder exists and holds something else; OpenCV is needed and not installed.
    """
    find = regions.finder(finder) if finder else None
    if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - _names()):
        raise BenchError(
            f"{folder}: is there already, and not as this command writes it; name another folder"
        )
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    parts = {split: scenes.load(split, folder) for split in ("train", "test")}
    first = {"train": 1, "test": 1 + len(parts["train"])}
    named = {split: [f"{first[split] + i:06d}" for i in range(len(part))] for split, part in parts.items()}
    for split, part in parts.items():
        _images(part, named[split], folder)
    present = {
        i: row for split, part in parts.items() for i, row in zip(named[split], _presence(part), strict=True)
    }
    trainval = named["train"]
    lists = {"train": trainval[::2], "val": trainval[1::2], "trainval": trainval, "test": named["test"]}
    for name, ids in lists.items():
        _list(folder, name, ids, present)
    (folder / PROPOSALS).unlink(missing_ok=True)  # of images that are no more
    if find is not None:
        files = Files([folder / "JPEGImages" / f"{i}.jpg" for i in present])
        found = {i: find(files.read(n)).numpy() for n, i in enumerate(present)}
        proposals.write(folder / PROPOSALS, found)
    return len(present)


def _names() -> set[str]:
    return {PROPOSALS, *(name.partition("/")[0] for name in _FOLDERS)}


def _presence(part: Samples) -> list[list[int]]:
    assert part.multilabel is not None  # scenes always have them
    rows: list[list[int]] = part.multilabel.tolist()
    return rows


def _images(part: Samples, ids: Sequence[str], folder: Path) -> None:
    """The picture, its annotation and its mask, for each image."""
    assert part.boxes is not None and part.masks is not None  # noqa: PT018 - scenes always have them
    (pixels,) = next(part.images.views([torch.arange(len(part))], [lambda images, _: images], 0, 0))
    for name, image, found, mask in zip(ids, pixels, part.boxes, part.masks, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(folder / "JPEGImages" / f"{name}.jpg", quality=QUALITY, subsampling=0)
        ET.ElementTree(_annotation(name, image.shape, found)).write(folder / "Annotations" / f"{name}.xml")
        painted = Image.fromarray(mask.numpy()).convert("P")
        painted.putpalette(palette())
        painted.save(folder / "SegmentationClass" / f"{name}.png")


def _annotation(name: str, shape: Sequence[int], found: Mapping[str, Tensor]) -> ET.Element:
    """VOC's XML; corners are 1-based and include their pixel."""
    root = ET.Element("annotation")
    add(root, {"folder": "scenes", "filename": f"{name}.jpg"})
    size = ET.SubElement(root, "size")
    add(size, {"width": shape[2], "height": shape[1], "depth": shape[0]})
    add(root, {"segmented": 1})
    rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["difficult"].tolist(), strict=True)
    for (left, top, right, bottom), label, difficult in rows:
        node = ET.SubElement(root, "object")
        add(
            node, {"name": CLASSES[label], "pose": "Unspecified", "truncated": 0, "difficult": int(difficult)}
        )
        corners = {"xmin": int(left) + 1, "ymin": int(top) + 1, "xmax": int(right), "ymax": int(bottom)}
        add(ET.SubElement(node, "bndbox"), corners)
    ET.indent(root)
    return root


def add(node: ET.Element, values: Mapping[str, object]) -> None:
    """Children of a node, a text each."""
    for key, value in values.items():
        ET.SubElement(node, key).text = str(value)


def _list(folder: Path, name: str, ids: Sequence[str], present: Mapping[str, Sequence[int]]) -> None:
    """The list for both tasks, and for each class who has it."""
    for task in ("Main", "Segmentation"):
        _lines(folder / "ImageSets" / task / f"{name}.txt", ids)
    for label, kind in enumerate(CLASSES):
        column = [f"{i} {present[i][label]:2d}" for i in ids]
        _lines(folder / "ImageSets" / "Main" / f"{kind}_{name}.txt", column)


def _lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "ascii")


def palette() -> list[int]:
    """VOC's colors: the bits of a class, spread over red, green and blue from the highest down."""
    spread = [
        [sum((c >> (3 * b + k) & 1) << (7 - b) for b in range(3)) for k in range(3)] for c in range(256)
    ]
    return [value for color in spread for value in color]
