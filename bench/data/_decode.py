"""One image to RGB as torchvision's default loader has it, but for modes that it makes white without a word."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.records import BenchError


def rgb(source: str | IO[bytes], path: str) -> Tensor:
    """An image file as uint8 (3, H, W): alpha is dropped, EXIF's orientation is not applied, 16 bits become 8.

    :param source: where it lies, or what it holds.
    :param path: what it is called in errors.
    :raises BenchError: missing, damaged, empty, too large, or of a mode whose white is not known.
    """
    try:
        with Image.open(source) as image:
            pixels = _pixels(image)
    except FileNotFoundError:
        raise BenchError(f"{path}: the image is missing; restore the file and run again") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in any way it likes
        reason = " ".join(str(error).split()).replace(repr(source), "it")
        raise BenchError(f"{path}: not a readable image ({reason}); replace the file") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (H, W, 3)."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"})
    if image.mode in {"I", "F"} and not sixteen:
        raise ValueError(f"mode {image.mode}: pixels of no known range; write it with 8 bits a channel")
    if sixteen:
        gray = np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, 2)
    image.load()  # a palette's transparency is known then
    image.info.pop("transparency", None)  # RGB has none: Pillow would warn, and the pixels are the same
    found: NDArray[Any] = np.array(image.convert("RGB"))
    return found
