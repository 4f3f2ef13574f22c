"""Critics that score all pairs of local features and global vectors of a batch.

Hjelm et al., Learning deep representations by mutual information estimation and maximization, ICLR 2019,
section 3.2 and appendix A.2: encode-and-dot and concat-and-convolve. A 1x1 convolution is here a linear layer
on the rows, one for each place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.contracts import initialize

CRITICS = ("dot", "concat")
_NOISE = 0.01  # of the shortcut's weights off the identity


class Lift(nn.Module):
    """Rows (n, dim) to (n, units): two layers with batch norm between, a shortcut, layer norm (the release's MI net).

    The shortcut begins as a noisy copy of its input, where there are units enough.
    """

    def __init__(self, dim: int, units: int, generator: torch.Generator) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(dim, units, bias=False), nn.BatchNorm1d(units), nn.ReLU(), nn.Linear(units, units)
        )
        self.shortcut = nn.Linear(dim, units, bias=False)
        self.norm = nn.LayerNorm(units)
        initialize(self, generator)
        if units >= dim:
            with torch.no_grad():
                noise = (torch.rand(units, dim, generator=generator) * 2 - 1) * _NOISE
                self.shortcut.weight.copy_(noise).fill_diagonal_(1.0)

    def forward(self, rows: Tensor) -> Tensor:
        lifted: Tensor = self.norm(self.block(rows) + self.shortcut(rows))
        return lifted


class Dot(nn.Module):
    """Encode and dot: T is the inner product of the two embeddings."""

    def __init__(self, places: nn.Module, vectors: nn.Module) -> None:
        super().__init__()
        self.places, self.vectors = places, vectors

    def forward(self, places: Tensor, vectors: Tensor) -> Tensor:
        """Features (N, L, C) and vectors (N, d) to scores (N, N, L): of vector i with the places of sample j."""
        count, length = places.shape[:2]
        one, other = self.vectors(vectors), self.places(places.flatten(0, 1))
        with torch.autocast(places.device.type, enabled=False):  # sums of products are not for bfloat16
            scores: Tensor = one.float() @ other.float().T
        return scores.view(count, count, length)


class Concat(nn.Module):
    """Concat and convolve: T is a network of three layers on the two side by side, at each place, for all pairs."""

    def __init__(self, dim: int, other: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        # The first layer on a concatenation is the sum of two: neither is computed for all pairs.
        self.places, self.vectors = nn.Linear(dim, hidden), nn.Linear(other, hidden, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        initialize(self, generator)

    def forward(self, places: Tensor, vectors: Tensor) -> Tensor:
        """As :meth:`Dot.forward`."""
        pairs = self.places(places)[None] + self.vectors(vectors)[:, None, None]
        scores: Tensor = self.rest(pairs)[..., 0].float()
        return scores


def local_critic(name: str, dim: int, other: int, units: int, generator: torch.Generator) -> nn.Module:
    """For features of ``dim`` maps and vectors of width ``other``."""
    if name == "dot":
        return Dot(Lift(dim, units, generator), Lift(other, units, generator))
    return Concat(dim, other, units, generator)


def global_critic(name: str, dim: int, other: int, units: int, generator: torch.Generator) -> nn.Module:
    """For one vector of width ``dim`` a sample: the embeddings to be multiplied are linear, as in the release."""
    if name == "dot":
        one, two = nn.Linear(dim, units), nn.Linear(other, units)
        initialize(one, generator)
        initialize(two, generator)
        return Dot(one, two)
    return Concat(dim, other, units, generator)
