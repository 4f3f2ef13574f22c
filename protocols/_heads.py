"""Multinomial logistic regressions on one layer's features, several learning rates at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.features import Features, moments

EPS = 1e-5  # batch normalization's
FAINT = -40.0  # the logarithm of a probability that moves no weight in float32


@dataclass(frozen=True)
class Descent:
    """Stochastic gradient descent: one learning rate a head, the rest shared."""

    rates: tuple[float, ...]
    momentum: float
    nesterov: bool
    weight_decay: float
    bias_rate: float = 1.0  # times the rate


class Heads(nn.Module):
    """R linear classifiers (N, d) -> (N, C) that differ in their learning rate alone.

    They are one weight (R * C, d), so that a step is one matrix product forward and one backward
    whatever R is. The gradient of the softmax's cross-entropy is written out: there is nothing below
    the features to reach. The problem is convex: weights begin at zero. Biases are not decayed
    (Zhang et al., ECCV 2016). A head that diverges stays among its own rows.

    :param norm: ``batch`` (batch normalization without scale and shift, running statistics at test),
        ``standardize`` (statistics given by :meth:`fit`), ``none``.
    :param channels: of the maps that the d numbers are, channel after channel; a batch's statistics are a
        channel's, of all its places. 0: d.
    """

    weight: Tensor
    bias: Tensor
    weight_velocity: Tensor
    bias_velocity: Tensor
    mean: Tensor
    var: Tensor
    rates: Tensor

    def __init__(
        self,
        dim: int,
        classes: int,
        descent: Descent,
        norm: str,
        device: torch.device,
        channels: int = 0,
    ) -> None:
        super().__init__()
        self.count, self.classes, self.descent, self.norm = len(descent.rates), classes, descent, norm
        self.places = dim // channels if channels and norm == "batch" else 1
        rows = self.count * classes
        for name, shape in {"weight": (rows, dim), "bias": (rows,)}.items():
            self.register_buffer(name, torch.zeros(shape, device=device))
            self.register_buffer(f"{name}_velocity", torch.zeros(shape, device=device))
        self.register_buffer("mean", torch.zeros(dim // self.places, device=device))
        self.register_buffer("var", torch.ones(dim // self.places, device=device))
        rates = torch.tensor(descent.rates, device=device).repeat_interleave(classes)
        self.register_buffer("rates", rates, persistent=False)

    def fit(self, features: Features) -> None:
        """Take the statistics of ``standardize`` from the training features (N, d)."""
        mean, var = moments(features)
        self.mean.copy_(mean)
        self.var.copy_(var)

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor, factor: float) -> Tensor:
        """One step on a batch (N, d), (N,), at ``factor`` times each rate; returns the losses (R,).

        Normalized features are never formed: what is subtracted and divided goes into the weights, which
        are far smaller than a batch.
        """
        mean, var = self._statistics(features)
        losses, error = self.error(features, labels, *self._fold(mean, var))
        total = error.sum(1)
        gradient = error @ features
        if mean is not None and var is not None:
            gradient.addr_(total, mean, alpha=-1).mul_(torch.rsqrt(var + EPS))
        gradient.add_(self.weight, alpha=self.descent.weight_decay)
        self._descend(self.weight, self.weight_velocity, gradient, self.rates[:, None] * factor)
        self._descend(self.bias, self.bias_velocity, total, self.rates * (factor * self.descent.bias_rate))
        return losses

    def _statistics(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Mean and variance (d,) that a training batch is normalized by; the running ones move."""
        if self.norm == "batch":
            maps = features.view(len(features), -1, self.places) if self.places > 1 else features
            mean, var = torch.batch_norm_update_stats(maps, self.mean, self.var, 0.1)
            return self._spread(mean), self._spread(var)
        return (self.mean, self.var) if self.norm == "standardize" else (None, None)

    def _spread(self, values: Tensor) -> Tensor:
        """A channel's number, for each of its places."""
        return values.repeat_interleave(self.places) if self.places > 1 else values

    def _fold(self, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
        if mean is None or var is None:
            return self.weight, self.bias
        weight = self.weight * torch.rsqrt(var + EPS)
        return weight, self.bias - weight @ mean

    def error(self, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Each head's cross-entropy (R,), and its gradient for the logits (R * C, N).

        The batch is the last dimension: BLAS takes half the time for this narrow product that way round.
        """
        logits = torch.addmm(bias[:, None], weight, features.t()).view(self.count, self.classes, -1)
        logs = F.log_softmax(logits, 1)
        own = labels.expand(self.count, 1, -1)
        losses = -logs.gather(1, own).mean((1, 2))
        # A certain head would leave the other classes subnormal numbers, with which processors are slow.
        chances = logs.clamp_(min=FAINT).exp_()
        error = chances.scatter_add_(1, own, logs.new_full((), -1.0).expand_as(own)).div_(len(features))
        return losses, error.view(-1, len(features))

    def _descend(self, weight: Tensor, velocity: Tensor, gradient: Tensor, rates: Tensor) -> None:
        momentum = self.descent.momentum
        torch.add(gradient, velocity, alpha=momentum, out=velocity)
        if self.descent.nesterov:
            weight.addcmul_(gradient, rates, value=-1)
            weight.addcmul_(velocity, rates, value=-momentum)
        else:
            weight.addcmul_(velocity, rates, value=-1)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights (R, C, d) and biases (R, C) on features as they are: the normalization is folded in."""
        mean, var = (None, None) if self.norm == "none" else map(self._spread, (self.mean, self.var))
        weight, bias = self._fold(mean, var)
        return weight.view(self.count, self.classes, -1), bias.view(self.count, self.classes)
