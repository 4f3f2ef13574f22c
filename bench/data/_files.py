"""What the readers of published files share: errors that name the file, checksums, names of content."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts import Dataset, Samples
from bench.data.sources import Resident
from bench.records import BenchError, digest, is_aside


def content_name(dataset: Dataset, split: str, *more: object) -> str:
    """A name for a split: dataset, digest of its settings (and of ``more``), split."""
    fields: tuple[dataclasses.Field[Any], ...] = ()
    if dataclasses.is_dataclass(dataset):
        fields = dataclasses.fields(dataset)
    settings = {f.name: getattr(dataset, f.name) for f in fields if not is_aside(f)}
    return f"{dataset.name}-{digest([settings, list(more)])}-{split}"


def known_split(dataset: Dataset, split: str) -> None:
    """Refuse a split that the dataset does not have."""
    if split not in dataset.splits:
        raise BenchError(
            f"{dataset.name} has no split {split!r}; its splits are: {', '.join(dataset.splits)}"
        )


def content(path: Path, expected: str, remedy: str) -> bytes:
    """The bytes of a file that must exist and hold something; ``expected`` says what, ``remedy`` how to get it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BenchError(f"{path}: missing; expected {expected}: {remedy}") from None
    except OSError as error:
        raise BenchError(
            f"{path}: cannot be read ({error.strerror}); expected {expected}: {remedy}"
        ) from error
    if not data:
        raise BenchError(f"{path}: empty; expected {expected}: {remedy}")
    return data


def records(path: Path, size: int, expected: str, remedy: str) -> NDArray[np.uint8]:
    """A file of records of ``size`` bytes as uint8 (N, size)."""
    data = content(path, expected, remedy)
    if len(data) % size:
        raise BenchError(f"{path}: truncated: {len(data)} bytes are not whole records of {size}: {remedy}")
    return np.frombuffer(bytearray(data), np.uint8).reshape(-1, size)


def samples(name: str, pixels: NDArray[np.uint8], labels: NDArray[Any] | Tensor | None) -> Samples:
    """Images uint8 (N, 3, H, W) that will lie on the device, with their labels."""
    known = None if labels is None else torch.as_tensor(labels).to(torch.int64)
    return Samples(name, Resident(torch.from_numpy(np.ascontiguousarray(pixels))), known)


def in_range(path: Path, labels: NDArray[Any], classes: int, remedy: str) -> None:
    """Refuse labels outside 0 .. classes - 1."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise BenchError(
            f"{path}: corrupt: labels run from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}: {remedy}"
        )


def download(name: str, fetch: Callable[[], object], by_hand: str) -> None:
    """Run a download; ``by_hand`` says how to do without it.

    :raises BenchError: no network, no space, or a file whose checksum is wrong.
    """
    try:
        fetch()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BenchError(f"{name}: the download failed ({reason}); try again or {by_hand}") from error


def checksum_problems(folder: Path, published: Mapping[str, str], remedy: str) -> list[str]:
    """The files below ``folder`` whose MD5 is not the published one, a line each; missing ones are passed over."""
    problems = []
    for name, md5 in published.items():
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != md5:
                problems.append(f"{path}: its MD5 is {found}, the published one is {md5}: {remedy}")
    return problems
