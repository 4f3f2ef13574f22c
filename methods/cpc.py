"""Contrastive predictive coding on images: from the rows of patches above, pick the patches below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import Backbone, BenchError, DataShape, Draws, Model, Needs
from methods._loop import Batch, Loop, State
from methods.parts import overlapping, views
from methods.parts.causal import RowContext

_WINDOWS = 0xC9C  # tells the draws of the patches' windows apart


@dataclass(frozen=True)
class Cpc(Loop):
    """Encode overlapping patches, sum up the rows so far, and predict the rows below among all patches.

    The defaults are ImageNet's. It trains without batch norm, through which the patches of an image would know each
    other: a backbone that has one is refused. The paper's views are cut from images of 300 pixels, here of 292.

    :param crop: side of the view; ``patch``, ``stride``: of the grid (7 x 7), in pixels.
    :param window: the defense: each patch shows a random window of so many pixels, padded back; 0: all of it.
    :param steps: rows that are predicted, where the grid has as many; ``skip``: rows between a context and the
        first of them, which would overlap it (the paper's figure begins two rows below).
    :param blocks: of the masked convolutions that make the context, ``width`` maps each.
    :param group: images whose patches are each other's negatives: a GPU's share of the paper's batch.
    :param feature_norm: layer norm on a patch's features; short trainings need it.
    """

    shrinks: ClassVar[dict[str, str]] = {"batch_size": "batch", "group": "batch"}
    paper: ClassVar[str] = (
        "van den Oord, Li & Vinyals, Representation Learning with Contrastive Predictive Coding, arXiv 2018"
    )
    from_description: ClassVar[str] = "no code was released; the context's masked convolutions are ours"
    needs: ClassVar[Needs] = Needs(batch_norm_free=True)

    lr: float = 2e-4
    weight_decay: float = 0.0
    batch_size: int = 512
    optimizer: str = "adam"
    crop: int = 256
    gray: float = 1.0
    patch: int = 64
    stride: int = 32
    window: int = 60
    steps: int = 5
    skip: int = 1
    blocks: int = 5
    width: int = 256
    group: int = 16
    feature_norm: bool = False

    def __post_init__(self) -> None:
        if self.batch_size % self.group:
            raise BenchError(f"cpc.batch_size {self.batch_size} must be a multiple of group {self.group}")
        if not 0 <= self.window <= self.patch:
            raise BenchError(f"cpc.window must be 0 to {self.patch} (patch), not {self.window}")

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder, the context's network, and a matrix W_k for each row ahead."""
        ahead = min(self.steps, self._rows(shape) - 1 - self.skip)
        if ahead < 1:
            raise BenchError(
                f"cpc needs {self.skip + 2} rows of patches, and these are {self._rows(shape)}: "
                "choose a smaller patch or stride"
            )
        encoder = backbone.build(generator=generator)
        predictions = nn.ModuleList(nn.Linear(encoder.dim, encoder.dim, bias=False) for _ in range(ahead))
        for one in predictions.parameters():
            with torch.no_grad():
                one.copy_(torch.randn(one.shape, generator=generator) / encoder.dim)
        context = RowContext(encoder.dim, self.width, self.blocks, generator)
        return Model(encoder, parts={"context": context, "predictions": predictions})

    def passes(self, shape: DataShape) -> float:
        """Patches count by their area."""
        return views.area(shape, self.patch) * self._rows(shape) ** 2

    def _rows(self, shape: DataShape) -> int:
        return overlapping.rows(self.crop or shape.side or views.STANDARD_CROP, self.patch, self.stride)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 4, mean over the rows ahead and all contexts."""
        z = self.encode(model, self.patches(batch))
        context = model.parts["context"](z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        group = self.group if len(z) % self.group == 0 else len(z)
        predictions = model.parts["predictions"].children()
        with torch.autocast(z.device.type, enabled=False):  # sums of products are not for bfloat16
            z, context = z.float(), context.float()
            found = [
                contrast(predict(context[:, :-ahead]), z, ahead, group)
                for ahead, predict in enumerate(predictions, 1 + self.skip)
            ]
        return {"infonce": torch.stack(found).mean()}

    def patches(self, batch: Batch) -> Tensor:
        """(N, rows, columns, 3, patch, patch), each with a window of its own."""
        patches = overlapping.grid(batch.views[0], self.patch, self.stride)
        if not self.window:
            return patches
        shape, each = patches.shape, patches.shape[1] * patches.shape[2]
        index = (batch.index[:, None] * each + torch.arange(each, device=batch.index.device)).flatten()
        draws = Draws(batch.seed, batch.step, index, stream=_WINDOWS)
        return overlapping.loosened(patches.flatten(0, 2), self.window, draws).view(shape)

    def encode(self, model: Model, patches: Tensor) -> Tensor:
        """z: one vector a patch, (N, rows, columns, dim)."""
        features: Tensor = model.encoder(views.channels_last(patches.flatten(0, 2)))
        if self.feature_norm:
            features = F.layer_norm(features, features.shape[1:])
        return features.view(*patches.shape[:3], -1)


def contrast(predicted: Tensor, z: Tensor, ahead: int, group: int) -> Tensor:
    """InfoNCE: each prediction's own patch against all other patches of its group of images.

    :param predicted: W_k c, (N, rows - ahead, columns, d): what lies ``ahead`` rows below; ``z``: (N, rows, columns, d).
    """
    candidates = z.unflatten(0, (-1, group)).flatten(1, 3)  # type: ignore[no-untyped-call]
    asked = predicted.unflatten(0, (-1, group)).flatten(1, 3)  # type: ignore[no-untyped-call]
    scores = torch.bmm(asked, candidates.transpose(1, 2)).flatten(0, 1)
    places = torch.arange(candidates.shape[1], device=z.device).view(group, *z.shape[1:3])
    return F.cross_entropy(scores, places[:, ahead:].flatten().repeat(len(candidates)))
