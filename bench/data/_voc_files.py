"""The files of VOC (Everingham et al., IJCV 2010) and SBD (Hariharan et al., ICCV 2011), one at a time."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from torch import Tensor

from bench.data._files import content
from bench.records import BenchError

IGNORED = 255  # in a mask: a boundary, or an object that is difficult

Objects: TypeAlias = "dict[str, Tensor]"  # boxes (k, 4), labels (k,), difficult (k,)


def ids(path: Path, remedy: str) -> list[str]:
    """The image ids of a list: the first word of each line.

    :raises BenchError: missing, empty, not text, or an id twice.
    """
    try:
        lines = content(path, "a list of image ids, one a line", remedy).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise BenchError(f"{path}: corrupt: not a list of image ids ({error}): {remedy}") from error
    found = [line.split()[0] for line in lines if line.strip()]
    if len(set(found)) != len(found):
        twice = next(i for n, i in enumerate(found) if i in found[:n])
        raise BenchError(f"{path}: corrupt: image {twice!r} is listed twice: {remedy}")
    return found


def presence(path: Path, wanted: Sequence[str], remedy: str) -> NDArray[np.int8]:
    """One class's column of ``ImageSets/Main/CLASS_SPLIT.txt``: +1 present, 0 only as difficult, -1 absent; (N,)."""
    text = content(path, "a line an image: its id and -1, 0 or 1", remedy).decode("ascii", "replace")
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and (len(words) != 2 or words[1] not in {"-1", "0", "1"}):
            raise BenchError(
                f"{path}: corrupt: line {number} is {line!r}, not an id and -1, 0 or 1: {remedy}"
            )
        if words:
            found[words[0]] = int(words[1])
    missing = next((i for i in wanted if i not in found), None)
    if missing is not None:
        raise BenchError(f"{path}: truncated: it says nothing of image {missing!r}: {remedy}")
    return np.array([found[i] for i in wanted], np.int8)


def objects(path: Path, classes: Sequence[str], remedy: str) -> Objects:
    """The objects of one ``Annotations/ID.xml``.

    Published corners are 1-based and inclusive; here they are pixel edges: left, top, right, bottom, so that
    widths are plain differences.
    """
    data = content(path, "a VOC annotation", remedy)
    try:
        found = [_object(node, classes) for node in ET.fromstring(data).iter("object")]  # noqa: S314 - expat refuses entity bombs
    except (ET.ParseError, ValueError, AttributeError, TypeError) as error:
        raise BenchError(f"{path}: corrupt ({error}): {remedy}") from error
    boxes, labels, difficult = zip(*found, strict=True) if found else ((), (), ())
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "difficult": torch.tensor(difficult, dtype=torch.bool),
    }


def _object(node: ET.Element, classes: Sequence[str]) -> tuple[tuple[float, ...], int, bool]:
    name, frame = node.findtext("name"), node.find("bndbox")
    if name not in classes:
        raise ValueError(f"there is no class {name!r}; classes are: {', '.join(classes)}")
    if frame is None:
        raise ValueError(f"an object {name!r} without a bndbox")
    left, top, right, bottom = (float(frame.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
    if not (1 <= left <= right and 1 <= top <= bottom):
        raise ValueError(f"a box of {left:g}, {top:g} to {right:g}, {bottom:g}")
    edges = (left - 1, top - 1, right, bottom)
    return edges, classes.index(name), node.findtext("difficult", "0").strip() == "1"


def multilabel(boxes: Sequence[Mapping[str, Tensor]], classes: int) -> Tensor:
    """int8 (N, C) of an image's objects: +1 present, 0 only as difficult, -1 absent."""
    out = torch.full((len(boxes), classes), -1, dtype=torch.int8)
    for row, found in zip(out, boxes, strict=True):
        row[found["labels"][found["difficult"]]] = 0
        row[found["labels"][~found["difficult"]]] = 1
    return out


def mask(path: Path, classes: int, remedy: str) -> Tensor:
    """uint8 (H, W): 0 background, label + 1, 255 ignored; from a palette PNG (VOC) or a .mat file (SBD)."""
    data = content(path, "a mask of classes", remedy)
    try:
        if path.suffix == ".mat":
            truth = loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0]  # type: ignore[arg-type]  # a file will do
        else:
            with Image.open(io.BytesIO(data)) as image:
                truth = np.array(image)
    except Exception as error:  # a damaged file fails in any way it likes
        raise BenchError(f"{path}: corrupt or truncated ({error}): {remedy}") from error
    if truth.ndim != 2 or truth.dtype != np.uint8:
        raise BenchError(
            f"{path}: corrupt: not a mask of one byte a pixel, {truth.dtype} {truth.shape}: {remedy}"
        )
    worst = int(np.max(truth[truth != IGNORED], initial=0))
    if worst > classes:
        raise BenchError(f"{path}: corrupt: class {worst}, expected 0 to {classes} or {IGNORED}: {remedy}")
    return torch.from_numpy(np.ascontiguousarray(truth))


_ENDS = {
    ".jpg": (b"\xff\xd8", b"\xff\xd9"),
    ".png": (b"\x89PNG", b"IEND\xaeB`\x82"),
    ".mat": (b"MATLAB", b""),
}


def damage(path: Path) -> str:
    """What is wrong with an image or mask file, by its first and last bytes; empty when nothing is."""
    first, last = _ENDS[path.suffix]
    try:
        with path.open("rb") as file:
            head = file.read(len(first))
            file.seek(0, io.SEEK_END)
            file.seek(max(0, file.tell() - 64))
            tail = file.read()
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    return "" if head == first and last in tail else f"{path}: truncated or not a {path.suffix} file"
