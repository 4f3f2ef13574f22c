"""Fully connected layers above an encoder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from bench.contracts import initialize
from methods.parts import heads


def relu_layers(
    widths: Sequence[int], generator: torch.Generator, *, dropout: float = 0.0, norm: bool = False
) -> nn.Sequential:
    """(N, widths[0]) to (N, widths[-1]): linear, ReLU and dropout for each width after the first.

    :param norm: batch norm without scale and shift before each ReLU: no layer can fall silent.
    """
    stack = nn.Sequential()
    for inner, outer in itertools.pairwise(widths):
        normed = [nn.BatchNorm1d(outer, affine=False)] if norm else []
        stack.extend([nn.Linear(inner, outer, bias=not norm), *normed, nn.ReLU(), nn.Dropout(dropout)])
    initialize(stack, generator)
    return stack


def classifier(
    widths: Sequence[int],
    classes: int,
    generator: torch.Generator,
    *,
    dropout: float = 0.0,
    norm: bool = False,
) -> nn.Sequential:
    """Hidden layers and a linear one: (N, widths[0]) to scores (N, classes)."""
    hidden = relu_layers(widths, generator, dropout=dropout, norm=norm)
    return hidden.extend(heads.linear(widths[-1], classes, generator))
