"""The feature cache: one file per tensor, found by its key, bounded, safe between processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from torch import Tensor

from bench import tensors
from bench.contracts import Cache
from bench.records import BenchError

DEFAULT_GB = 8.0
UNFINISHED_SECONDS = 3600.0  # after which nobody is taken to be writing a file any more


def _limit(text: str | float) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise BenchError(f"BENCH_CACHE_GB: {text!r} is no number of gigabytes; write e.g. 8") from error


class FileCache(Cache):
    """Files below ``folder``; the longest unread ones go when all are larger than ``limit_gb``.

    A file is written whole or not at all, and one that was deleted or damaged is computed again, so
    that several processes may share the folder.
    """

    def __init__(self, folder: Path, limit_gb: float | None = None) -> None:
        self.folder = folder
        if limit_gb is None:
            limit_gb = _limit(os.environ.get("BENCH_CACHE_GB") or DEFAULT_GB)
        self.limit = limit_gb * 1e9

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

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
            self._make_room(value.numel() * value.element_size())
            tensors.save(self._path(key), {"value": value})

    def _make_room(self, size: int) -> None:
        files = []
        for path in self.folder.glob("*"):
            with contextlib.suppress(OSError):  # another process may have deleted it
                stat = path.stat()
                if path.name.startswith(".") and stat.st_mtime < time.time() - UNFINISHED_SECONDS:
                    path.unlink()  # its writer was killed
                else:
                    files.append((stat.st_mtime, stat.st_size, path))
        total = size + sum(s for _, s, _ in files)
        for _, used, path in sorted(files):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= used
