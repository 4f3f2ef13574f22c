"""Whitened pixels: the input of the semi-supervised studies on CIFAR-10, and on SVHN their scaled ones.

Views are whitened as the network reads them, after their augmentation; all releases but ICT's whiten the data
set and shift its white images.

Three regularizations are in use. Laine & Aila: 1e-5 under the root, of pixels in [0, 1]. VAT and ICT: 1e-6
added to the inverse root, which regularizes hardly at all; ICT's channels are standardized before. Mean Teacher
and Oliver et al.: .1 under the root, after global contrast normalization to norm 55.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench.augment import unit
from bench.backbones._parts import CIFAR, HALF, Normalize
from bench.contracts import Backbone, BenchError, Encoder, Images

__all__ = ["RECIPES", "PerImage", "Whitened", "Whitening", "fit", "named"]

_BATCH = 1000  # images at a time while statistics are gathered
_FLAT = 1e-10  # a direction below this part of the largest variance has none: its inverse root is noise


@dataclass(frozen=True)
class Recipe:
    """How pixels are whitened.

    :param constant: the regularization; ``inside``: 1 / sqrt(variance + constant), else 1 / sqrt(variance) + it.
    :param contrast: before that, an image's mean is taken off and its norm set to this; 0: not.
    :param standardized: before that, CIFAR's channel means and deviations are taken off and divided out.
    """

    constant: float = 1e-5
    inside: bool = True
    contrast: float = 0.0
    standardized: bool = False


RECIPES = {
    "laine_aila": Recipe(),
    "vat": Recipe(1e-6, inside=False),
    "ict": Recipe(1e-6, inside=False, standardized=True),
    "mean_teacher": Recipe(0.1, contrast=55.0),
}


class Whitening(nn.Module):
    """ZCA of whole images: (N, 3, side, side), uint8 or float in [0, 1], to float of the same shape.

    The statistics are buffers, saved with the weights; before :meth:`fit` they are those of white images.
    """

    channels = 3
    mean: Tensor
    matrix: Tensor

    def __init__(self, side: int, recipe: Recipe) -> None:
        super().__init__()
        self.side, self.recipe = side, recipe
        self.normalize = Normalize(CIFAR if recipe.standardized else ((0.0,) * 3, (1.0,) * 3))
        self.register_buffer("mean", torch.zeros(3 * side * side))
        self.register_buffer("matrix", torch.eye(3 * side * side))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (3, self.side, self.side):
            raise BenchError(
                f"whitening was set up for images of {self.side} x {self.side} pixels, not {tuple(images.shape[2:])}"
            )
        with torch.autocast(images.device.type, enabled=False):  # small differences of large sums
            white: Tensor = (self._flat(images) - self.mean) @ self.matrix
        return white.view(images.shape)

    def _flat(self, images: Tensor) -> Tensor:
        rows: Tensor = self.normalize(images).flatten(1)
        if self.recipe.contrast:
            rows = rows - rows.mean(1, keepdim=True)
            rows = rows * (self.recipe.contrast / rows.norm(dim=1, keepdim=True).clamp_min(1e-8))
        return rows

    @torch.no_grad()
    def fit(self, images: Images) -> None:
        """Mean and covariance of the training images, in float64.

        :raises BenchError: not more images than dimensions, images of another size, or a direction without
            variance that no constant under the root makes up for.
        """
        dims = len(self.mean)
        if images.side != self.side:
            raise BenchError(f"whitening needs images of {self.side} pixels, and these have {images.side}")
        if len(images) <= dims:
            raise BenchError(
                f"whitening needs more images than its {dims} dimensions; there are {len(images)}"
            )
        total = torch.zeros(dims, dtype=torch.float64, device=self.mean.device)
        square = torch.zeros(dims, dims, dtype=torch.float64, device=self.mean.device)
        batches = list(torch.arange(len(images)).split(_BATCH))  # type: ignore[no-untyped-call]
        for (pixels,) in images.views(batches, [lambda views, _: views], 0, 0):
            rows = self._flat(pixels.to(self.mean.device)).double()
            total += rows.sum(0)
            square += rows.T @ rows
        mean = total / len(images)
        self.mean.copy_(mean)
        self.matrix.copy_(self._root(square / len(images) - torch.outer(mean, mean)))

    def _root(self, covariance: Tensor) -> Tensor:
        variance, axes = torch.linalg.eigh(covariance)
        variance = variance.clamp_min(0)
        if self.recipe.inside and self.recipe.constant:
            scale = (variance + self.recipe.constant).rsqrt()
        else:
            if variance[0] <= _FLAT * variance[-1]:
                raise BenchError(
                    "whitening without a constant under the root needs variance in every direction; these images,"
                    " gray or after contrast normalization, have none in some"
                )
            scale = variance.rsqrt() + self.recipe.constant
        root: Tensor = (axes * scale) @ axes.T
        return root


class PerImage(nn.Module):
    """Each image less its mean, over its deviation: (N, 3, H, W) to the same; SVHN's in Laine & Aila."""

    channels = 3

    def forward(self, images: Tensor) -> Tensor:
        rows = unit(images)
        mean = rows.mean((1, 2, 3), keepdim=True)
        return (rows - mean) / rows.std((1, 2, 3), correction=0, keepdim=True).clamp_min(1e-4)


# Nothing in these is fitted. "centered" is [-.5, .5], VAT's pixels of SVHN, in whose units its epsilon is told there;
# "signed" is [-1, 1], ICT's.
_FIXED: dict[str, Callable[[], nn.Module]] = {
    "per_image": PerImage,
    "centered": partial(Normalize, ((0.5,) * 3, (1.0,) * 3)),
    "signed": partial(Normalize, HALF),
}


class Whitened(Backbone):
    """A backbone whose encoders read whitened pixels, unless the method brings an input of its own.

    :param front: () -> what takes uint8 or float in [0, 1], (N, 3, side, side), to float of the same shape.
    """

    def __init__(self, backbone: Backbone, front: Callable[[], nn.Module]) -> None:
        self.backbone, self.front = backbone, front
        self.name, self.paper = backbone.name, backbone.paper  # type: ignore[misc]  # of the one inside
        self.batch_norm = backbone.batch_norm  # type: ignore[misc]

    def build(
        self,
        *,
        generator: torch.Generator,
        in_channels: int = 3,
        width: float = 1.0,
        stem_stride: int | None = None,
        input: nn.Module | None = None,  # noqa: A002 - the contract's own word
    ) -> Encoder:
        """An encoder of the backbone inside."""
        given = input
        if input is None and in_channels == 3:
            given = self.front()
        return self.backbone.build(
            generator=generator, in_channels=in_channels, width=width, stem_stride=stem_stride, input=given
        )


def fit(model: nn.Module, images: Images) -> None:
    """Every whitening input of a fresh model learns its statistics; a copy (teacher, student) takes them over."""
    found = [m for m in model.modules() if isinstance(m, Whitening)]
    for one in found[:1]:
        one.fit(images)
    for other in found[1:]:
        other.load_state_dict(found[0].state_dict())


def named(backbone: Backbone, name: str, side: int | None) -> Backbone:
    """A backbone that reads images of ``side`` pixels as a name of :data:`bench.records.WHITENINGS` says.

    :raises BenchError: the images' sizes vary.
    """
    if not name:
        return backbone
    if side is None:
        raise BenchError(f"data.whitening = {name!r} needs images of one size, and these vary: leave it out")
    return Whitened(backbone, _FIXED.get(name) or partial(Whitening, side, RECIPES[name]))
