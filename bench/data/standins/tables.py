"""Stand-ins of the sets that are tables of small images: CIFAR-10, CIFAR-100, SVHN, STL-10."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from bench.data.standins.pictures import Pixels, stream, textures

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

Labels = NDArray[np.int64]


def cifar10(root: Path, count: int, form: str) -> None:
    """Five training batches and one of test images."""
    train, test = _drawn(10, count, 32, 0), _drawn(10, _fewer(count), 32, 1)
    parts = {f"data_batch_{i + 1}": (train[0][i::5], train[1][i::5]) for i in range(5)} | {"test_batch": test}
    if form == "binary":
        folder = _made(root / "cifar-10-batches-bin")
        for name, (pixels, labels) in parts.items():
            (folder / f"{name}.bin").write_bytes(_records(pixels, labels))
        (folder / "batches.meta.txt").write_text("".join(f"{name}\n" for name in _CIFAR10), "ascii")
        return
    folder = _made(root / "cifar-10-batches-py")
    for name, (pixels, labels) in parts.items():
        told = {
            "batch_label": name,
            "labels": labels.tolist(),
            "data": _flat(pixels),
            "filenames": _names(labels),
        }
        (folder / name).write_bytes(_python2(told))
    meta = {"num_cases_per_batch": len(parts["data_batch_1"][0]), "label_names": [*_CIFAR10], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(_python2(meta))


def cifar100(root: Path, count: int, form: str) -> None:
    """One file of training and one of test images, with fine and coarse labels."""
    parts = {"train": _drawn(100, count, 32, 2), "test": _drawn(100, _fewer(count), 32, 3)}
    fine_names, coarse_names = (
        [f"{kind}_{i:02d}" for i in range(n)] for kind, n in (("fine", 100), ("coarse", 20))
    )
    if form == "binary":
        folder = _made(root / "cifar-100-binary")
        for name, (pixels, labels) in parts.items():
            (folder / f"{name}.bin").write_bytes(_records(pixels, labels // 5, labels))
        for kind, names in (("fine", fine_names), ("coarse", coarse_names)):
            (folder / f"{kind}_label_names.txt").write_text("".join(f"{n}\n" for n in names), "ascii")
        return
    folder = _made(root / "cifar-100-python")
    for name, (pixels, labels) in parts.items():
        told = {
            "filenames": _names(labels),
            "batch_label": name,
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
            "data": _flat(pixels),
        }
        (folder / name).write_bytes(_python2(told))
    meta = {"fine_label_names": fine_names, "coarse_label_names": coarse_names}
    (folder / "meta").write_bytes(_python2(meta))


def svhn(root: Path, count: int, form: str) -> None:
    """MATLAB files of training, extra and test digits; the digit 0 has the label 10."""
    folder = _made(root / "svhn")
    for seed, (split, n) in enumerate({"train": count, "extra": count, "test": _fewer(count)}.items(), 4):
        pixels, labels = _drawn(10, n, 32, seed)
        table = {
            "X": pixels.transpose(1, 2, 3, 0),
            "y": np.where(labels, labels, 10).astype(np.uint8)[:, None],
        }
        savemat(folder / f"{split}_32x32.mat", table, do_compression=True)


def stl10(root: Path, count: int, form: str) -> None:
    """Binary files, pixels column by column; ten folds of a fifth of the training images each."""
    folder = _made(root / "stl10_binary")
    sizes = {"train": count, "test": count, "unlabeled": 4 * count}
    for seed, (split, n) in enumerate(sizes.items(), 7):
        pixels, labels = _drawn(10, n, 96, seed)
        (folder / f"{split}_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in _STL10), "ascii")
    folds = [_fold(count, stream(10, fold)) for fold in range(10)]
    (folder / "fold_indices.txt").write_text("".join(f"{' '.join(map(str, f))} \n" for f in folds), "ascii")


def _fold(count: int, rng: np.random.Generator) -> list[int]:
    """As many images of each class; image i is of class i % 10."""
    each = max(1, count // 5)
    found: list[int] = sorted(i for c in range(10) for i in (rng.permutation(count)[:each] * 10 + c).tolist())
    return found


def _drawn(classes: int, each: int, side: int, seed: int) -> tuple[Pixels, Labels]:
    """Images (N, side, side, 3) and labels; classes alternate, so that every part has all."""
    rng = stream(seed)
    labels = np.tile(np.arange(classes), each)
    parts = [textures(part, side, side, rng) for part in np.array_split(labels, max(1, len(labels) // 500))]
    return np.concatenate(parts), labels


def _fewer(count: int) -> int:
    """Test images a class: a fifth, as in CIFAR."""
    return max(2, count // 5)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _flat(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)


def _names(labels: Labels) -> list[str]:
    return [f"standin_s_{i:06d}.png" for i in range(len(labels))]


def _records(pixels: Pixels, *labels: Labels) -> bytes:
    heads = [column.astype(np.uint8)[:, None] for column in labels]
    return np.concatenate([*heads, _flat(pixels)], 1).tobytes()


def _python2(value: Mapping[str, Any]) -> bytes:
    """A pickle of Python 2's strings, as CIFAR's are: others read them by that."""
    file = io.BytesIO()
    _Python2(file, 2).dump(dict(value))
    return file.getvalue()


class _Python2(pickle._Pickler):  # noqa: SLF001 - the only pickler whose strings can be changed
    """Texts and bytes both become Python 2's str."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # noqa: SLF001

    def save_string(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        head = pickle.SHORT_BINSTRING + bytes([len(data)]) if len(data) < 256 else b""
        head = head or pickle.BINSTRING + len(data).to_bytes(4, "little")
        self.write(head + data)  # type: ignore[attr-defined]  # typeshed

    dispatch[str] = dispatch[bytes] = save_string
