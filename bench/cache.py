"""The feature cache: one file per tensor, found by its key, bounded, safe between processes.

What memory holds is one safetensors file, read whole. What it does not is one ``.npy`` file that is written and
read a few rows at a time (numpy's ``np.load(path, mmap_mode="r")`` opens it too).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import artifacts, tensors
from bench.contracts import Cache, Room, Rows, Writer
from bench.features import Need, gigabytes
from bench.records import BenchError

DEFAULT_GB = 8.0
UNFINISHED_SECONDS = 3600.0  # after which nobody is taken to be writing a file any more
SYNC_BYTES = 256e6  # of a matrix: so much is written again after a crash


class FileCache(Cache):
    """Files below ``folder``; the longest unread ones go when all are larger than ``limit_gb``.

    A file is written whole or not at all, and one that was deleted or damaged is computed again, so
    that several processes may share the folder. A matrix that somebody reads or writes is not deleted.
    """

    def __init__(self, folder: Path, limit_gb: float | None = None) -> None:
        self.folder = folder
        self.limit = limit_gb * 1e9 if limit_gb is not None else gigabytes("BENCH_CACHE_GB", DEFAULT_GB)

    def _path(self, key: str, ending: str = "safetensors") -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{ending}"

    # ---- what memory holds ----

    def get(self, key: str) -> Tensor | None:
        """The tensor under ``key``, or nothing."""
        path = self._path(key)
        if not os.path.lexists(path):
            return None
        try:
            value = tensors.read(path)["value"]
        except (BenchError, KeyError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # its age is the time since it was last read
        return value

    def put(self, key: str, value: Tensor) -> None:
        """Keep a tensor; makes room first. What cannot be kept is computed again: it costs time, nothing else."""
        with contextlib.suppress(BenchError, OSError):
            if self._make_room(value.numel() * value.element_size()):
                tensors.save(self._path(key), {"value": value})

    # ---- what it does not ----

    def rows(self, key: str) -> Rows | None:
        """The matrix under ``key``, or nothing; it is not deleted as long as it is referred to."""
        path = self._path(key, "npy")
        try:
            with path.open("rb") as file:
                _lock(file, fcntl.LOCK_SH)
                if os.fstat(file.fileno()).st_nlink == 0:  # it was deleted in between
                    return None
                found = _Matrix(file, finite=bool(_noted(path).get("finite", True)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def writer(self, key: str, count: int, width: int, kept: str) -> Writer:
        """See :meth:`bench.contracts.Cache.writer`; one that was interrupted goes on."""
        need = Need(count, (width,), kept)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key, "part")
        stat = (
            path.stat() if path.exists() else None
        )  # what was begun counts already: its size, and what is written
        begun, written = (stat.st_size, stat.st_blocks * 512) if stat else (0, 0)
        if not self._make_room(need.size - begun, keep=path) or self._free() < need.size - written:
            raise BenchError(need.too_large_for(self.room()))
        return _FileWriter(path, self._path(key, "npy"), count, width, kept)

    def room(self) -> Room:
        """What writers may still take: unread files give way, those in use do not."""
        used, free = 0, self._free()
        for _, size, path in self._files():
            with contextlib.suppress(OSError):
                written = path.stat().st_blocks * 512
                busy = _in_use(path)
                used += size if busy else 0
                free += written - size if busy else written  # a writer will yet take what it has not written
        return Room(str(self.folder), max(0.0, self.limit - used), float(free))

    def _free(self) -> int:
        """Bytes of the disk that nobody uses."""
        folder = self.folder
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    # ---- the limit ----

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """All files with their age and the bytes they will have; what a killed writer left goes."""
        for path in self.folder.glob("*"):
            with contextlib.suppress(OSError):  # another process may have deleted it
                stat = path.stat()
                if path.name.startswith(".") and stat.st_mtime < time.time() - UNFINISHED_SECONDS:
                    path.unlink()
                else:
                    yield stat.st_mtime, stat.st_size, path

    def _make_room(self, size: float, keep: Path | None = None) -> bool:
        """Delete what was longest unread until ``size`` more bytes fit; whether they do."""
        if size > self.limit:
            return False
        files = sorted(self._files())
        total = size + sum(used for _, used, _ in files)
        for _, used, path in files:
            if total <= self.limit:
                break
            if path != keep and path.suffix != ".json" and not _in_use(path):
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)
                total -= used
        return total <= self.limit


def _lock(file: BinaryIO, how: int) -> None:
    """Hold a file against deletion; on a disk without locks, those who delete go by its age."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, how)


