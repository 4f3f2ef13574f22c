"""BiGAN: an encoder and a generator learn to be each other's inverse by deceiving one discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import unit
from bench.contracts import Backbone, DataShape, Frame, Model
from bench.training import set_rate
from methods._loop import Batch, Loop, State
from methods.parts import gan, heads, views
from methods.parts.dcgan import Generator, JointDiscriminator


@dataclass(frozen=True)
class Bigan(Loop):
    """Pairs (x, E(x)) and (G(z), z) that a discriminator cannot tell apart; all three learn in each step.

    The defaults are ImageNet's. The encoder and the generator minimize the discriminator's loss with its labels
    swapped, as paper and release do. The published transfer results are of an encoder that sees 112 px
    (``crop``) beside a generator of 64 (``resolution``).

    :param dim: of the code z, uniform on [-1, 1]; E ends in a sigmoid that is stretched to it.
    :param size: maps of the generator's last and the discriminator's first layer, doubled at each halving.
    :param resolution: side of the generated images, and of the real ones beside them; 0: the view's.
    :param schedule: ``exponential``: flat until ``drops[0]`` of the training, then down to ``gamma`` times the rate.
    """

    paper: ClassVar[str] = "Donahue, Krähenbühl & Darrell, Adversarial Feature Learning, ICLR 2017"

    lr: float = 2e-4
    weight_decay: float = 2.5e-5
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.5, 0.999)
    schedule: str = "exponential"
    drops: tuple[float, ...] = (0.5,)
    gamma: float = 0.01
    crop: int = 64
    dim: int = 200
    size: int = 64
    resolution: int = 0

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder with a linear layer to the code, the generator and the discriminator."""
        encoder = backbone.build(generator=generator)
        side = self.resolution or self.crop or shape.side or views.STANDARD_CROP
        parts = {
            "code": heads.linear(encoder.dim, self.dim, generator, std=encoder.dim**-0.5),
            "generator": Generator(side, self.dim, self.size, generator),
            "discriminator": JointDiscriminator(side, self.dim, self.size, generator),
        }
        return Model(encoder, parts=parts)

    def frames(self, shape: DataShape) -> Sequence[Frame]:
        """Windows that are not mirrored: neither are the release's, and a generator would have to make both."""
        return (self.view(shape, flip=False),)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 3, each network's side of it; half of the sum over real and generated pairs, as in the release."""
        (view,) = batch.views
        discriminator = model.parts["discriminator"]
        real, code = self._beside(view), model.parts["code"](model.encoder(view)).sigmoid() * 2 - 1
        drawn = batch.draws().uniform(self.dim, low=-1.0, high=1.0)
        made = model.parts["generator"](drawn)
        told = gan.distinguish(discriminator(real, code.detach()), discriminator(made.detach(), drawn))
        encoded, generated = gan.held(discriminator, real, code), gan.held(discriminator, made, drawn)
        return {
            "discriminator": told / 2,
            "encoder": gan.deceive(-encoded, "swapped") / 2,
            "generator": gan.deceive(generated, "swapped") / 2,
        }

    def _beside(self, view: Tensor) -> Tensor:
        """The real images at the size of the generated ones."""
        side = self.resolution or view.shape[-1]
        images = unit(view)
        if side == view.shape[-1]:
            return images
        return F.interpolate(images, [side, side], mode="bilinear", antialias=True)

    def adjust(self, optimizer: torch.optim.Optimizer, done: int, total: int) -> None:
        """The rate of the release: half of the epochs flat, the others exponential."""
        if self.schedule != "exponential":
            super().adjust(optimizer, done, total)
            return
        fall = max(0.0, done / total - self.drops[0]) / (1 - self.drops[0])
        set_rate(optimizer, self.lr * self.gamma**fall)
