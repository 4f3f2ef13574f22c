"""Colorization from hypercolumns: the histograms of hue and chroma around a few pixels of a gray image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.augment import unit
from bench.contracts import Backbone, DataShape, Model, Needs, Run, TrainingSet
from methods._loop import Batch, Loop, State
from methods.parts import heads
from methods.parts.gallery import examples, gallery, judged
from methods.parts.hue_chroma import Intensity, around, color, expected, histograms, hue_chroma
from methods.parts.hypercolumns import hypercolumns


@dataclass(frozen=True)
class LarssonColorization(Loop):
    """Predict distributions of hue and chroma at random pixels from all layers there; defaults are the released ones.

    The later release (CVPR 2017) reads 256 pixels and takes the pixel's own bin instead of a histogram: ``window`` 1.
    What lies above the taps is not trained: use a backbone without a top.

    :param locations: random pixels of each image; ``margin``: share of the side along the border that has none.
    :param bins: of hue and of chroma; ``window``: side in pixels of the square that a histogram counts.
    :param hue: times the pixel's chroma, the weight of hue's divergence beside chroma's.
    :param fading: chroma's divergence fades towards black and white, as in the release: 3 min(g, 1/3, 1 - g).
    :param hidden: units between the hypercolumn and the histograms, with ``dropout``.
    """

    paper: ClassVar[str] = (
        "Larsson, Maire & Shakhnarovich, Learning Representations for Automatic Colorization, ECCV 2016; "
        "Colorization as a Proxy Task for Visual Understanding, CVPR 2017"
    )
    needs: ClassVar[Needs] = Needs(color=True)
    distributed: ClassVar[bool] = True

    lr: float = 0.001
    batch_size: int = 8
    schedule: str = "step"
    drops: tuple[float, ...] = (0.5, 0.75, 0.875)
    locations: int = 128
    margin: float = 0.14
    bins: int = 32
    window: int = 7
    hue: float = 5.0
    fading: bool = False
    hidden: int = 1024
    dropout: float = 0.5

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """An encoder of gray images, a hidden layer on its hypercolumns, and two classifiers."""
        encoder = backbone.build(generator=generator, in_channels=1, input=Intensity())
        wide = sum(encoder.channels[layer] for layer in encoder.layers)
        hidden = heads.linear(wide, self.hidden, generator, std=(2 / wide) ** 0.5)
        parts = {"hidden": nn.Sequential(*hidden[1:], nn.ReLU(), nn.Dropout(self.dropout))}
        parts |= {name: heads.linear(self.hidden, self.bins, generator) for name in ("hue", "chroma")}
        return Model(encoder, parts=parts)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """KL(chroma) + 5 y_C KL(hue), means over the pixels; y_C is a pixel's own chroma."""
        (view,) = batch.views
        places = self._places(batch, view)
        scores = self._scores(model, view, places)
        hue, chroma = hue_chroma(around(view, places, min(self.window, *view.shape[2:])))
        own = around(view, places, 1)
        weight: dict[str, Tensor | float] = {"hue": self.hue * hue_chroma(own)[1].flatten(), "chroma": 1.0}
        if self.fading:
            light = unit(own).float().mean(1).flatten()
            weight["chroma"] = 3 * torch.minimum(light, 1 - light).clamp(max=1 / 3)
        return {
            name: (weight[name] * self._divergence(scores[name], values)).mean()
            for name, values in (("hue", hue), ("chroma", chroma))
        }

    def _divergence(self, scores: Tensor, values: Tensor) -> Tensor:
        true = histograms(values, self.bins)
        return F.kl_div(F.log_softmax(scores, 1), true, reduction="none").sum(1)

    def _places(self, batch: Batch, view: Tensor) -> Tensor:
        """Pixels (N, locations, 2), y and x, away from the border."""
        draws, sides = batch.draws(), view.shape[2:]
        edges = [min(round(self.margin * side), (side - 1) // 2) for side in sides]
        return torch.stack(
            [
                draws.integers(s - 2 * edge, self.locations) + edge
                for s, edge in zip(sides, edges, strict=True)
            ],
            2,
        )

    def _scores(self, model: Model, images: Tensor, places: Tensor) -> dict[str, Tensor]:
        """Scores (N P, bins) of hue and chroma at pixels."""
        middles = (places + 0.5) / torch.tensor(images.shape[2:], device=places.device)
        maps = model.encoder.activations(images, model.encoder.layers)
        hidden = model.parts["hidden"](hypercolumns(maps.values(), middles))
        return {name: model.parts[name](hidden).float() for name in ("hue", "chroma")}

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Descend; then show some images as gray, colorized and true."""
        super().train(model, data, run)
        images = examples(data.images, data.shape, self.crop)
        count, _, height, width = images.shape
        axes = [torch.arange(side, device=images.device) for side in (height, width)]
        places = torch.cartesian_prod(*axes).expand(count, -1, 2)
        with judged(model):
            shares = {name: s.softmax(1) for name, s in self._scores(model, images, places).items()}
        hue, chroma = (
            found.view(count, height, width) for found in expected(shares["hue"], shares["chroma"])
        )
        gray = images.mean(1)
        colored = color(hue, chroma, gray)
        run.picture("colorized", gallery([gray.unsqueeze(1).expand_as(images), colored, images]))
        return model
