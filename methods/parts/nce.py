"""Noise-contrastive estimation of a softmax over all training images.

Wu et al., Non-Parametric Instance Discrimination, CVPR 2018, section 3.2: Eq. 4 (the probability with its
constant Z), Eq. 5 (the posterior), Eq. 6 and 7 (the loss), Eq. 8 (the estimate of Z).
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-7  # the release's, against log 0


def nce_loss(positive: Tensor, negative: Tensor, constant: Tensor, count: int) -> Tensor:
    """Minus the log posterior of the data and of m noise samples: their sum, mean over the batch.

    :param positive: v . m_i / temperature, (B,); ``negative``: (B, m), with uniformly drawn entries.
    :param constant: Z, 0-dimensional; ``count``: N, so that the noise's probability is 1 / N.
    """
    noise = negative.shape[1] / count
    data, other = positive.exp() / constant, negative.exp() / constant
    found = torch.log(data / (data + noise + _EPSILON))
    rejected = torch.log(noise / (other + noise + _EPSILON)).sum(1)
    return -(found + rejected).mean()


@torch.no_grad()
def estimate_constant(positive: Tensor, negative: Tensor, count: int) -> Tensor:
    """Eq. 8: Z = N times the mean of exp over the first batch's scores, the positive ones among them."""
    scores = torch.cat([positive[:, None], negative], 1)
    return scores.float().exp().mean() * count
