"""Boxes that might hold an object, from a file: read in the forms they are published in, written in one.

Ours is an .npz with ``ids`` (N,) texts, ``counts`` int64 (N,) and ``boxes`` float32 (sum of counts, 4):
pixel edges left, top, right, bottom.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import loadmat
from torch import Tensor

from bench.data._files import content
from bench.data.cifar import unpickle
from bench.records import BenchError

Boxes: TypeAlias = "NDArray[np.float32]"

REMEDY = "write it with `bench data convert`"
ORDERS = {"xyxy": (0, 1, 2, 3), "yxyx": (1, 0, 3, 2)}


def attach(
    annotations: Sequence[Mapping[str, Tensor]], ids: Sequence[str], path: Path
) -> list[dict[str, Tensor]]:
    """The annotations of the images ``ids``, each with its ``proposals`` (k, 4) from the file.

    :raises BenchError: a missing or corrupt file, an image without proposals.
    """
    found = read(path)
    missing = next((i for i in ids if i not in found), None)
    if missing is not None:
        raise BenchError(f"{path}: no proposals for image {missing!r}: {REMEDY} from a list that has them")
    return [{**a, "proposals": torch.from_numpy(found[i])} for a, i in zip(annotations, ids, strict=True)]


def read(path: Path) -> dict[str, Boxes]:
    """The proposals (k, 4) of each image id, from our own form."""
    table = _arrays(path)
    try:
        ids, counts, boxes = (table[key] for key in ("ids", "counts", "boxes"))
    except KeyError as error:
        raise BenchError(f"{path}: there is no array {error}; {REMEDY}") from error
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(ids) != len(counts) or counts.sum() != len(boxes):
        raise BenchError(
            f"{path}: corrupt: {len(ids)} ids, {counts.sum()} boxes counted, boxes {boxes.shape}; {REMEDY}"
        )
    parts = np.split(np.ascontiguousarray(boxes, np.float32), np.cumsum(counts)[:-1])
    return dict(zip(map(str, ids), parts, strict=True))


def write(path: Path, proposals: Mapping[str, Boxes]) -> None:
    """Our own form; see the module."""
    counts = np.array([len(boxes) for boxes in proposals.values()], np.int64)
    joined = np.concatenate([np.empty((0, 4), np.float32), *proposals.values()])
    with path.open("wb") as file:
        np.savez_compressed(file, ids=np.array(list(proposals), np.str_), counts=counts, boxes=joined)


def convert(source: Path, order: str = "xyxy", base: int = 0, ids: Path | None = None) -> dict[str, Boxes]:
    """The proposals of a file in another form, by image id.

    Corners that include their last pixel become edges: a 1-based (x1, y1, x2, y2) is (x1 - 1, y1 - 1, x2, y2).

    * ``.mat``: cells ``boxes`` (k, 4) and ``images`` (ids), as Girshick's selective search;
    * ``.npz``: an array (k, 4) an image, named by its id, or our own form (taken as it is);
    * ``.json``: ``{id: [[x1, y1, x2, y2], ...]}``;
    * ``.pkl``: ``boxes`` and ``ids``, ``indexes`` or ``images`` of a dict of arrays and plain values; nothing is run.

    :param order: of a box's four numbers: xyxy, or yxyx (selective search).
    :param base: of the pixel numbers: 0 or 1 (MATLAB).
    :param ids: a list of ids, one a line, for files that hold none.
    :raises BenchError: a missing, corrupt or unknown file, another order, boxes that are none.
    """
    if order not in ORDERS or base not in {0, 1}:
        raise BenchError(
            f"convert: order must be {' or '.join(ORDERS)} and base 0 or 1, not {order!r} and {base}"
        )
    readers = {".mat": _mat, ".npz": _npz, ".json": _json, ".pkl": _pickle, ".pickle": _pickle}
    if source.suffix not in readers:
        raise BenchError(f"{source}: unknown form; write one of {', '.join(readers)}")
    if source.suffix == ".npz" and {"ids", "counts", "boxes"} <= set(_arrays(source)):
        return read(source)
    names, boxes = readers[source.suffix](source)
    if ids is not None:
        names = [
            line.split()[0]
            for line in content(ids, "a list of ids", "name it").decode().splitlines()
            if line.strip()
        ]
    if names is None or len(names) != len(boxes):
        count = "no" if names is None else str(len(names))
        raise BenchError(
            f"{source}: {count} ids for the boxes of {len(boxes)} images; name a list with --ids"
        )
    return {name: _edges(found, order, base, source) for name, found in zip(names, boxes, strict=True)}


def _edges(values: Any, order: str, base: int, source: Path) -> Boxes:
    try:
        boxes = np.asarray(values, np.float32).reshape(-1, 4)[:, ORDERS[order]]
    except (ValueError, TypeError) as error:
        raise BenchError(f"{source}: corrupt: an image's boxes are not (k, 4) numbers ({error})") from error
    edges: Boxes = boxes + np.array([-base, -base, 1 - base, 1 - base], np.float32)
    if not np.isfinite(edges).all() or (edges[:, 2:] <= edges[:, :2]).any():
        raise BenchError(f"{source}: corrupt: a box ends before it begins; is its order {order}?")
    return edges


Found: TypeAlias = "tuple[list[str] | None, Sequence[Any]]"


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    data = content(path, "an .npz of proposals", REMEDY)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise BenchError(f"{path}: refused, corrupt or truncated ({error}); {REMEDY}") from error


def _npz(path: Path) -> Found:
    table = _arrays(path)
    return list(table), list(table.values())


def _json(path: Path) -> Found:
    try:
        table = json.loads(content(path, "JSON: {id: boxes}", "name it"))
    except ValueError as error:
        raise BenchError(f"{path}: not JSON ({error})") from error
    if not isinstance(table, dict):
        raise BenchError(f"{path}: expected {{id: boxes}}, not a {type(table).__name__}")
    return list(table), list(table.values())


def _mat(path: Path) -> Found:
    data = content(path, "a MATLAB file with boxes and images", "name it")
    try:
        table = loadmat(io.BytesIO(data))  # type: ignore[arg-type]  # a file will do
        boxes = list(table["boxes"].ravel())
        names = (
            [str(np.asarray(i).ravel()[0]) for i in table["images"].ravel()] if "images" in table else None
        )
    except Exception as error:  # a damaged file fails in any way it likes
        raise BenchError(f"{path}: corrupt, truncated or without boxes ({error})") from error
    return names, boxes


def _pickle(path: Path) -> Found:
    table = {_text(key): value for key, value in unpickle(path, "give arrays and plain values alone").items()}
    if "boxes" not in table:
        raise BenchError(f"{path}: there is no 'boxes'; it has: {', '.join(sorted(table))}")
    names = next((table[key] for key in ("ids", "indexes", "images") if key in table), None)
    return None if names is None else list(map(_text, names)), list(table["boxes"])


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def summary(proposals: Mapping[str, Boxes]) -> str:
    """What was read, in a line."""
    counts = [len(boxes) for boxes in proposals.values()]
    return f"{len(counts)} images, {sum(counts)} boxes, {min(counts, default=0)} to {max(counts, default=0)} an image"
