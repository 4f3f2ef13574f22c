"""Two networks against each other in one step of one optimizer: each loss reaches its own side only.

Goodfellow et al., Generative Adversarial Nets, NIPS 2014. Scores are logits: D(x) = sigmoid(score).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from methods.parts.normalization import unrecorded

DECEPTIONS = ("minimax", "swapped")


def held(network: nn.Module, *inputs: Tensor) -> Tensor:
    """What the network makes of its inputs, with a gradient to them and none to its own weights and statistics.

    Detached copies rather than ``requires_grad_(False)``: autocast would hand its cast of a weight from one
    pass to the other, and the gradient with it.
    """
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    with unrecorded(network):
        scores: Tensor = functional_call(network, weights, inputs)
    return scores


def distinguish(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: -E[log D(real)] - E[log(1 - D(fake))]."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def deceive(fake: Tensor, kind: str) -> Tensor:
    """The other side's loss: E[log(1 - D(fake))] (``minimax``), or -E[log D(fake)] (``swapped`` labels)."""
    return F.softplus(-fake.float()).mean() if kind == "swapped" else -F.softplus(fake.float()).mean()


def penalty(network: nn.Module, inputs: Tensor) -> Tensor:
    """E of the squared norm of the score's gradient at the inputs (Mescheder, Geiger & Nowozin, ICML 2018)."""
    inputs = inputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(network(inputs).sum(), inputs, create_graph=True)
    return slope.flatten(1).square().sum(1).mean()
