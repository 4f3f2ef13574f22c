"""Dropout and noise that are the same in several passes of a step."""

from __future__ import annotations

import torch


def restart(device: torch.device) -> None:
    """Torch's generators begin again where this step began: what follows draws the step's first numbers anew."""
    seed = torch.initial_seed()
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
