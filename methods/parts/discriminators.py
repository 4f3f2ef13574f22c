"""Networks that tell real images from made ones, and gradients that go where they should.

Radford, Metz & Chintala, DCGAN, ICLR 2016, in the form of Pathak et al., CVPR 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.parts import gan
from methods.parts.decoders import small_weights


def discriminator(channels: int, side: int, width: int, generator: torch.Generator) -> nn.Sequential:
    """Images (N, channels, side, side) to logits (N, 1): strided 4x4 convolutions down to four pixels or fewer."""
    layers: list[nn.Module] = []
    inner, outer = channels, width
    while side > 4 or not layers:
        norm = [nn.BatchNorm2d(outer)] if layers else []
        layers += [nn.Conv2d(inner, outer, 4, 2, 1), *norm, nn.LeakyReLU(0.2)]
        inner, outer, side = outer, min(2 * outer, 8 * width), side // 2
    return small_weights(nn.Sequential(*layers, nn.Conv2d(inner, 1, side), nn.Flatten()), generator)


def telling_loss(judge: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(made)), means over the batch: its gradient reaches the judge alone."""
    return gan.distinguish(judge(real.detach()), judge(made.detach()))


def fooling_loss(judge: nn.Module, made: Tensor) -> Tensor:
    """-log D(made): its gradient reaches what made the images, and not the judge."""
    return gan.deceive(gan.held(judge, made), "swapped")
