"""Learns a linear classifier from the labels that it is shown; the encoder stays random."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.contracts import Method, Model, Needs


@dataclass(frozen=True)
class Namer(Method):
    """One step of least squares on the shown labels."""

    paper: ClassVar[str] = "ours"
    sees_labels: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(labels=True)
    depends_on: ClassVar[tuple[str, ...]] = ("backbone", "data", "seed")
    variants: ClassVar[tuple[str, ...]] = ("blank",)

    def build(self, backbone, shape, generator):
        encoder = backbone.build(generator=generator)
        blank = Model(backbone.build(generator=generator), nn.Linear(encoder.dim, shape.classes))
        return Model(encoder, nn.Linear(encoder.dim, shape.classes), variants={"blank": blank})

    @torch.no_grad()
    def train(self, model, data, run):
        shown = data.labels >= 0
        features = model.encoder(data.images.pixels[shown])
        targets = nn.functional.one_hot(data.labels[shown], data.classes).float()
        model.head.weight.copy_(torch.linalg.lstsq(features, targets).solution.T)
        model.head.bias.zero_()
        return model
