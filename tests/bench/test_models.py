"""What a method builds is decided by the training's seed, wherever the method takes its randomness from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from bench.session import Session
from bench.worker.models import build


def test_layers_that_draw_from_the_global_generator_are_the_trainings_own(tmp_path):
    """Outside methods use a plain nn.Linear, and torch's own initialization."""
    method = cast("Any", SimpleNamespace(build=lambda *_: nn.Linear(3, 2)))

    def weight(seed, before):
        torch.manual_seed(before)
        session = Session(tmp_path, seed=seed, device=torch.device("cpu"), cache=cast("Any", None))
        return build(method, cast("Any", None), cast("Any", None), session).weight

    assert torch.equal(weight(0, before=1), weight(0, before=2))
    assert not torch.equal(weight(0, before=1), weight(1, before=1))
