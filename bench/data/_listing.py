"""Folders of images: what counts as a class and as an image, in the order of torchvision's ImageFolder.

What begins with a dot is no data: ``._x.JPEG`` (macOS), ``.ipynb_checkpoints``, ``.DS_Store``. Free of torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bench.records import BenchError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


def is_data(name: str) -> bool:
    """Whether no part of a path begins with a dot."""
    return not any(part.startswith(".") for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(ENDINGS) and is_data(name)


def folders(path: Path) -> list[str]:
    """The names of the folders in one, sorted: the classes of an image folder.

    :raises BenchError: it is missing, or may not be read.
    """
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if is_data(entry.name) and entry.is_dir())
    except OSError as error:
        raise BenchError(f"{path}: {'missing' if _is_missing(error) else error.strerror}") from error


def images(path: Path) -> list[str]:
    """The images below a folder, however deep, each relative to it, in torchvision's order.

    :raises BenchError: it is missing, or a folder in it may not be read.
    """
    found = []
    try:
        for base, names in sorted(_walk(path)):
            inner = os.path.relpath(base, path).replace(os.sep, "/")
            found += [name if inner == "." else f"{inner}/{name}" for name in sorted(names)]
    except OSError as error:
        told = "missing" if _is_missing(error) else error.strerror
        raise BenchError(f"{error.filename or path}: {told}") from error
    return found


def _walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder with the images that lie in it; a folder is none, whatever its name."""

    def stop(error: OSError) -> None:
        raise error

    for base, inner, names in os.walk(path, onerror=stop, followlinks=True):
        inner[:] = filter(is_data, inner)
        yield base, list(filter(is_image, names))


def _is_missing(error: OSError) -> bool:
    return isinstance(error, (FileNotFoundError, NotADirectoryError))
