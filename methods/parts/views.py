"""The geometric frames that methods name, and the one view of an image that extraction reads."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.augment import CenterCrop, Flip, PadCrop, RandomCrop, Resize, ResizedCrop
from bench.contracts import BenchError, DataShape, Frame

STANDARD_CROP = 224  # pixels: where image sizes vary, of a shorter side of 256
NAMES = ("none", "crop_flip", "pad_crop_flip", "translate_flip", "resized_crop")
_PAD = 4  # pixels, MixMatch's
PADDINGS = ("reflect", "zeros")


def geometry(
    name: str,
    shape: DataShape,
    crop: int,
    scale: tuple[float, float],
    *,
    flip: bool,
    padding: str = "reflect",
) -> tuple[Frame, ...]:
    """The pieces of a random view: ``crop`` is its side (0: the image's), ``scale`` an area fraction.

    ``none``: the center view; ``crop_flip``: a window anywhere; ``pad_crop_flip``: of the image padded by 4;
    ``translate_flip``: shifted by up to 1/16 of the side; ``resized_crop``: Inception's. All but ``none`` are
    mirrored where ``flip`` and the images allow it; ``padding`` is by reflection or of ``zeros``.
    """
    side = crop or shape.side or STANDARD_CROP
    pieces: dict[str, tuple[Frame, ...]] = {
        "none": center(shape, crop),
        "crop_flip": (*_shorter(shape, side), RandomCrop(side)) if side != shape.side else (),
        "pad_crop_flip": (*_shorter(shape, side), RandomCrop(side, _PAD, padding)),
        "translate_flip": (*_square(shape), PadCrop(max(1, side // 16), padding), *_window(crop)),
        "resized_crop": (ResizedCrop(side, scale),),
    }
    if name not in pieces:
        raise BenchError(f"augment {name!r} is not known: write {', '.join(NAMES)}")
    if padding not in PADDINGS:
        raise BenchError(f"padding {padding!r} is not known: write {' or '.join(PADDINGS)}")
    most = {"crop_flip": shape.side, "pad_crop_flip": (shape.side or 0) + 2 * _PAD}.get(name)
    if shape.side and most and side > most:
        raise BenchError(
            f"crop = {side}: {name} finds no such window in images of {shape.side}: write {most} or less"
        )
    mirrored = flip and shape.flip and name != "none"
    return (*pieces[name], Flip()) if mirrored else pieces[name]


def center(shape: DataShape, crop: int) -> tuple[Frame, ...]:
    """The pieces of the view in the middle, the same for every draw."""
    return (*_square(shape, crop), *_window(crop))


def channels_last(images: Tensor) -> Tensor:
    """The same images (N, C, H, W), with the channels of a pixel side by side in memory."""
    if images.is_contiguous(memory_format=torch.channels_last):
        return images
    return torch.stack(images.unbind(1), -1).permute(0, 3, 1, 2)  # for bytes thrice as fast as contiguous()


def area(shape: DataShape, crop: int) -> float:
    """A view's area over that of the full-size image: what it counts in the budget."""
    full = shape.side or STANDARD_CROP
    return (crop / full) ** 2 if crop else 1.0


def _shorter(shape: DataShape, side: int) -> tuple[Frame, ...]:
    return () if shape.side else (Resize(side * 8 // 7),)


def _square(shape: DataShape, crop: int = 0) -> tuple[Frame, ...]:
    """The middle of an image of any size, as large as the window that is cut from it, at least the standard's."""
    side = max(STANDARD_CROP, crop)
    return () if shape.side else (Resize(side * 8 // 7), CenterCrop(side))


def _window(crop: int) -> tuple[Frame, ...]:
    return (CenterCrop(crop),) if crop else ()
