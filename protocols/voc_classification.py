"""Which classes are in an image: the encoder, or what lies above its convolutions, trained on several labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.augment import Chain, Flip, Resize, ResizedCrop, unit
from bench.contracts import (
    BenchError,
    Draws,
    Encoder,
    Frame,
    Measurement,
    Model,
    Run,
    Samples,
    Target,
    TargetNeeds,
    initialize,
)
from bench.metrics import AVERAGE_PRECISIONS, mean_ap
from protocols._dense import drawn, settle
from protocols._descent import Descending, Descent, backward, judged
from protocols._features import frozen, in_order
from protocols._views import SHORT_SIDE

NARROW, BIAS = 0.01, 0.1  # a new classifier's deviation in any case, and Caffe's constant biases
GRID = 6  # pool5's side, of what is made anew where the backbone has no fc6
TEST_EPOCH = 1 << 40  # of the draws of the test crops: no training comes so far
Batch: TypeAlias = "tuple[Tensor, Tensor]"  # images (N, 3, side, side), presence (N, C)


@dataclass(frozen=True)
class ScaleCrop:
    """A window of ``side`` anywhere in the image after a resize by a factor in ``scale``, which is no smaller.

    One bilinear sampling does both. An image that is smaller than the window after its resize is enlarged
    until it fits.
    """

    side: int
    scale: tuple[float, float]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        n, _, height, width = images.shape
        seen = self.side / draws.uniform(low=self.scale[0], high=self.scale[1])  # of the image as it is
        seen = seen.clamp(max=min(height, width))
        x, y = (draws.uniform() * (length - seen) + seen / 2 for length in (width, height))
        theta = torch.zeros(n, 2, 3, device=images.device)
        theta[:, 0, 0], theta[:, 0, 2] = seen / width, 2 * x / width - 1
        theta[:, 1, 1], theta[:, 1, 2] = seen / height, 2 * y / height - 1
        grid = F.affine_grid(theta, [n, 3, self.side, self.side], align_corners=False)
        return F.grid_sample(unit(images), grid, padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class FixedCrop:
    """The window of ``side`` at (down, across) in 0, 1/2, 1 of the free room, mirrored or not."""

    side: int
    down: float
    across: float
    mirrored: bool

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        top, left = (
            int(at * (length - self.side))
            for at, length in zip((self.down, self.across), images.shape[2:], strict=True)
        )
        cut = images[..., top : top + self.side, left : left + self.side]
        return cut.flip(-1) if self.mirrored else cut


@dataclass(frozen=True)
class VocClassification(Descending):
    """Presence of each class, by sigmoid cross-entropy; mean average precision (%).

    Defaults are Kraehenbuehl's. What is present only as difficult is left out, in training and in judging.
    DeepCluster's are called by name, as ``recipe = "deepcluster"`` (voc_classification.toml).

    :param train: ``all`` layers; ``fc6-8``: those above the convolutions, which keep their weights; ``fc8``:
        the classifier alone.
    :param fresh: what begins anew, ``fc8`` (the reference code's default) or ``fc6-8``; what is neither
        trained nor anew keeps its weights. A backbone without fc6 and fc7 gets new ones of ``hidden`` units on
        the last maps, averaged to 6x6, for ``fc6-8``, and none otherwise.
    :param std: of the new layers' weights; layers much narrower than 4096 hardly pass it on. 0: by each
        layer's inputs below the classifier (He et al., ICCV 2015), without the constant biases.
    :param crop: ``scale``: a window of ``side`` of the image resized by a factor in ``scale``; ``area``: a square
        of a share of the image in ``area``.
    :param test: ``random``: ``crops`` crops as in training, scores summed; ``ten``: the corners and the middle
        of the image at ``side`` * 256 / 224, and their mirror images.
    :param ap: which average precision is called mAP: ap_sklearn (the reference's), ap_11pt, ap_envelope.
    :param tie_rule: of scores nearer than 1e-5 the negative ranks higher, as in both papers' code.
    """

    shrinks: ClassVar[dict[str, str]] = {"batch_size": "batch"}
    paper: ClassVar[str] = (
        "Kraehenbuehl, Doersch, Donahue & Darrell, Data-dependent Initializations of Convolutional Neural "
        "Networks, ICLR 2016; Caron, Bojanowski, Joulin & Douze, Deep Clustering, ECCV 2018"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(annotation="multilabel", trainable=True)

    train: str = "fc6-8"
    fresh: str = "fc6-8"
    hidden: int = 4096
    dropout: float = 0.5
    std: float = 0.01
    steps: int = 80_000
    batch_size: int = 16
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-6
    bias_rate: float = 2.0
    clip: float = 10.0
    schedule: str = "step"
    drops: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    gamma: float = 0.5
    side: int = 227
    crop: str = "scale"
    scale: tuple[float, float] = (0.5, 2.0)
    area: tuple[float, float] = (0.1, 0.5)
    test: str = "random"
    crops: int = 10
    batch_norm: str = "frozen"
    ap: str = "ap_sklearn"
    tie_rule: bool = True

    def __post_init__(self) -> None:
        known = {
            "train": ("all", "fc6-8", "fc8"),
            "fresh": ("fc6-8", "fc8"),
            "crop": ("scale", "area"),
            "test": ("random", "ten"),
            "batch_norm": ("frozen", "train"),
            "ap": tuple(AVERAGE_PRECISIONS),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                found = getattr(self, name)
                raise BenchError(f"voc_classification.{name} is {found!r}; write one of {', '.join(values)}")
        if (self.train, self.fresh) == ("fc8", "fc6-8"):
            raise BenchError(
                'voc_classification.fresh is "fc6-8", which fc8 alone does not train; write "fc8"'
            )

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        training = _Training(self, model.encoder, target, run)
        training.descend()
        for split, samples in judged(target):
            scores, labels = training.judge(samples), _presence(samples)
            for name in AVERAGE_PRECISIONS:
                yield Measurement(
                    name, 100 * mean_ap(scores.sum(1), labels, name, self.tie_rule), split=split
                )
            once = scores[:, 0] if self.test == "random" else scores[:, _MIDDLE]
            for metric, found in (("mAP", scores.sum(1)), ("mAP_1crop", once)):
                yield Measurement(metric, 100 * mean_ap(found, labels, self.ap, self.tie_rule), split=split)

    def random_view(self, flip: bool) -> Frame:
        """The crop of training, and of the test by random crops."""
        crop = (
            ScaleCrop(self.side, self.scale)
            if self.crop == "scale"
            else ResizedCrop(self.side, self.area, (1, 1))
        )
        return Chain((crop, *((Flip(),) if flip else ())))

    def test_views(self, flip: bool) -> list[Frame]:
        """What an image is judged by, one crop each."""
        if self.test == "random":
            return [self.random_view(flip)] * self.crops
        resize = Resize(math.ceil(self.side * SHORT_SIDE))
        return [
            Chain((resize, FixedCrop(self.side, *place, mirror)))
            for mirror in (False, True)
            for place in _PLACES
        ]


_PLACES = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
_MIDDLE = 4


class _Training(Descent["_Classifier", Batch]):
    """One descent, and scoring by it."""

    def __init__(self, protocol: VocClassification, encoder: Encoder, target: Target, run: Run) -> None:
        self.protocol, self.images, self.flip = protocol, target.train.images, target.flip
        self.labels = _presence(target.train).to(run.device)
        net = _Classifier(protocol, encoder, target.classes, run.generator("voc_classification"))
        count, size = len(self.labels), protocol.batch_size
        super().__init__(protocol, net, run, count=count, size=size, bias_decay=1.0)
        self.weights = [p for p in self.net.parameters() if p.requires_grad]

    def batches(self, epoch: int, picks: list[Tensor]) -> Iterator[Batch]:
        """Random crops and what is in their images."""
        views = self.images.views(picks, [self.protocol.random_view(self.flip)], self.run.seed, epoch)
        for pick, (view,) in zip(picks, views, strict=True):
            yield view, self.labels[pick.to(self.labels.device)]

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Their norm is bounded, over all weights."""
        with self.run.autocast():
            scores = self.net(batch[0])
        loss = backward(presence_loss(scores.float(), batch[1]))
        nn.utils.clip_grad_norm_(self.weights, self.protocol.clip)
        return {"loss": loss}

    def judge(self, samples: Samples) -> Tensor:
        """Scores (N, crops, C) of all images, float32 on the CPU."""
        frames = self.protocol.test_views(self.flip)
        out = []
        for views in samples.images.views(in_order(len(samples)), frames, self.run.seed, TEST_EPOCH):
            with frozen(self.net), self.run.autocast():
                out.append(torch.stack([self.net(view).float().cpu() for view in views], 1))
        return torch.cat(out)


class _Classifier(nn.Module):
    """The encoder's convolutions, what lies between, and a score a class; what is not trained gets no gradient."""

    def __init__(
        self, p: VocClassification, encoder: Encoder, classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.settled = p.batch_norm == "frozen"
        self.trunk = copy.deepcopy(encoder)
        self.whole = p.fresh == "fc8" and encoder.top is None  # nothing lies between its features and fc8
        self.top, width = _top(p, encoder, generator)
        self.trunk.top = None
        drop = nn.Dropout(p.dropout) if p.train == "fc8" else nn.Identity()  # others bring their own
        self.head = nn.Sequential(drop, nn.Linear(width, classes))
        drawn(self.head, p.std or NARROW, BIAS if p.std else 0.0, generator)
        self.trunk.requires_grad_(p.train == "all")
        self.top.requires_grad_(p.train != "fc8")
        self.fixed = [
            part
            for part, trains in ((self.trunk, "all"), (self.top, "all fc6-8"))
            if p.train not in trains.split()
        ]

    def forward(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trunk not in self.fixed):
            found = self.trunk(images) if self.whole else self.trunk.maps(images)
        scores: Tensor = self.head(self.top(found))
        return scores

    def train(self, mode: bool = True) -> _Classifier:
        """What is fixed does not drop out, and settled batch norms stay in evaluation mode."""
        super().train(mode)
        for part in self.fixed:
            part.eval()
        if self.settled:
            settle(self.trunk)
        return self


def _top(p: VocClassification, encoder: Encoder, generator: torch.Generator) -> tuple[nn.Module, int]:
    """What lies between the convolutions and the classifier, and its width."""
    top = nn.Identity() if encoder.top is None else copy.deepcopy(encoder.top)
    if p.fresh == "fc8":
        return top, encoder.dim
    if not encoder.layers:
        raise BenchError('voc_classification.fresh is "fc6-8", and this network has no maps; write "fc8"')
    width = encoder.dim
    if not any(isinstance(part, nn.Linear) for part in top.modules()):
        width = p.hidden
        layers = [nn.AdaptiveAvgPool2d(GRID), nn.Flatten()]
        for fan_in in (encoder.channels[encoder.layers[-1]] * GRID**2, p.hidden):
            layers += [nn.Linear(fan_in, p.hidden), nn.ReLU(), nn.Dropout(p.dropout)]
        top = nn.Sequential(*layers)
    for part in top.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - all batch norms
            part.reset_running_stats()
            part.reset_parameters()
    if p.std:
        drawn(top, p.std, BIAS, generator)
    else:
        initialize(top, generator)
    return top, width


def presence_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid cross-entropy of +1 and -1, without what is 0; summed over classes, averaged over images."""
    losses = F.binary_cross_entropy_with_logits(scores, (labels > 0).float(), reduction="none")
    return (losses * (labels != 0)).sum() / len(scores)


def _presence(samples: Samples) -> Tensor:
    if samples.multilabel is None:
        raise BenchError(f"{samples.name} does not say which classes are in its images")
    return samples.multilabel
