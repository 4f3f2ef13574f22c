"""The input of encoders that see no color."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.augment import unit


class Luma(nn.Module):
    """RGB (N, 3, H, W), uint8 or in [0, 1], to luma (N, 1, H, W) minus 0.5 over 0.25 (ITU-R 601)."""

    channels = 1
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return ((unit(images) * self.weights).sum(1, keepdim=True) - 0.5) / 0.25
