"""Networks that tell real images from made ones, and gradients that go where they should.

Radford, Metz & Chintala, DCGAN, ICLR 2016, in the form of Pathak et al., CVPR 2016.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from methods.parts.decoders import small_weights
from methods.parts.normalization import unrecorded


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
    scores, others = judge(real.detach()).float(), judge(made.detach()).float()
    return F.softplus(-scores).mean() + F.softplus(others).mean()


def fooling_loss(judge: nn.Module, made: Tensor) -> Tensor:
    """-log D(made): its gradient reaches what made the images, and not the judge."""
    fixed = {name: weight.detach() for name, weight in judge.named_parameters()}
    with unrecorded(judge):
        scores: Tensor = functional_call(judge, fixed, (made,))
    return F.softplus(-scores.float()).mean()
