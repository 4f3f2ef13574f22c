"""Random weights rescaled on the data: every channel has unit variance, all layers learn at the same rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from bench.contracts import Backbone, BenchError, DataShape, Encoder, Method, Model, Needs, Run, TrainingSet
from methods.parts.pictures import all_images

Layer: TypeAlias = "nn.Conv2d | nn.Linear"

_PATCHES = 20_000  # rows that PCA and k-means see of a layer: the release samples too
_FLOOR = 1e-3  # the release's, under the eigenvalues


@dataclass(frozen=True)
class RandomRescaled(Method):
    """Data-dependent initialization, layer by layer (Algorithm 1) and then between the layers (Algorithm 2).

    Where a layer has more channels than its patches have dimensions, ``pca`` fills up with random mixtures of
    the components (the release leaves that open). Only for convolutions and ReLUs without batch norm.

    :param weights: ``gaussian``; ``pca``: components of the layer's input patches; ``kmeans``: their centers.
    :param batches: of ``batch_size`` images, for all statistics; ``bias``: mean of every channel afterwards.
    :param calibrations: iterations between the layers, 0 for none.
    """

    shrinks: ClassVar[dict[str, str]] = {"batch_size": "batch"}
    paper: ClassVar[str] = (
        "Krähenbühl, Doersch, Donahue & Darrell, Data-dependent Initializations of CNNs, ICLR 2016"
    )
    needs: ClassVar[Needs] = Needs(batch_norm_free=True)
    depends_on: ClassVar[tuple[str, ...]] = ("backbone", "data", "seed")

    weights: str = "gaussian"
    batches: int = 10
    batch_size: int = 128
    bias: float = 0.1
    calibrations: int = 10

    def __post_init__(self) -> None:
        if self.weights not in {"gaussian", "pca", "kmeans"}:
            raise BenchError(f"weights must be gaussian, pca or kmeans, not {self.weights!r}")

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The bare encoder."""
        return Model(backbone.build(generator=generator))

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Rescale the encoder in place."""
        encoder, generator = model.to(run.device).encoder, run.generator("weights")
        images = torch.cat(
            list(itertools.islice(all_images(data.images, data.shape, self.batch_size), self.batches))
        )
        batches = images.split(self.batch_size)  # type: ignore[no-untyped-call]
        layers = layers_in_order(encoder, batches[0])
        for layer in layers:
            self._within(encoder, layer, batches, generator)
        for _ in range(self.calibrations):
            calibrate(encoder, layers, batches, generator)
        run.saw(len(images))
        run.snapshot(1, 1, model)
        return model

    @torch.no_grad()
    def _within(
        self, encoder: Encoder, layer: Layer, batches: tuple[Tensor, ...], generator: torch.Generator
    ) -> None:
        """Algorithm 1: draw the weights, divide by the channels' deviation, center."""
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        if self.weights != "gaussian":
            patches = _patches(encoder, layer, batches[0], generator)
            basis = (
                _pca(patches) if self.weights == "pca" else _centers(patches, len(layer.weight), generator)
            )
            rows = layer.weight.flatten(1)
            rows = rows[:, : len(basis)] @ basis if len(rows) > len(basis) else rows
            rows[: len(basis)] = basis[: len(rows)]
            layer.weight.copy_(rows.view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.zero_()
        channels = torch.cat(
            [_output(encoder, layer, batch).transpose(0, 1).flatten(1) for batch in batches], 1
        )
        deviation = channels.std(1).clamp_min(1e-8)
        layer.weight.div_(deviation.view(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.copy_(self.bias - channels.mean(1) / deviation)


def layers_in_order(encoder: Encoder, images: Tensor) -> list[Layer]:
    """The layers with weights, as a forward pass meets them."""
    found: list[Layer] = []
    hooks = [
        m.register_forward_pre_hook(lambda layer, _: found.append(layer))
        for m in encoder.modules()
        if isinstance(m, (nn.Conv2d, nn.Linear)) and m.weight.requires_grad
    ]
    with torch.no_grad():
        encoder(images[:1])
    for hook in hooks:
        hook.remove()
    return found


def calibrate(
    encoder: Encoder, layers: list[Layer], batches: tuple[Tensor, ...], generator: torch.Generator
) -> None:
    """One iteration of Algorithm 2: bring all RMS(gradient) / RMS(weight) nearer to their geometric mean."""
    weights = [layer.weight for layer in layers]
    energy = torch.zeros(len(layers))
    for batch in batches:
        output = encoder(batch)
        noise = torch.randn(output.shape, generator=generator).to(output.device)
        gradients = torch.autograd.grad(output, weights, noise)
        energy += torch.stack([g.square().mean() for g in gradients]).cpu()
    ratio = (energy / len(batches)).sqrt() / torch.stack(
        [w.detach().square().mean().sqrt() for w in weights]
    ).cpu()
    log_scale = 0.5 * (ratio.log() - ratio.log().mean())
    with torch.no_grad():
        for layer, own, below in zip(layers, log_scale, log_scale.cumsum(0), strict=True):
            layer.weight.mul_(math.exp(own))
            if layer.bias is not None:
                layer.bias.mul_(math.exp(below))  # its input was scaled by all layers below


@contextmanager
def _seen(layer: Layer, *, output: bool) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, inputs, out: seen.append(out if output else inputs[0]))
    yield seen
    hook.remove()


def _output(encoder: Encoder, layer: Layer, images: Tensor) -> Tensor:
    with _seen(layer, output=True) as seen:
        encoder(images)
    return seen[0]


def _patches(encoder: Encoder, layer: Layer, images: Tensor, generator: torch.Generator) -> Tensor:
    """At most 20,000 centered input patches, (rows, fan in)."""
    with _seen(layer, output=False) as seen:
        encoder(images)
    rows = seen[0]
    if isinstance(layer, nn.Conv2d):
        pad = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
        rows = F.unfold(
            rows[:, : layer.weight.shape[1]], layer.kernel_size, layer.dilation, pad, layer.stride
        )
        rows = rows.transpose(1, 2).flatten(0, 1)
    rows = rows[torch.randperm(len(rows), generator=generator)[:_PATCHES].to(rows.device)]
    return rows - rows.mean(0)


def _pca(patches: Tensor) -> Tensor:
    """Whitened components, one a row, the largest first."""
    variance, axes = torch.linalg.eigh(patches.double().T @ patches.double() / len(patches))
    components: Tensor = (axes / (variance + _FLOOR).sqrt()).T.flip(0).float()
    return components


def _centers(patches: Tensor, count: int, generator: torch.Generator) -> Tensor:
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    count = min(count, len(patches))
    engine = MiniBatchKMeans(count, random_state=seed, n_init=1).fit(patches.cpu().numpy().astype(np.float64))
    return torch.from_numpy(engine.cluster_centers_).float().to(patches.device)
