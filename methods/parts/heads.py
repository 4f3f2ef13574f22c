"""Classifiers and projections on an encoder's features."""

from __future__ import annotations

import torch
from torch import nn


def linear(
    dim: int, out: int, generator: torch.Generator, *, dropout: float = 0.0, std: float = 0.01
) -> nn.Sequential:
    """Dropout and a linear layer, (N, dim) to (N, out): weights N(0, std), biases 0."""
    layer = nn.Linear(dim, out)
    reset(layer, generator, std)
    return nn.Sequential(nn.Dropout(dropout), layer)


@torch.no_grad()
def reset(layer: nn.Linear, generator: torch.Generator, std: float = 0.01) -> None:
    """New weights N(0, std) and biases 0, in place."""
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
    if layer.bias is not None:
        layer.bias.zero_()
