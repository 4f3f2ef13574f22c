"""The views that evaluations look at: the one that is judged, and the random ones that they train on."""

from __future__ import annotations

from bench.augment import CenterCrop, Chain, Flip, RandomCrop, Resize, ResizedCrop
from bench.contracts import BenchError, Frame, Images

AUGMENTS = ("none", "crop_flip", "crop", "flip", "resized_crop_flip")
PADDINGS = ("reflect", "zeros")
SHORT_SIDE = 256 / 224  # the usual ratio of the resized shorter side to the crop


def center_view(side: int, square: int = 0) -> Frame:
    """The one view that is judged: the image as it is (``side`` 0), or the middle of its resized version.

    :param square: the image is resized to so many pixels a side, its aspect ignored (Zhang et al. 2016: 256);
        0: its shorter side to ``side`` * 256 / 224.
    """
    return Chain((*_resized(side, square), CenterCrop(side)) if side else ())


def random_view(
    images: Images,
    augment: str,
    side: int,
    pad: int,
    *,
    flip: bool,
    square: int = 0,
    padding: str = "reflect",
) -> Frame:
    """A view that is drawn anew in every step.

    :param augment: ``crop_flip``, the literature's: a random crop and a mirror; ``crop`` or ``flip``: one of them,
        the latter of the middle; ``resized_crop_flip``: Inception's crop and a mirror; ``none``: the middle.
    :param side: 0: the image as it is, padded by ``pad`` (by reflection or of ``zeros``) before the crop; else a
        window of ``side`` of the image, which is resized as in :func:`center_view`.
    :param flip: a mirrored image keeps its class.
    """
    if augment in ("none", "flip"):
        pieces: tuple[Frame, ...] = (center_view(side, square),)
    elif not side and images.side is None:
        raise BenchError("images of varying sizes cannot be cropped as they are; set side, as in side = 224")
    elif augment == "resized_crop_flip":
        pieces = (ResizedCrop(side or images.side or 0),)
    elif side:
        pieces = (*_resized(side, square), RandomCrop(side))
    else:
        pieces = (RandomCrop(images.side or 0, min(pad, (images.side or 1) - 1), padding),)
    return Chain((*pieces, Flip()) if flip and augment.endswith("flip") else pieces)


def _resized(side: int, square: int) -> tuple[Frame, ...]:
    return (Resize(square, exact=True) if square else Resize(round(side * SHORT_SIDE)),)
