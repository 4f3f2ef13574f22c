"""Pseudo-Label: take the class that is believed most for the true one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from bench.contracts import BenchError, Model
from methods._apart import ApartLoop
from methods._loop import Batch, State


@dataclass(frozen=True)
class PseudoLabel(ApartLoop):
    """Cross-entropy on the labels and, with a weight that rises, on the network's own arg max where they hide.

    The paper's rate of 1.5, at momentum .99 with the gradient times 1 - .99, is .015 here; its fall by .998 an
    epoch and the momentum's rise from .5 are left out. T1 and T2 are epochs 100 and 600, taken as of 1,000.

    :param weight: alpha_f; ``starts``, ``ends``: T1 and T2, the parts of the training between which the weight
        rises linearly from 0 (Oliver et al.: 1, exponentially; MixMatch's code: 1 or 2, from 0 to .4).
    :param threshold: only images whose largest probability is above it teach, and the mean is still over all
        (Oliver et al. and MixMatch's code: .95); 0: all of them, the paper's.
    :param joint: labeled and unlabeled rows in one forward pass (Oliver et al.) or in two (MixMatch's code).
    """

    paper: ClassVar[str] = (
        "Lee, Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method, ICML workshop 2013"
    )
    from_description: ClassVar[str] = "no code of its author was found"
    distributed: ClassVar[bool] = True

    lr: float = 0.015
    momentum: float = 0.99
    weight_decay: float = 0.0
    batch_size: int = 288
    labeled_batch: int = 32
    augment: str = "none"
    weight: float = 3.0
    starts: float = 0.1
    ends: float = 0.6
    threshold: float = 0.0
    joint: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.starts > self.ends:
            raise BenchError(
                f"pseudo_label.starts = {self.starts} must not be after ends, which is {self.ends}"
            )

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 15: mean_L CE(y, f) + alpha(t) mean_U CE(y', f), y' the arg max of f at this very step."""
        labeled, unlabeled = (s.float() for s in self.both(model, batch, joint=self.joint))
        sure, believed = unlabeled.detach().softmax(1).max(1)
        own = F.cross_entropy(unlabeled, believed, reduction="none")
        return {
            "class": F.cross_entropy(labeled, batch.targets[: self.rows]),
            "pseudo": self.alpha(done / total) * (own * (sure > self.threshold)).mean(),
        }

    def alpha(self, t: float) -> float:
        """Eq. 16: 0 before T1, then linear, alpha_f from T2 on."""
        if t >= self.ends:
            return self.weight
        return self.weight * max(0.0, (t - self.starts) / (self.ends - self.starts))
