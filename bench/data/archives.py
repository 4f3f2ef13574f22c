"""Images that are read out of tars by number, without unpacking them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.data import _decode
from bench.data._tars import Index
from bench.records import BenchError


class Archived:
    """The images of some tars; each process opens the tars for itself.

    :param tars: where they lie; ``found``: what lies where in them (:func:`bench.data._tars.indexed`).
    :param order: int (N,): which image of all of them, one tar after the other, is image ``i``.
    """

    def __init__(self, tars: Sequence[Path], found: Sequence[Index], order: NDArray[np.int64]) -> None:
        self.tars = [str(tar) for tar in tars]
        which = np.repeat(np.arange(len(found)), [len(index.names) for index in found])
        names = np.concatenate([np.char.encode(index.names, "utf-8", "surrogateescape") for index in found])
        self.which, self.names = which[order], names[order]
        self.offsets = np.concatenate([index.offsets for index in found])[order]
        self.sizes = np.concatenate([index.sizes for index in found])[order]
        self.opened: dict[tuple[int, int], int] = {}  # file descriptors by process and tar

    def __len__(self) -> int:
        return len(self.offsets)

    def path(self, i: int) -> str:
        """The tar of image ``i``, and its name there."""
        return f"{self.tars[self.which[i]]}:{os.fsdecode(bytes(self.names[i]))}"

    def read(self, i: int) -> Tensor:
        """Image ``i`` as uint8 (3, H, W); BenchError when it cannot be read."""
        size = int(self.sizes[i])
        try:
            data = os.pread(self._file(int(self.which[i])), size, int(self.offsets[i]))
        except OSError as error:
            raise BenchError(
                f"{self.path(i)}: cannot be read ({error.strerror}); restore the tar and run again"
            ) from error
        if len(data) < size:
            raise BenchError(f"{self.path(i)}: the tar is truncated; copy it again")
        return _decode.rgb(io.BytesIO(data), self.path(i))

    def _file(self, tar: int) -> int:
        key = (os.getpid(), tar)
        if key not in self.opened:
            self.opened[key] = os.open(self.tars[tar], os.O_RDONLY)
        return self.opened[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "opened": {}}

    def __del__(self) -> None:
        for (process, _), file in getattr(self, "opened", {}).items():
            if process == os.getpid():
                os.close(file)
