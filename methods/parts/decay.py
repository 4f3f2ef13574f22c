"""Weight decay apart from the gradient: Adam does not divide it by its second moment.

Berthelot et al., MixMatch, NeurIPS 2019, section 4.1, and their code for every method they compare.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def shrink(module: nn.Module, part: float) -> None:
    """The kernels of convolutions and linear layers become (1 - part) of themselves; biases and norms stay."""
    kernels: list[Tensor] = [p for p in module.parameters() if p.ndim > 1]
    if part and kernels:
        torch._foreach_mul_(kernels, 1.0 - part)
