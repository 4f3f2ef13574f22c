"""Stand-ins of PASCAL VOC 2007 and 2012 with SBD: pictures, annotations, lists, masks and proposals."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from bench.data import proposals
from bench.data._write_voc import add, palette
from bench.data.standins.pictures import Pixels, picture, stream
from bench.data.voc import VOC_CLASSES

_SIZES = ((500, 375), (375, 500), (500, 333), (334, 500))
_IGNORED = 255
_SBD = "benchmark_RELEASE/dataset"


@dataclass(frozen=True)
class _Thing:
    label: int
    box: tuple[int, int, int, int]  # pixel edges: left, top, right, bottom
    difficult: bool


@dataclass(frozen=True)
class _Scene:
    image: Image.Image
    things: tuple[_Thing, ...]
    turn: int  # how often all classes have had their first objects

    @property
    def segmented(self) -> bool:
        """As in VOC, some images have masks: of every four rounds the first two."""
        return self.turn % 4 < 2


def voc2007(root: Path, count: int, form: str) -> None:
    """Images of trainval and half as many of test, both tasks' lists, and proposals in the forms read and published."""
    base = root / "VOCdevkit" / "VOC2007"
    trainval, test = _scenes(count, 0, "{:06d}", 20), _scenes(max(2, count // 2), 20 * count, "{:06d}", 21)
    _write(base, trainval, test)
    found = [{i: _boxes(scene, int(i)) for i, scene in part.items()} for part in (trainval, test)]
    for name, boxes in zip(("trainval", "test"), found, strict=True):
        _proposals(base / f"voc_2007_{name}.mat", boxes)
    proposals.write(base / "proposals.npz", found[0] | found[1])


def voc2012(root: Path, count: int, form: str) -> None:
    """Images of trainval (there is no public test set), FCN's list seg11valid, and SBD's masks of all of them."""
    base = root / "VOCdevkit" / "VOC2012"
    scenes = _scenes(count, 0, "2008_{:06d}", 22)
    lists = _write(base, scenes, {})
    _lines(base / "ImageSets" / "Segmentation" / "seg11valid.txt", lists["Segmentation/val"])
    _sbd(root / _SBD, scenes, {"train": lists["Main/train"], "val": lists["Main/val"]})


def _scenes(count: int, first: int, form: str, seed: int) -> dict[str, _Scene]:
    """The class of an image's first object goes round, so that every list of two rounds has all classes."""
    return {form.format(first + i + 1): _scene(i, stream(seed, i)) for i in range(20 * count)}


def _scene(i: int, rng: np.random.Generator) -> _Scene:
    """One to three objects, none upon another; the first is never difficult."""
    width, height = _SIZES[i % len(_SIZES)]
    image = picture(20, width, height, rng)
    labels = (i % 20, (7 * i + 3) % 20, (3 * i + 11) % 20)[: 1 + i % 3]
    things = []
    for n, label in enumerate(labels):
        left = n * width // 3 + int(rng.integers(5, 25))
        top = int(rng.integers(5, height // 3))
        right, bottom = (
            left + int(rng.integers(60, width // 3 - 25)),
            int(rng.integers(height // 2, height - 5)),
        )
        image.paste(picture(label, right - left, bottom - top, rng), (left, top))
        things.append(_Thing(label, (left, top, right, bottom), n > 0 and (i + n) % 4 == 0))
    return _Scene(image, tuple(things), i // 20)


def _write(base: Path, scenes: Mapping[str, _Scene], test: Mapping[str, _Scene]) -> dict[str, list[str]]:
    """Everything of one year but SBD; returns the lists by TASK/NAME. Trainval is halved, round by round."""
    every = {**scenes, **test}
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (base / folder).mkdir(parents=True)
    for i, scene in every.items():
        scene.image.save(base / "JPEGImages" / f"{i}.jpg", quality=90)
        ET.ElementTree(_annotation(i, scene, base.name)).write(base / "Annotations" / f"{i}.xml")
        if scene.segmented:
            _painted(scene, objects=False).save(base / "SegmentationClass" / f"{i}.png")
            _painted(scene, objects=True).save(base / "SegmentationObject" / f"{i}.png")
    parts = {"trainval": list(scenes)} | ({"test": list(test)} if test else {})
    for turn, name in enumerate(("train", "val")):
        parts[name] = [i for i, scene in scenes.items() if scene.turn % 2 == turn]
    lists = {f"Main/{name}": ids for name, ids in parts.items()}
    lists |= {f"Segmentation/{name}": [i for i in ids if every[i].segmented] for name, ids in parts.items()}
    for name, ids in lists.items():
        _lines(base / "ImageSets" / f"{name}.txt", ids)
    for name, ids in parts.items():
        for label, kind in enumerate(VOC_CLASSES):
            column = [f"{i} {_presence(every[i], label):2d}" for i in ids]
            _lines(base / "ImageSets" / "Main" / f"{kind}_{name}.txt", column)
    return lists


def _presence(scene: _Scene, label: int) -> int:
    """+1 present, 0 only as difficult, -1 absent."""
    found = [thing.difficult for thing in scene.things if thing.label == label]
    return (-1 if not found else 0) if all(found) else 1


def _annotation(name: str, scene: _Scene, year: str) -> ET.Element:
    """VOC's XML; corners are 1-based and include their pixel."""
    root = ET.Element("annotation")
    add(root, {"folder": year, "filename": f"{name}.jpg"})
    add(ET.SubElement(root, "source"), {"database": "a stand-in"})
    add(ET.SubElement(root, "size"), {"width": scene.image.width, "height": scene.image.height, "depth": 3})
    add(root, {"segmented": int(scene.segmented)})
    for thing in scene.things:
        node, (left, top, right, bottom) = ET.SubElement(root, "object"), thing.box
        said = {"name": VOC_CLASSES[thing.label], "pose": "Unspecified", "truncated": 0}
        add(node, {**said, "difficult": int(thing.difficult)})
        corners = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
        add(ET.SubElement(node, "bndbox"), corners)
    ET.indent(root)
    return root


def _mask(scene: _Scene, *, objects: bool, border: int = 3) -> Pixels:
    """Classes (from 1), or objects (from 1), ignored at their borders and where they are difficult."""
    mask = np.zeros((scene.image.height, scene.image.width), np.uint8)
    for number, thing in enumerate(scene.things, 1):
        left, top, right, bottom = thing.box
        mask[top:bottom, left:right] = _IGNORED
        if not thing.difficult:
            inner = slice(top + border, bottom - border), slice(left + border, right - border)
            mask[inner] = number if objects else thing.label + 1
    return mask


def _painted(scene: _Scene, *, objects: bool) -> Image.Image:
    image = Image.fromarray(_mask(scene, objects=objects)).convert("P")
    image.putpalette(palette())
    return image


def _boxes(scene: _Scene, seed: int) -> proposals.Boxes:
    """Pixel edges (k, 4): each object, moved a little, and thirty boxes of chance."""
    rng = stream(23, seed)
    size = np.array([scene.image.width, scene.image.height] * 2)
    near = np.array([thing.box for thing in scene.things]) + rng.integers(-5, 6, (len(scene.things), 4))
    corner = rng.integers(0, size[:2] - 50, (30, 2))
    far = corner + rng.integers(20, 300, (30, 2))
    return np.concatenate([near, np.concatenate([corner, far], 1)]).clip(0, size).astype(np.float32)


def _proposals(path: Path, found: Mapping[str, proposals.Boxes]) -> None:
    """MATLAB cells as selective search's files have them: top, left, bottom, right, from 1, the last pixel included."""
    cells = np.empty((1, len(found)), object)
    for n, boxes in enumerate(found.values()):
        cells[0, n] = (boxes[:, [1, 0, 3, 2]] + [1, 1, 0, 0]).astype(np.float64)
    names = np.empty((len(found), 1), object)
    names[:, 0] = list(found)
    savemat(path, {"boxes": cells, "images": names}, do_compression=True)


def _sbd(folder: Path, scenes: Mapping[str, _Scene], lists: Mapping[str, Sequence[str]]) -> None:
    """SBD's lists and pictures, and its masks of classes and of objects as MATLAB structures."""
    for name in ("img", "cls", "inst"):
        (folder / name).mkdir(parents=True)
    for name, ids in lists.items():
        _lines(folder / f"{name}.txt", ids)
    for i, scene in scenes.items():
        scene.image.save(folder / "img" / f"{i}.jpg", quality=90)
        labels = [thing.label + 1 for thing in scene.things if not thing.difficult]
        clear = _Scene(scene.image, tuple(t for t in scene.things if not t.difficult), scene.turn)
        classes, objects = (_mask(clear, objects=kind, border=0) for kind in (False, True))
        table = {
            "Segmentation": classes,
            "Boundaries": _edges(classes, 20),
            "CategoriesPresent": sorted(set(labels)),
        }
        savemat(folder / "cls" / f"{i}.mat", {"GTcls": table}, do_compression=True)
        table = {"Segmentation": objects, "Boundaries": _edges(objects, len(labels)), "Categories": labels}
        savemat(folder / "inst" / f"{i}.mat", {"GTinst": table}, do_compression=True)


def _edges(mask: Pixels, count: int) -> Any:
    """Cells (count, 1) of sparse maps: where a class or an object begins from left to right."""
    cells = np.empty((count, 1), object)
    for n in range(count):
        inside = mask == n + 1
        cells[n, 0] = csc_matrix(inside & ~np.roll(inside, 1, 1), dtype=np.float64)
    return cells


def _lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "ascii")
