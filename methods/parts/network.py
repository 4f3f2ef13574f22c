"""A classifier from its network's own input on, where images are mixed and perturbed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import BenchError, Model


def inputs(model: Model, images: Tensor) -> Tensor:
    """What the input module makes of the pixels: normalized, whitened."""
    found: Tensor = model.encoder.input(images)
    return found


def classify(model: Model, inputs: Tensor) -> Tensor:
    """Class scores of network inputs: ``classify(model, inputs(model, images))`` is ``model(images)``."""
    if model.head is None:
        raise BenchError("this model has no classifier of its own")
    scores: Tensor = model.head(model.encoder.pool(model.encoder.trunk(inputs)))
    return scores


def one_hot(labels: Tensor, model: Model) -> Tensor:
    """Labels (N,) as float (N, C), with as many classes as the model's classifier tells apart."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return F.one_hot(labels, layers[-1].out_features).float()
