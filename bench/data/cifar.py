"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), in the python form (pickles) or the binary one."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from bench.contracts import Dataset, Samples
from bench.data._files import (
    checksum_problems,
    content,
    content_name,
    download,
    in_range,
    known_split,
    records,
    samples,
)
from bench.records import BenchError

_PIXELS = 3 * 32 * 32
_RECONSTRUCT = np.empty(0).__reduce__()[0]  # its module has moved between versions
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not admitted")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Admits numpy arrays and plain values: nothing in a file can be run."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")
        return _ADMITTED[module, name]  # type: ignore[no-any-return]


def unpickle(path: Path, remedy: str) -> dict[Any, Any]:
    """A batch of the python form.

    :raises BenchError: missing, empty, truncated, or asking for more than arrays and plain values.
    """
    data = content(path, "a CIFAR batch (a python pickle)", remedy)
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise BenchError(f"{path}: refused, corrupt or truncated ({error}): {remedy}") from error
    if not isinstance(batch, dict):
        raise BenchError(f"{path}: corrupt: it holds a {type(batch).__name__}, expected a dict: {remedy}")
    return batch


class _Cifar(Dataset):
    """What both sets share."""

    image_side: ClassVar[int | None] = 32
    python_folder: ClassVar[str]
    binary_folder: ClassVar[str]
    python_files: ClassVar[dict[str, tuple[str, ...]]]
    binary_files: ClassVar[dict[str, tuple[str, ...]]]
    label_key: ClassVar[bytes]
    label_bytes: ClassVar[int]  # before each image of the binary form; the last is the label
    torchvision: ClassVar[type[datasets.CIFAR10]]

    @property
    def remedy(self) -> str:
        """The end of every error line."""
        return f"run `bench data get {self.name}`"

    def load(self, split: str, root: Path) -> Samples:
        """The "train" or "test" images, from the python form or, where that is absent, the binary one."""
        known_split(self, split)
        batches = self._batches(split, root)
        parts = [self._binary(path) if path.suffix else self._python(path) for path in batches]
        pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        return samples(content_name(self, split), pixels.reshape(-1, 3, 32, 32), labels)

    def paths(self, root: Path) -> list[Path]:
        """The batches of the form that is there."""
        return sorted(path for split in self.splits for path in self._batches(split, root))

    def _batches(self, split: str, root: Path) -> list[Path]:
        python, binary = root / self.python_folder, root / self.binary_folder
        if binary.is_dir() and not python.is_dir():
            return [binary / name for name in self.binary_files[split]]
        return [python / name for name in self.python_files[split]]

    def check(self, root: Path) -> list[str]:
        """Unreadable files, wrong counts, and files that are not the published ones."""
        problems = super().check(root)
        if problems:
            return problems
        published = dict(self.torchvision.train_list + self.torchvision.test_list)
        problems = checksum_problems(root / self.python_folder, published, self.remedy)
        for split, expected in (("train", 50_000), ("test", 10_000)):
            count = len(self.load(split, root))
            if count != expected:
                problems.append(
                    f"{root}: {self.name} {split} has {count} images, expected {expected}: {self.remedy}"
                )
        return problems

    def get(self, root: Path) -> None:
        """Download the python form into ``root``."""
        by_hand = (
            f"unpack the python version of www.cs.toronto.edu/~kriz/cifar.html to {root / self.python_folder}"
        )
        download(self.name, lambda: self.torchvision(str(root), download=True), by_hand)

    def _python(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        batch = unpickle(path, self.remedy)
        pixels, labels = batch.get(b"data"), batch.get(self.label_key)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
            raise BenchError(f"{path}: corrupt: b'data' is not uint8 (N, {_PIXELS}): {self.remedy}")
        if (
            not isinstance(labels, list)
            or len(labels) != len(pixels)
            or not all(type(v) is int for v in labels)
        ):
            raise BenchError(
                f"{path}: corrupt: {self.label_key!r} is not a label for each of {len(pixels)} images: {self.remedy}"
            )
        table = np.array(labels, np.int64)
        in_range(path, table, self.classes, self.remedy)
        return pixels, table

    def _binary(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        table = records(path, self.label_bytes + _PIXELS, "a CIFAR batch (binary version)", self.remedy)
        labels = table[:, self.label_bytes - 1].astype(np.int64)
        in_range(path, labels, self.classes, self.remedy)
        return table[:, self.label_bytes :], labels


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


@dataclass(frozen=True)
class Cifar10(_Cifar):
    """50,000 training and 10,000 test images of ten classes, 32 x 32."""

    name: ClassVar[str] = "cifar10"
    classes: ClassVar[int] = 10
    python_folder: ClassVar[str] = "cifar-10-batches-py"
    binary_folder: ClassVar[str] = "cifar-10-batches-bin"
    python_files: ClassVar[dict[str, tuple[str, ...]]] = {"train": _BATCHES, "test": ("test_batch",)}
    binary_files: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"{name}.bin" for name in _BATCHES),
        "test": ("test_batch.bin",),
    }
    label_key: ClassVar[bytes] = b"labels"
    label_bytes: ClassVar[int] = 1
    torchvision: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10


@dataclass(frozen=True)
class Cifar100(_Cifar):
    """50,000 training and 10,000 test images of a hundred (fine) classes, 32 x 32."""

    name: ClassVar[str] = "cifar100"
    classes: ClassVar[int] = 100
    python_folder: ClassVar[str] = "cifar-100-python"
    binary_folder: ClassVar[str] = "cifar-100-binary"
    python_files: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("train",), "test": ("test",)}
    binary_files: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("train.bin",), "test": ("test.bin",)}
    label_key: ClassVar[bytes] = b"fine_labels"
    label_bytes: ClassVar[int] = 2
    torchvision: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR100
