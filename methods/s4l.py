"""S4L-Rotation: classify the few labeled images, and tell by how much every image was turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts import Backbone, DataShape, Model
from methods._apart import ApartLoop
from methods._loop import Batch, State
from methods.parts import heads
from methods.parts.views import channels_last

_TURNS = 4


@dataclass(frozen=True)
class SelfSupervisedSemi(ApartLoop):
    """Cross-entropy of the class on labeled images in four rotations, plus that of the rotation on all images.

    Defaults of ImageNet with a tenth of the labels: 200 epochs, of which 5 (25,000 steps) warm up. All rows go
    through the network in one pass, as released. Exemplar and the three steps of MOAM are not here.

    :param weight: of the rotation, the mean of its losses on the labeled and on the unlabeled rows, as released
        (in the paper's eq. 5, a mean over all); ``rotate_labeled``: labeled rows have one, too.
    """

    paper: ClassVar[str] = (
        "Zhai, Oliver, Kolesnikov & Beyer, S4L: Self-Supervised Semi-Supervised Learning, ICCV 2019"
    )
    distributed: ClassVar[bool] = True

    lr: float = 0.03
    weight_decay: float = 1e-3
    batch_size: int = 512
    labeled_batch: int = 256
    everything: bool = True
    schedule: str = "step"
    drops: tuple[float, ...] = (140 / 200, 160 / 200, 180 / 200)
    warmup: int = 25_000
    augment: str = "resized_crop"
    weight: float = 1.0
    rotate_labeled: bool = True

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder, a linear classifier, and a linear layer over the rotations."""
        encoder = backbone.build(generator=generator)
        classifier = heads.linear(encoder.dim, shape.classes, generator)
        return Model(encoder, classifier, parts={"rotation": heads.linear(encoder.dim, _TURNS, generator)})

    def passes(self, shape: DataShape) -> float:
        """Four rotations of every image."""
        return self.cost(shape, _TURNS, _TURNS)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 1 and 5: L_class over labeled copies plus w L_rot, the label kept by every rotation."""
        view = batch.views[0]
        turned = channels_last(torch.cat([torch.rot90(view, k, (2, 3)) for k in range(_TURNS)]))
        features = model.encoder(turned)
        turns = torch.arange(_TURNS, device=view.device).repeat_interleave(len(view))
        scores = model.parts["rotation"](features).float()
        wrong = F.cross_entropy(scores, turns, reduction="none").view(_TURNS, -1)
        labeled, unlabeled = wrong[:, : self.rows].mean(), wrong[:, self.rows :].mean()
        rotation = (labeled + unlabeled) / 2 if self.rotate_labeled else unlabeled
        assert model.head is not None
        classified = model.head(features).view(_TURNS, len(view), -1)[:, : self.rows].flatten(0, 1)
        labels = batch.targets[: self.rows].repeat(_TURNS)
        return {
            "class": F.cross_entropy(classified.float(), labels),
            "rotation": self.weight * rotation,
        }
