"""Context encoders: paint what was cut out of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import unit
from bench.contracts import Backbone, BenchError, DataShape, Draws, Model, Run, TrainingSet
from methods._loop import Batch, Loop, State
from methods.parts import masks
from methods.parts.decoders import Painter
from methods.parts.discriminators import discriminator, fooling_loss, telling_loss
from methods.parts.gallery import examples, gallery, judged
from methods.parts.views import STANDARD_CROP, channels_last

_MEAN = (117 / 255, 104 / 255, 123 / 255)  # the release's: Caffe's means, in an order of its own
_SHOWN = 0x5409  # the draws of the picture's masks


@dataclass(frozen=True)
class ContextEncoder(Loop):
    """Reconstruct the removed pixels from the trunk's last maps, by L2 alone or also to fool a discriminator.

    ``adversarial`` 0 is the paper's AlexNet for features; its inpainting network has .001. The release takes turns,
    the discriminator first; here both descend at once. The paper's regions are shapes of VOC objects, the release's
    and these a smooth random pattern. The overlap is 7 of 128 pixels in the paper, 4 in the release.

    :param adversarial: weight of the adversarial loss; the reconstruction has what is left to 1.
    :param mask: ``central``, ``block`` or ``region``, see :func:`methods.parts.masks.holes` for ``blocks``,
        ``block``, ``area`` and ``cells``.
    :param overlap: pixels around a hole whose reconstruction counts ``emphasis`` times; ``known``: what all others
        count.
    :param fill: what the network sees in a hole: the ``constant`` mean color, or the ``image``'s own.
    :param stride: pixels of the image a painted pixel stands for, their average.
    :param width: maps of the painter's last layer but one and of the discriminator's first.
    :param discriminator_rate: its share of the learning rate.
    """

    paper: ClassVar[str] = (
        "Pathak, Krähenbühl, Donahue, Darrell & Efros, Context Encoders: Feature Learning by Inpainting, CVPR 2016"
    )
    from_description: ClassVar[str] = (
        "the inpainting network's training was released, that of the AlexNet was not"
    )
    distributed: ClassVar[bool] = True

    optimizer: str = "adam"
    lr: float = 0.002
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    batch_size: int = 64
    adversarial: float = 0.0
    mask: str = "region"
    blocks: int = 4
    block: float = 0.25
    area: float = 0.25
    cells: int = 8
    overlap: int = 7
    emphasis: float = 10.0
    known: float = 0.0
    fill: str = "constant"
    stride: int = 1
    width: int = 64
    discriminator_rate: float = 0.1

    def __post_init__(self) -> None:
        if self.mask not in masks.KINDS:
            raise BenchError(f"context_encoder.mask must be {', '.join(masks.KINDS)}, not {self.mask!r}")
        if self.fill not in {"constant", "image"}:
            raise BenchError(f"context_encoder.fill must be constant or image, not {self.fill!r}")
        if not 0 <= self.adversarial < 1:
            raise BenchError(f"context_encoder.adversarial must be in 0 .. 1, not {self.adversarial}")

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder, a painter on its trunk, and where there is an adversary, the discriminator."""
        encoder = backbone.build(generator=generator).eval()
        side = self.crop or shape.side or STANDARD_CROP
        with torch.no_grad():
            maps = encoder.trunk(encoder.input(torch.zeros(1, 3, side, side)))
        painted = torch.zeros(1, 1, side // self.stride, side // self.stride)
        parts = {"painter": Painter(maps.shape[1], maps.shape[2], painted.shape[-1], self.width, generator)}
        if not self.adversarial:
            return Model(encoder.train(), parts=parts)
        judge = discriminator(3, self._judged(painted).shape[-1], self.width, generator)
        return Model(encoder.train(), parts={**parts, "discriminator": judge})

    def groups(self, model: Model) -> list[dict[str, Any]]:
        """The discriminator learns at a rate of its own."""
        named = list(model.named_parameters())
        judge = [p for name, p in named if name.startswith("parts.discriminator.")]
        makers = [p for name, p in named if not name.startswith("parts.discriminator.")]
        others = [{"params": judge, "scale": self.discriminator_rate}] if judge else []
        return [{"params": makers}, *others]

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 1 to 3; the adversarial terms each train one side only."""
        images = unit(batch.views[0])
        hole = self._holes(batch.draws(), images)
        made = self._paint(model, images, hole)
        true = (self._small(images) * 2).sub_(1)
        weights = self._small(masks.emphasized(hole, self.overlap, self.emphasis, self.known))
        root = weights.sqrt()
        error = F.mse_loss(made * root, true * root, reduction="sum") / (3 * (weights > 0).sum())
        terms = {"reconstruction": (1 - self.adversarial) * error}
        if self.adversarial:
            judge, made = model.parts["discriminator"], self._judged(made)
            terms["adversarial"] = self.adversarial * fooling_loss(judge, made)
            terms["discriminator"] = telling_loss(judge, self._judged(true), made)
        return terms

    def _holes(self, draws: Draws, images: Tensor) -> Tensor:
        side = images.shape[-1]
        return masks.holes(
            self.mask, draws, side, blocks=self.blocks, block=self.block, area=self.area, cells=self.cells
        )

    def _cut(self, images: Tensor, hole: Tensor) -> Tensor:
        """What the encoder sees."""
        color = images.new_tensor(_MEAN).view(1, 3, 1, 1)
        filling = images.mean((2, 3), keepdim=True) if self.fill == "image" else color
        return channels_last(torch.lerp(images, filling, hole.to(images.dtype)))  # faster than torch.where

    def _paint(self, model: Model, images: Tensor, hole: Tensor) -> Tensor:
        encoder = model.encoder
        painted: Tensor = model.parts["painter"](encoder.trunk(encoder.input(self._cut(images, hole))))
        return painted

    def _small(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.stride) if self.stride > 1 else images

    def _judged(self, painted: Tensor) -> Tensor:
        """What the discriminator sees: all, or the central hole and its overlap, as in either release."""
        side = painted.shape[-1]
        edge = max(0, side // 4 - self.overlap // self.stride) if self.mask == "central" else 0
        return painted[..., edge : side - edge, edge : side - edge]

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Descend; then show some images as cut, painted and true."""
        super().train(model, data, run)
        images = examples(data.images, data.shape, self.crop)
        draws = Draws(run.seed, 0, torch.arange(len(images), device=images.device), _SHOWN)
        with judged(model):
            hole = self._holes(draws, images)
            made = F.interpolate(self._paint(model, images, hole), images.shape[2:], mode="bilinear")
            painted = torch.where(hole, (made + 1) / 2, images)
            run.picture("inpainted", gallery([self._cut(images, hole), painted, images]))
        return model
