"""Batch norm over the batches of all processes that train a model, on devices for which torch has none."""

from __future__ import annotations

import torch
import torch.distributed.nn.functional as together
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench import distributed


class SyncBatchNorm(_BatchNorm):
    """Ioffe & Szegedy's batch norm (ICML 2015), its mean and variance those of all processes' batches.

    Alone, or in eval mode, it is torch's own.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's word
        """Any (N, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's word
        """(N, C, ...) to the same shape."""
        if not self.training or distributed.current().size == 1:
            return super().forward(input)
        places = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        count = input.new_tensor([input.numel() / input.shape[1]])
        sums = _summed(torch.cat([input.sum(places), count]))
        total = sums[-1]
        mean = sums[:-1] / total
        centered = input - mean.view(shape)
        variance = _summed((centered * centered).sum(places)) / total
        self._follow(mean.detach(), variance.detach(), total.detach())
        scale = torch.rsqrt(variance + self.eps)
        out = centered * scale.view(shape)
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        """The running statistics, of which the variance is the unbiased one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * total / (total - 1), share)


def _summed(values: Tensor) -> Tensor:
    """Over all processes, gradients too."""
    total: Tensor = together.all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def synchronized(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with the batch norms of all processes in place of its own: torch's on a GPU, ours elsewhere."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-any-return,no-untyped-call]
    if isinstance(module, _BatchNorm):
        return _ours(module)
    for name, child in module.named_children():
        setattr(module, name, synchronized(child, device))
    return module


def _ours(norm: _BatchNorm) -> SyncBatchNorm:
    made = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.load_state_dict(norm.state_dict())
    for own, theirs in zip(made.parameters(), norm.parameters(), strict=True):
        own.requires_grad_(theirs.requires_grad)
    return made.train(norm.training)
