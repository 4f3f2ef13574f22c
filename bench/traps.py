"""Traps of judging: what makes a number worthless is told beside it, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bench.contracts import Method, Model, Target

State: TypeAlias = "dict[str, Tensor]"

LEVEL = 0.95  # of the binomial: a guesser is called better than chance once in twenty


def state(module: nn.Module | None) -> State:
    """A copy of weights and buffers."""
    return {} if module is None else {k: v.detach().clone() for k, v in module.state_dict().items()}


def moved(before: State, module: nn.Module) -> list[str]:
    """That judging changed what it judged: later numbers are another model's."""
    after = module.state_dict()
    names = [k for k, v in before.items() if not torch.equal(v, after[k])]
    return [f"the model changed while it was judged ({', '.join(names[:3])})"] if names else []


def untrained(method: Method, fresh: Mapping[str, State], model: Model) -> list[str]:
    """That weights which a training should have changed are as they were made.

    :param fresh: copies of ``encoder`` and ``head`` before the saved weights were read.
    """
    found = []
    reads = any(getattr(method, field) for field in method.files)
    if reads or "budget" in method.depends_on:
        weights = dict(model.encoder.named_parameters())
        if weights and all(torch.equal(fresh["encoder"][k], v) for k, v in weights.items()):
            found.append("the encoder has its initial weights: not trained, or not loaded")
    head = state(model.head)
    if head and all(torch.equal(fresh["head"][k], v) for k, v in head.items()):
        found.append("the classifier has its initial weights: it was never trained")
    return found


def at_chance(rows: Sequence[Mapping[str, Any]], target: Target) -> dict[int, str]:
    """Which rows' top1 on test no guesser would be ashamed of, by place: as good as naming the largest class.

    Of a curve over steps only the last counts: all begin there.
    """
    from scipy.stats import binom

    if target.test.labels is None:
        return {}
    labels = target.test.labels[target.test.labels >= 0].cpu()
    if not len(labels):
        return {}
    share = float(torch.bincount(labels).max()) / len(labels)
    limit = 100.0 * float(binom.ppf(LEVEL, len(labels), share)) / len(labels)
    last: dict[str, int] = {}
    for place, row in enumerate(rows):
        if row["metric"] == "top1" and row["split"] == "test":
            last[row["layer"]] = place
    text = f"top1 is at chance (up to {limit:.1f}, the largest class {100 * share:.1f})"
    return {place: text for place in last.values() if rows[place]["value"] <= limit}
