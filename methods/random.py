"""The untrained encoder: what every pretext task has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.contracts import Backbone, DataShape, Method, Model, Run, TrainingSet
from bench.training import estimate_batch_norm
from methods.parts.pictures import all_images

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Random(Method):
    """Random weights, with batch-norm's statistics estimated in one pass over the training images."""

    shrinks: ClassVar[dict[str, str]] = {"batch_size": "batch"}
    paper: ClassVar[str] = "He, Zhang, Ren & Sun, Delving Deep into Rectifiers, ICCV 2015"
    depends_on: ClassVar[tuple[str, ...]] = ("backbone", "data", "seed")

    batch_size: int = 128

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The bare encoder."""
        return Model(backbone.build(generator=generator))

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Estimate the statistics; weights stay as they are."""
        model.to(run.device)
        if any(isinstance(m, _NORMS) for m in model.modules()):
            images = all_images(data.images, data.shape, self.batch_size)
            estimate_batch_norm(model.encoder, model.encoder, images)
            run.saw(len(data))
        run.snapshot(1, 1, model)
        return model
