"""Multinomial logistic regressions on one layer's features, several learning rates at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5  # batch normalization's


@dataclass(frozen=True)
class Descent:
    """Stochastic gradient descent: one learning rate a head, the rest shared."""

    rates: tuple[float, ...]
    momentum: float
    nesterov: bool
    weight_decay: float


class Heads(nn.Module):
    """R linear classifiers (N, d) -> (N, C) that differ in their learning rate alone.

    They are one weight (R * C, d), so that a step is one matrix product forward and one backward
    whatever R is. The gradient of the softmax's cross-entropy is written out: there is nothing below
    the features to reach. The problem is convex: weights begin at zero. Biases are not decayed
    (Zhang et al., ECCV 2016). A head that diverges stays among its own rows.

    :param norm: ``batch`` (batch normalization without scale and shift, running statistics at test),
        ``standardize`` (statistics given by :meth:`fit`), ``none``.
    """

    weight: Tensor
    bias: Tensor
    weight_velocity: Tensor
    bias_velocity: Tensor
    mean: Tensor
    var: Tensor
    rates: Tensor

    def __init__(self, dim: int, classes: int, descent: Descent, norm: str, device: torch.device) -> None:
        super().__init__()
        self.count, self.classes, self.descent, self.norm = len(descent.rates), classes, descent, norm
        rows = self.count * classes
        for name, shape in {"weight": (rows, dim), "bias": (rows,)}.items():
            self.register_buffer(name, torch.zeros(shape, device=device))
            self.register_buffer(f"{name}_velocity", torch.zeros(shape, device=device))
        self.register_buffer("mean", torch.zeros(dim, device=device))
        self.register_buffer("var", torch.ones(dim, device=device))
        rates = torch.tensor(descent.rates, device=device).repeat_interleave(classes)
        self.register_buffer("rates", rates, persistent=False)

    def fit(self, features: Tensor) -> None:
        """Take the statistics of ``standardize`` from the training features (N, d)."""
        var, mean = torch.var_mean(features, 0, correction=0)
        self.mean.copy_(mean)
        self.var.copy_(var)

    def normalize(self, features: Tensor, *, training: bool) -> Tensor:
        """The features (N, d) as the heads see them; in training the running statistics move."""
        if self.norm == "none":
            return features
        own = training and self.norm == "batch"
        return F.batch_norm(features, self.mean, self.var, training=own, eps=EPS)

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor, factor: float) -> Tensor:
        """One step on a batch (N, d), (N,), at ``factor`` times each rate; returns the losses (R,)."""
        x = self.normalize(features, training=True)
        losses, error = self.error(x, labels)
        self._descend(
            self.weight, self.weight_velocity, self._weight_gradient(error, x), self.rates[:, None] * factor
        )
        self._descend(self.bias, self.bias_velocity, error.sum(1), self.rates * factor)
        return losses

    def error(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each head's cross-entropy (R,), and its gradient for the logits (R * C, N).

        The batch is the last dimension: BLAS takes half the time for this narrow product that way round.
        """
        logits = torch.addmm(self.bias[:, None], self.weight, x.t()).view(self.count, self.classes, -1)
        logs = F.log_softmax(logits, 1)
        own = labels.expand(self.count, 1, -1)
        losses = -logs.gather(1, own).mean((1, 2))
        error = logs.exp_().scatter_add_(1, own, logs.new_full((), -1.0).expand_as(own)).div_(len(x))
        return losses, error.view(-1, len(x))

    def _weight_gradient(self, error: Tensor, x: Tensor) -> Tensor:
        return torch.addmm(self.weight, error, x, beta=self.descent.weight_decay)

    def _descend(self, weight: Tensor, velocity: Tensor, gradient: Tensor, rates: Tensor) -> None:
        momentum = self.descent.momentum
        velocity.mul_(momentum).add_(gradient)
        if self.descent.nesterov:
            weight.addcmul_(gradient, rates, value=-1)
            weight.addcmul_(velocity, rates, value=-momentum)
        else:
            weight.addcmul_(velocity, rates, value=-1)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights (R, C, d) and biases (R, C) on features as they are: the normalization is folded in."""
        weight, bias = self.weight, self.bias
        if self.norm != "none":
            weight = weight * torch.rsqrt(self.var + EPS)
            bias = bias - weight @ self.mean
        return weight.view(self.count, self.classes, -1), bias.view(self.count, self.classes)
