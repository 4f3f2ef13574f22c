"""Where images come from: tensors that lie on the device, or files that are read as they are needed.

Both give the same views of the same images: a view's random numbers hang on (seed, epoch, image, view)
alone, so neither batches nor workers nor the way of storage change a draw.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bench.contracts import Frame, Images
from bench.cores import usable_cores
from bench.data import _decode, loading
from bench.data.loading import Reader
from bench.draws import Draws
from bench.records import BenchError


class Files:
    """Image files, decoded by PIL to RGB.

    The paths are kept as one array of bytes: a list of a million objects would be copied into each worker.
    """

    def __init__(self, paths: Sequence[str | Path] | NDArray[np.bytes_]) -> None:
        self.paths = (
            paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(p) for p in paths], np.bytes_)
        )

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> str:
        """Where image ``i`` lies."""
        return os.fsdecode(bytes(self.paths[i]))

    def read(self, i: int) -> Tensor:
        """Image ``i`` as uint8 (3, H, W); BenchError when it cannot be read."""
        return _decode.rgb(self.path(i), self.path(i))


class Chosen:
    """Some images of a reader, or of several one after the other."""

    def __init__(self, readers: Sequence[Reader], indices: NDArray[np.int64]) -> None:
        self.readers, self.indices = list(readers), indices
        self.ends = np.cumsum([len(reader) for reader in self.readers])

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, i: int) -> Tensor:
        """Image ``i`` as uint8 (3, H, W)."""
        reader, at = self._find(i)
        return reader.read(at)

    def path(self, i: int) -> str:
        """Where image ``i`` lies, or "" where its reader does not say."""
        reader, at = self._find(i)
        path = getattr(reader, "path", None)
        return path(at) if path else ""

    def _find(self, i: int) -> tuple[Reader, int]:
        at = int(self.indices[i])
        which = int(np.searchsorted(self.ends, at, side="right"))
        return self.readers[which], at - int(self.ends[which]) + len(self.readers[which])


class Resident(Images):
    """Images of one size that lie on a device; views are made for whole batches at once.

    :param pixels: uint8 (N, 3, H, W). ``side`` is set where the images are square.
    """

    def __init__(self, pixels: Tensor, *, color: bool = True) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise BenchError(f"images must be uint8 (N, 3, H, W), not {pixels.dtype} {tuple(pixels.shape)}")
        self.pixels, self.color = pixels, color
        self.side = pixels.shape[-1] if pixels.shape[-1] == pixels.shape[-2] else None

    def __len__(self) -> int:
        return len(self.pixels)

    def views(
        self, batches: Iterable[Tensor], frames: Sequence[Frame], seed: int, epoch: int | Iterable[int]
    ) -> Iterator[list[Tensor]]:
        """One tensor (n, 3, h, w) a frame for each batch, on the device of the pixels."""
        for batch, e in zip(batches, _epochs(epoch), strict=False):
            index = batch.to(self.pixels.device, torch.int64, non_blocking=True)
            images = self.pixels.index_select(0, index)
            yield [frame(images, Draws(seed, e, index, stream=v)) for v, frame in enumerate(frames)]

    def to(self, device: torch.device) -> Resident:
        """The same images on another device."""
        return Resident(self.pixels.to(device), color=self.color)


def _epochs(epoch: int | Iterable[int]) -> Iterator[int]:
    """The epoch of each batch."""
    return itertools.repeat(epoch) if isinstance(epoch, int) else iter(epoch)


class Streamed(Images):
    """Images of any size that are read and framed one at a time, by worker processes.

    :param source: paths of image files, or a :class:`Reader`.
    :param workers: processes that read; 0 reads in this one; None: one a usable CPU, at most 8.
    """

    def __init__(
        self,
        source: Sequence[str | Path] | Reader,
        *,
        workers: int | None = None,
        side: int | None = None,
        color: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.reader: Reader = source if isinstance(source, Reader) else Files(source)
        self.workers = min(8, usable_cores()) if workers is None else workers
        self.side, self.color, self.device = side, color, device or torch.device("cpu")

    def __len__(self) -> int:
        return len(self.reader)

    def views(
        self, batches: Iterable[Tensor], frames: Sequence[Frame], seed: int, epoch: int | Iterable[int]
    ) -> Iterator[list[Tensor]]:
        """One tensor (n, 3, h, w) a frame for each batch, read ahead while the caller works on the one before.

        :raises BenchError: an image that cannot be read, by its path; views that differ in size.
        :raises LostError: a data worker died, could not start or was silent.
        """
        pin = self.device.type == "cuda"
        wanted = loading.requests(batches, frames, seed, _epochs(epoch))
        if self.workers:
            found = loading.ahead(self.reader, wanted, self.workers, pin=pin)
        else:
            found = loading.here(self.reader, wanted)
        for batch in found:
            yield [view.to(self.device, non_blocking=pin) for view in batch]

    def to(self, device: torch.device) -> Streamed:
        """The same files, their batches delivered to ``device``."""
        return self.over(self.reader, device)

    def over(self, reader: Reader, device: torch.device | None = None) -> Streamed:
        """Another reader, read in the same way."""
        where = self.device if device is None else device
        return Streamed(reader, workers=self.workers, side=self.side, color=self.color, device=where)


def subset(images: Images, indices: ArrayLike | Tensor) -> Images:
    """The images at ``indices`` (int (n,)), renumbered from 0."""
    chosen = np.asarray(indices, dtype=np.int64)
    if isinstance(images, Resident):
        return Resident(images.pixels[torch.from_numpy(chosen)], color=images.color)
    if isinstance(images, Streamed):
        return images.over(Chosen([images.reader], chosen))
    raise BenchError(f"cannot take some of {type(images).__name__}: it is neither Resident nor Streamed")


def joined(first: Images, second: Images) -> Images:
    """The images of two sources of one kind, one after the other."""
    if isinstance(first, Resident) and isinstance(second, Resident):
        if first.pixels.shape[1:] != second.pixels.shape[1:]:
            raise BenchError("images of two sizes cannot be joined on the device")
        return Resident(torch.cat([first.pixels, second.pixels]), color=first.color)
    if isinstance(first, Streamed) and isinstance(second, Streamed):
        return first.over(Chosen([first.reader, second.reader], np.arange(len(first) + len(second))))
    raise BenchError(f"{type(first).__name__} and {type(second).__name__} images cannot be joined")