def _noted(path: Path) -> dict[str, Any]:
    """What stands beside a matrix: ``rows`` that are safely there, and whether they are ``finite``."""
    try:
        return artifacts.read_json(path.with_suffix(".json")) or {}
    except BenchError:
        return {}


def _in_use(path: Path) -> bool:
    """Whether somebody reads or writes a matrix."""
    if path.suffix not in {".npy", ".part"}:
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # no locks on this disk
        return path.stat().st_mtime > time.time() - UNFINISHED_SECONDS
    return False


class _Matrix(Rows):
    """A matrix in numpy's format, read by offset: pages that are mapped would count as this process's memory."""

    def __init__(self, file: BinaryIO, *, finite: bool = True) -> None:
        self.name, self.finite = file.name, finite
        self.fd = os.dup(file.fileno())  # shares the lock
        weakref.finalize(self, os.close, self.fd)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(version)
        shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
        self.start = file.tell()
        self.shape = (int(shape[0]), int(shape[1]))
        self.row = self.shape[1] * self.dtype.itemsize
        if os.fstat(file.fileno()).st_size != self.start + self.shape[0] * self.row:
            raise ValueError("truncated")

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        index = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows
        out = np.empty((len(index), self.shape[1]), self.dtype)
        if (
            len(index)
            and int(index[-1]) - int(index[0]) == len(index) - 1
            and bool((index.diff() == 1).all())
        ):
            self._read(out, int(index[0]))
        else:
            for line, place in zip(out, index.tolist(), strict=True):
                self._read(line, place)
        return torch.from_numpy(out).float()

    def _read(self, out: NDArray[Any], first: int) -> None:
        """Fill ``out`` with the rows from the ``first``-th on."""
        view, place = out.data.cast("B"), self.start + first * self.row
        while len(view):
            count = os.preadv(self.fd, [view], place)
            if not count:
                raise BenchError(f"{self.name}: truncated; delete it and it is made again")
            view, place = view[count:], place + count


class _FileWriter(Writer):
    """Writes ``part``, which becomes ``whole``; a ``.json`` beside it says how many rows are safely there."""

    def __init__(self, part: Path, whole: Path, count: int, width: int, kept: str) -> None:
        self.part, self.whole, self.count, self.dtype = part, whole, count, np.dtype(kept)
        with self._told():
            self.file = _held(part)
            weakref.finalize(self, self.file.close)
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": (count, width)}
            np.lib.format.write_array_header_1_0(self.file, header)
            self.start, self.row = self.file.tell(), width * self.dtype.itemsize
            size = self.start + count * self.row
            note = _noted(part) if os.fstat(self.file.fileno()).st_size == size else {}
            self.done, self.finite = int(note.get("rows", 0)), bool(note.get("finite", True))
            self.file.truncate(size)  # others see at once what will be used
            self.file.seek(self.start + self.done * self.row)
        self.unsafe = 0

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise BenchError(
                f"{self.part}: cannot be written: {reason}; free some space or move the cache (BENCH_CACHE)"
            ) from error

    def write(self, values: Tensor) -> None:
        """The next rows (n, d).

        :raises BenchError: the disk is full.
        """
        self.finite &= bool(values.isfinite().all())
        lines = np.ascontiguousarray(values.cpu().numpy(), self.dtype)
        with self._told():
            self.file.write(lines.data.cast("B"))
            self.done += len(lines)
            self.unsafe += lines.nbytes
            if self.unsafe >= SYNC_BYTES:
                self._sync()

    def _sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        artifacts.write_text(
            self.part.with_suffix(".json"), json.dumps({"rows": self.done, "finite": self.finite})
        )
        self.unsafe = 0

    def close(self) -> Rows:
        """Rows of the whole file, held as :meth:`FileCache.rows` holds them."""
        with self._told():
            self._sync()
            self.part.replace(self.whole)
            _lock(self.file, fcntl.LOCK_SH)
            self.file.seek(0)
        return _Matrix(self.file, finite=self.finite)


def _held(path: Path) -> BinaryIO:
    """A file to write, ours alone: who had it before may have finished or deleted it."""
    while True:
        file = path.open("r+b" if path.exists() else "w+b")
        _lock(file, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
