"""Lists that say the classes of images which lie flat in one folder, as those of ImageNet's validation set do."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from scipy.io import loadmat

from bench.records import BenchError

_REMEDY = "write NAME CLASS a line, CLASS the name of a class folder or its place among them, from 0"


def answers(path: Path, images: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The class name of each image.

    Lines are ``NAME CLASS``, ``NAME INDEX`` (of the sorted classes, from 0; Caffe's val.txt), ``NAME,CLASS ...``
    (Kaggle's LOC_val_solution.csv) or one ILSVRC2012_ID, in the order of the images' names (the devkit's ground truth,
    whose meta.mat must lie beside it).

    :param images: sorted; folders and endings do not count.
    :raises BenchError: a missing or unreadable list, an image that it does not name, a class that is not there.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: cannot be read as a list of images and classes; {_REMEDY}") from error
    lines = [re.split(r"[,\s]+", line.strip()) for line in text.splitlines() if line.strip()]
    if lines and lines[0][0] == "ImageId":  # Kaggle's head
        del lines[0]
    if lines and all(len(line) == 1 and line[0].isdigit() for line in lines):
        return _devkit(path, [int(line[0]) for line in lines], images, classes)
    told = {_stem(line[0]): line[1] for line in lines if len(line) > 1}
    missing = next((name for name in images if _stem(name) not in told), None)
    if missing is not None:
        raise BenchError(f"{path}: does not name {missing}; {_REMEDY}")
    return _named(path, [told[_stem(name)] for name in images], classes)


def _named(path: Path, words: list[str], classes: Sequence[str]) -> list[str]:
    known = set(classes)
    unknown = next((word for word in words if word not in known), None)
    if unknown is None:
        return words
    if not all(word.isdigit() and int(word) < len(classes) for word in words):
        raise BenchError(f"{path}: there is no class {unknown!r} among the {len(classes)}; {_REMEDY}")
    return [classes[int(word)] for word in words]


def _devkit(path: Path, ids: Sequence[int], images: Sequence[str], classes: Sequence[str]) -> list[str]:
    meta = path.with_name("meta.mat")
    try:
        rows = loadmat(str(meta), squeeze_me=True)["synsets"]
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except Exception as error:  # a damaged file fails in any way it likes
        raise BenchError(
            f"{meta}: missing or corrupt; the devkit's list needs it: unpack the devkit"
        ) from error
    if len(ids) != len(images):
        raise BenchError(f"{path}: {len(ids)} lines for {len(images)} images; unpack both again")
    return _named(path, [names.get(i, str(i)) for i in ids], classes)


def _stem(name: str) -> str:
    return os.path.splitext(name.rpartition("/")[2])[0]  # noqa: PTH122 - a million names
