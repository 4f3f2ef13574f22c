"""What lies where in a tar: names, places and sizes of its images, read once and kept in the cache.

Plain tars of class folders, tars of tars (ImageNet's training images: ``n01440764.tar`` within), and WebDataset's
shards (``KEY.jpg`` beside ``KEY.cls``, or ``KEY.json`` with "label" or "cls"). Free of torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bench.cores import usable_cores
from bench.data._listing import is_data, is_image
from bench.records import BenchError
from bench.registry import cache_folder

_REMEDY = "copy it again"
_KEYS = ("label", "cls")  # of the JSON beside an image


@dataclass(frozen=True)
class Index:
    """The images of a tar, in its order."""

    names: NDArray[np.str_]  # CLASS/.../NAME; a top-level image belongs to the tar's own name
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]  # of shards, else -1


def indexed(tars: Sequence[Path]) -> list[Index]:
    """The index of each tar: made in parallel where it is not kept.

    :raises BenchError: a missing, compressed or truncated tar, by its path.
    """
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        return list(pool.map(_index, tars))


def _index(tar: Path) -> Index:
    try:
        stat = tar.stat()
    except OSError as error:
        raise BenchError(f"{tar}: missing or not to be read ({error.strerror}); {_REMEDY}") from error
    told = f"{tar.absolute()} {stat.st_size} {stat.st_mtime_ns}"
    path = cache_folder() / "tars" / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.npz"
    found = _kept(path)
    if found is None:
        found = _scanned(tar)
        _keep(path, found)
    return found


def _kept(path: Path) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Index(**{key: file[key] for key in ("names", "offsets", "sizes", "labels")})
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _keep(path: Path, found: Index) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez_compressed(file, **vars(found))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # what cannot be kept costs time, nothing else


def _scanned(tar: Path) -> Index:
    images: list[tuple[str, int, int]] = []
    labels: dict[str, int] = {}
    try:
        with tar.open("rb") as file:
            _check_end(file)
            for name, offset, size in _members(file, tar.stem):
                if is_image(name):
                    images.append((name, offset, size))
                elif name.endswith((".cls", ".json")):
                    file.seek(offset)
                    labels[_key(name)] = _label(file.read(size), name)
    except tarfile.ReadError as error:
        told = f"no plain tar, or truncated ({error})"
        raise BenchError(f"{tar}: {told}: gunzip it where it is compressed, else {_REMEDY}") from error
    except (OSError, tarfile.TarError, ValueError) as error:
        raise BenchError(f"{tar}: cannot be read ({error}); {_REMEDY}") from error
    if not images:
        raise BenchError(f"{tar}: there is no image in it; {_REMEDY}")
    names, offsets, sizes = zip(*images, strict=True)
    known = [labels.get(_key(name), -1) for name in names]
    return Index(np.array(names), np.array(offsets), np.array(sizes), np.array(known, np.int64))


def _check_end(file: IO[bytes]) -> None:
    """Tarfile itself is content with a file that ends in the middle of a header."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 512))
    if size < 1024 or any(file.read()):
        raise tarfile.ReadError("it does not end as tars do")
    file.seek(0)


def _members(file: IO[bytes], stem: str, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Name, place in the file and size of each member that is data, those of tars within included."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if not is_data(name) or member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"{member.name} is a link or a sparse file, not an image")
            place = start + member.offset_data
            if name.endswith(".tar"):
                inner = io.BufferedReader(_Window(file, member.offset_data, member.size))
                stem = PurePosixPath(name).stem
                yield from ((f"{stem}/{n}", at, size) for n, at, size in _members(inner, "", place))
            else:
                yield f"{stem}/{name}" if stem and "/" not in name else name, place, member.size
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them are not kept


class _Window(io.RawIOBase):
    """A tar within a tar, as a file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__()
        self.file, self.start, self.size, self.at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.start + self.at)
        data = self.file.read(max(0, min(len(buffer), self.size - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _key(name: str) -> str:
    """WebDataset's key: up to the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _label(data: bytes, name: str) -> int:
    """What stands in ``KEY.cls`` or ``KEY.json``; -1 where the JSON has no label."""
    if name.endswith(".cls"):
        return int(data)
    table = json.loads(data)
    found = next((table[key] for key in _KEYS if key in table), -1) if isinstance(table, dict) else -1
    if not isinstance(found, int):
        raise ValueError(f"{name}: the label {found!r} is no whole number")  # noqa: TRY004 - a value in a file
    return found
