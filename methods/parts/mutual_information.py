"""Objectives on the scores T of pairs: two lower bounds on mutual information in nats, and a divergence.

Hjelm et al., Learning deep representations by mutual information estimation and maximization, ICLR 2019,
section 3.1 and 3.2: Eq. 2 (Donsker & Varadhan), Eq. 4 (Jensen-Shannon) and Eq. 5 (InfoNCE, of van den Oord,
Li & Vinyals, 2018). All are to be maximized. The best critic of each is the log density ratio, for the
first up to a constant, for the last up to a function of the context.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OBJECTIVES = ("dv", "jsd", "infonce")


def donsker_varadhan(joint: Tensor, product: Tensor) -> Tensor:
    """E_J[T] - log E_M[exp T]: (n, ...) pairs that belong together and (m, ...) that do not; mean over "..."."""
    partition = torch.logsumexp(product, 0) - math.log(len(product))
    return (joint.mean(0) - partition).mean()


def jensen_shannon(joint: Tensor, product: Tensor) -> Tensor:
    """E_J[log 2 - softplus(-T)] - E_M[softplus(T) - log 2]: at most twice the Jensen-Shannon divergence.

    No estimate of the mutual information. The release adds the constants to Eq. 4: a critic that knows
    nothing gets 0.
    """
    found = (math.log(2) - F.softplus(-joint)).mean()
    mistaken = (F.softplus(product) - math.log(2)).mean()
    return found - mistaken


def infonce(scores: Tensor) -> Tensor:
    """E[log softmax] of the pair that belongs together among K candidates, plus log K: below log K.

    :param scores: of context i and sample j, (N, N), or (N, N, L) with L places of a sample. The candidates of
        a context are one of its own sample's places and all L places of the N - 1 others. The release gives the
        sample's other places a score of -10; here they are left out.
    """
    places = scores if scores.ndim == 3 else scores[:, :, None]
    count = len(places)
    own = torch.eye(count, dtype=torch.bool, device=scores.device)[:, :, None]
    others = torch.logsumexp(places.masked_fill(own, -torch.inf).flatten(1), 1)
    together = places.diagonal().T  # (N, L)
    candidates = 1 + (count - 1) * places.shape[2]
    return math.log(candidates) + (together - torch.logaddexp(together, others[:, None])).mean()


def split(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, N, ...) of all pairs: those on the diagonal (N, ...), and the others (N (N - 1), ...)."""
    count = len(scores)
    others = scores.flatten(0, 1)[1:].reshape(count - 1, count + 1, *scores.shape[2:])[:, :-1]
    return scores.diagonal().movedim(-1, 0), others.flatten(0, 1)


def objective(name: str, scores: Tensor) -> Tensor:
    """One of :data:`OBJECTIVES` on the scores of all pairs of a batch, (N, N) or (N, N, L): to be maximized.

    ``dv`` and ``jsd`` are of each of the L places on its own, and averaged (Eq. 8).
    """
    if name == "infonce":
        return infonce(scores)
    return {"dv": donsker_varadhan, "jsd": jensen_shannon}[name](*split(scores))
