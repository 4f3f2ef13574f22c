"""Entropy minimization: be sure of the images without labels, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from bench.contracts import DataShape, Model
from methods._apart import ApartLoop
from methods._loop import Batch, State
from methods.parts.entropy import entropy
from methods.parts.ramps import warm_up


@dataclass(frozen=True)
class EntropyMinimization(ApartLoop):
    """Cross-entropy on the labeled images plus the entropy of the prediction on the unlabeled ones.

    The paper's classifiers are linear, its weight chosen by cross-validation; here that of VAT's authors
    (Oliver et al. .1, MixMatch's code .06), and Oliver et al.'s optimizer.

    :param weight: of the entropy; ``ramp``: part of the training over which it rises linearly, 0: none.
    :param joint: labeled and unlabeled rows in one forward pass (Oliver et al.) or in two (MixMatch's code).
    """

    paper: ClassVar[str] = "Grandvalet & Bengio, Semi-supervised Learning by Entropy Minimization, NIPS 2004"
    from_description: ClassVar[str] = "no code of the paper was found; a network's entropy term is VAT's"
    distributed: ClassVar[bool] = True

    lr: float = 0.003
    weight_decay: float = 0.0
    batch_size: int = 100
    labeled_batch: int = 50
    optimizer: str = "adam"
    augment: str = "translate_flip"
    weight: float = 1.0
    ramp: float = 0.0
    joint: bool = False

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 6, as a loss: -mean_L log p(y | x) + lambda mean_U H(p(. | x))."""
        labeled, unlabeled = self.both(model, batch, joint=self.joint)
        return {
            "class": F.cross_entropy(labeled.float(), batch.targets[: self.rows]),
            "entropy": self.weight * warm_up(done / total, self.ramp) * entropy(unlabeled),
        }

    def passes(self, shape: DataShape) -> float:
        """One pass of every image."""
        return self.cost(shape, 1, 1)
