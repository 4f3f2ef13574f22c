"""Channels of pixels as classes, by equal levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RANGES = {"L": (0.0, 100.0), "a": (-110.0, 110.0), "b": (-110.0, 110.0)} | dict.fromkeys("RGB", (0.0, 1.0))


class Levels(nn.Module):
    """Classes of a color's channels: each channel's range in ``count`` equal levels, and all their combinations."""

    def __init__(self, names: str, count: int) -> None:
        super().__init__()
        self.names, self.count = names, count

    def __len__(self) -> int:
        return int(self.count ** len(self.names))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Colors (M, channels) to their class and its weight, 1: int64 and float (M, 1)."""
        found = torch.zeros(len(values), dtype=torch.long, device=values.device)
        for name, channel in zip(self.names, values.unbind(1), strict=True):
            low, high = _RANGES[name]
            level = ((channel - low) * (self.count / (high - low))).long().clamp_(0, self.count - 1)
            found = found * self.count + level
        return found[:, None], torch.ones_like(values[:, :1])
