"""Two encoders side by side as one: each sees its part of the input's channels and nothing of the other's."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

from bench.contracts import Encoder


class Pair(nn.Module):
    """Two stages, each on its part of the channels: the first ``left`` (0: half) of them, and the others."""

    def __init__(self, first: nn.Module, second: nn.Module, left: int = 0) -> None:
        super().__init__()
        self.first, self.second, self.left = first, second, left

    def forward(self, maps: Tensor) -> Tensor:
        one, other = self.parts(maps)
        return torch.cat([self.first(one), self.second(other)], 1)

    def parts(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The channels of either stage."""
        left = self.left or maps.shape[1] // 2
        return maps[:, :left], maps[:, left:]


def join(one: Encoder, other: Encoder, source: nn.Module, left: int) -> Encoder:
    """An encoder whose maps and features are those of both, the first one's channels first.

    :param source: its input module; the first ``left`` channels go to ``one``, the others to ``other``.
    """
    trunk: OrderedDict[str, nn.Module] = OrderedDict()
    for (name, first), second in zip(one.trunk.named_children(), other.trunk.children(), strict=True):
        trunk[name] = Pair(first, second, 0 if trunk else left)
    return Encoder(
        input=source,
        trunk=nn.Sequential(trunk),
        layers=one.layers,
        channels={layer: count + other.channels[layer] for layer, count in one.channels.items()},
        strides=one.strides,
        dim=one.dim + other.dim,
        top=Pair(one.top, other.top) if one.top is not None and other.top is not None else None,
    )


def towers(encoder: Encoder, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Both encoders' maps at a layer: what ``activations`` of the joined one gives, without joining."""
    one, other = cast("Pair", encoder.trunk[0]).parts(encoder.input(images))
    for name, stage in encoder.trunk.named_children():
        pair = cast("Pair", stage)
        one, other = pair.first(one), pair.second(other)
        if name == layer:
            break
    return one, other
