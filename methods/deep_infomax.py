"""Deep InfoMax: the output should tell much about the input, or about every place of a feature map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.contracts import Backbone, BenchError, DataShape, Encoder, Model, initialize
from methods._loop import Batch, Loop, State
from methods.parts import gan
from methods.parts.critics import CRITICS, global_critic, local_critic
from methods.parts.mutual_information import OBJECTIVES, objective

_HIDDEN = (1000, 200)  # of the prior's discriminator


@dataclass(frozen=True)
class DeepInfomax(Loop):
    """Maximize the mutual information of the output Y with a feature map, and match Y to a uniform prior.

    The defaults are the local objective's, DIM(L), on CIFAR; DIM(G) is alpha 1, beta 0, gamma 1. The encoder
    that is handed on is the backbone, without Y. The paper prints the minimax loss for the prior; the release
    swaps the labels and adds a gradient penalty of 1.

    :param alpha: weight of the global objective; ``beta``: of the local one; ``gamma``: of the prior.
    :param objective: ``dv``, ``jsd``, or ``infonce``.
    :param layer: the encoder's layer whose places are the local features, and from which the global one starts.
    :param dim: of Y, a linear layer on the features; the prior is uniform on [0, 1]^dim, for sigmoid(Y).
    :param critic: ``dot`` (encode and dot, into ``units`` dimensions; the release's) or ``concat`` (concat
        and convolve, ``units`` hidden ones; the paper's is 512). All N^2 pairs of a batch are scored.
    :param adversary: ``minimax`` or ``swapped``; ``penalty``: of the discriminator's gradient.
    """

    paper: ClassVar[str] = (
        "Hjelm, Fedorov, Lavoie-Marchildon, Grewal, Bachman, Trischler & Bengio, "
        "Learning deep representations by mutual information estimation and maximization, ICLR 2019"
    )

    lr: float = 1e-4
    weight_decay: float = 0.0
    batch_size: int = 64
    optimizer: str = "adam"
    augment: str = "none"
    alpha: float = 0.0
    beta: float = 1.0
    gamma: float = 0.1
    objective: str = "jsd"
    layer: str = "conv2"
    dim: int = 64
    critic: str = "dot"
    units: int = 2048
    adversary: str = "minimax"
    penalty: float = 0.0

    def __post_init__(self) -> None:
        known = {"objective": OBJECTIVES, "critic": CRITICS, "adversary": gan.DECEPTIONS}
        for field, names in known.items():
            if getattr(self, field) not in names:
                raise BenchError(
                    f"deep_infomax.{field} must be one of {', '.join(names)}, not {getattr(self, field)!r}"
                )
        if not (self.alpha or self.beta):
            raise BenchError("deep_infomax needs an objective: alpha or beta must not be 0")

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder, Y, and the critics and the discriminator whose weight is not 0."""
        encoder = backbone.build(generator=generator)
        if self.layer not in encoder.layers:
            raise BenchError(
                f"deep_infomax.layer {self.layer!r} does not exist here; layers are: {', '.join(encoder.layers)}"
            )
        parts: dict[str, nn.Module] = {"output": nn.Linear(encoder.dim, self.dim)}
        initialize(parts["output"], generator)
        if self.beta:
            channels = encoder.channels[self.layer]
            parts["local"] = local_critic(self.critic, channels, self.dim, self.units, generator)
        if self.alpha:
            parts["above"] = encoder.above(self.layer, generator)
            parts["global"] = global_critic(self.critic, encoder.dim, self.dim, self.units, generator)
        if self.gamma:
            parts["discriminator"] = _discriminator(self.dim, generator)
        return Model(encoder, parts=parts)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 8: the weighted objectives, and the two sides of Eq. 7."""
        (view,) = batch.views
        maps, features = maps_and_features(model.encoder, view, self.layer)
        output = model.parts["output"](features)
        terms = {}
        if self.alpha:
            above = model.parts["above"](maps)[:, None]
            terms["global"] = -self.alpha * objective(self.objective, model.parts["global"](above, output))
        if self.beta:
            places = maps.flatten(2).transpose(1, 2)
            terms["local"] = -self.beta * objective(self.objective, model.parts["local"](places, output))
        return terms | (self._prior(model, batch, output) if self.gamma else {})

    def _prior(self, model: Model, batch: Batch, output: Tensor) -> dict[str, Tensor]:
        """Eq. 7: the discriminator learns to tell draws from outputs, the encoder to deceive it."""
        discriminator = model.parts["discriminator"]
        encoded, drawn = output.float().sigmoid(), batch.draws().uniform(self.dim)
        told = gan.distinguish(discriminator(drawn), discriminator(encoded.detach()))
        if self.penalty:
            slopes = gan.penalty(discriminator, drawn) + gan.penalty(discriminator, encoded)
            told = told + self.penalty * slopes / 2
        deceived = gan.deceive(gan.held(discriminator, encoded), self.adversary)
        return {"prior": self.gamma * deceived, "discriminator": told}


def maps_and_features(encoder: Encoder, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """The maps (N, C, h, w) at a layer and the features (N, dim), in one pass."""
    x, maps = encoder.input(images), None
    for name, stage in encoder.trunk.named_children():
        x = stage(x)
        maps = x if name == layer else maps
    assert maps is not None
    return maps, encoder.pool(x)


def _discriminator(dim: int, generator: torch.Generator) -> nn.Module:
    first, second = _HIDDEN
    network = nn.Sequential(
        nn.Linear(dim, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 1)
    )
    initialize(network, generator)
    return network
