"""What protocols share that judge the classifier which the method itself made."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.contracts import BenchError, Model, Run, Samples, Tap
from bench.features import blocks
from protocols._features import features, frozen


def head_of(model: Model) -> nn.Module:
    """:raises BenchError: there is none."""
    if model.head is None:
        raise BenchError("this model has no classifier of its own")
    return model.head


def scores(model: Model, samples: Samples, tap: Tap, classes: int, run: Run) -> Tensor:
    """Scores float32 (N, classes) of all images by the model's own head, on the CPU.

    :raises BenchError: no head, or one for other classes.
    """
    head = head_of(model)
    outputs = features(model, samples, [tap], run)[tap]
    with frozen(head), run.autocast():
        found = torch.cat([head(part.to(run.device)).float().cpu() for part in blocks(outputs, 1024)])
    if found.shape[1] != classes:
        raise BenchError(
            f"the model's classifier knows {found.shape[1]} classes, {samples.name} has {classes}"
        )
    return found
