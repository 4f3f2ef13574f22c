"""Objects in boxes: Fast R-CNN on proposals from elsewhere, or Faster R-CNN, on the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bench.contracts import (
    BenchError,
    Encoder,
    Measurement,
    Model,
    Picture,
    Run,
    Samples,
    Target,
    TargetNeeds,
)
from protocols._annotated import with_boxes
from protocols._dense import draws, fitted, resized, whole
from protocols._descent import Descending, Descent, backward, in_batches, judged
from protocols._detections import DEFINITIONS, average_precisions
from protocols._features import frozen
from protocols._proposals import SOURCES
from protocols._rcnn import Detector, Objects, Rcnn

TEST = 8  # images at once where they are of one size
SHOWN = 0.5  # the score from which a detection is drawn
Batch: TypeAlias = "tuple[list[Tensor], list[Tensor] | None, list[Objects]]"


@dataclass(frozen=True)
class VocDetection(Descending):
    """A detector on the encoder, trained on boxes; mAP (%) at IoU 0.5 by VOC's rules.

    Defaults are Fast R-CNN's for CaffeNet, by which this literature is compared. Difficult objects teach
    nothing, and are neither right nor wrong. The box loss turns linear at 1/9, as torchvision's (paper: 1).

    :param proposals: ``selective_search``, ``file`` (the dataset's setting ``proposals``) or ``windows``
        (fixed shapes all over the image) for Fast R-CNN; ``rpn`` for Faster R-CNN (Ren et al., NeurIPS 2015).
    :param layer: whose maps are pooled, "" is the last one. What lies above it judges the regions: the rest
        of the trunk; above the last layer fc6 and fc7 or, without these, two new layers of ``hidden`` units; above
        any layer of a network that does not say what lies there (``checkpoint.network``), two new ones too.
    :param freeze: what lies up to this layer keeps its weights; "": everything is trained.
    :param rois: regions an image in a step, ``positive`` of them at IoU 0.5 or more, the rest in
        ``background``; ``most`` proposals an image are used (0: all).
    :param sides: of the shorter side in training, one drawn an image (0: as it is); ``longest`` bounds the other.
    :param pool: ``pool`` (the paper's RoIPool) or ``align``, to ``roi_size`` a side.
    :param batch_norm: ``frozen``: the encoder normalizes by the statistics that it came with; ``train``.
    :param ap: which average precision is called mAP: ap_11pt (VOC2007's) or ap_envelope (the area).
    """

    shrinks: ClassVar[dict[str, str]] = {"images": "batch"}
    paper: ClassVar[str] = (
        "Girshick, Fast R-CNN, ICCV 2015; Ren, He, Girshick & Sun, Faster R-CNN, NeurIPS 2015"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(annotation="boxes", spatial=True, trainable=True)

    proposals: str = "selective_search"
    layer: str = ""
    freeze: str = "conv1"
    hidden: int = 1024
    pool: str = "pool"
    roi_size: int = 6
    steps: int = 40_000
    images: int = 2
    rois: int = 64
    positive: float = 0.25
    background: tuple[float, float] = (0.1, 0.5)
    most: int = 2000
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_rate: float = 2.0
    bias_decay: float = 0.0
    schedule: str = "step"
    drops: tuple[float, ...] = (0.75,)
    gamma: float = 0.1
    sides: tuple[int, ...] = (600,)
    test_side: int = 600
    longest: int = 1000
    mirror: bool = True
    batch_norm: str = "frozen"
    anchors: tuple[int, ...] = (128, 256, 512)
    min_score: float = 0.0
    nms: float = 0.3
    detections: int = 100
    ap: str = "ap_11pt"
    pictures: int = 4

    def __post_init__(self) -> None:
        known = {
            "proposals": (*SOURCES, "rpn"),
            "pool": ("pool", "align"),
            "batch_norm": ("frozen", "train"),
            "ap": tuple(DEFINITIONS),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                found = getattr(self, name)
                raise BenchError(f"voc_detection.{name} is {found!r}; write one of {', '.join(values)}")

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement | Picture]:
        training = _Training(self, model.encoder, target, run)
        training.descend()
        for split, samples in judged(target):
            truth = _objects(samples)
            found = training.detect(samples)
            precisions = average_precisions(found, truth, target.classes)
            means = {name: 100 * _mean(values.tolist()) for name, values in precisions.items()}
            yield Measurement("mAP", means[self.ap], split=split)
            for name, value in means.items():
                yield Measurement(name, value, split=split)
            if split == "test":
                yield from _pictures(samples, found, truth, target.class_names, self.pictures)

    def detector(self) -> Rcnn:
        """The settings of the network."""
        return Rcnn(
            layer=self.layer,
            freeze=self.freeze,
            settled=self.batch_norm == "frozen",
            pool=self.pool,
            roi_size=self.roi_size,
            hidden=self.hidden,
            rois=self.rois,
            positive=self.positive,
            background=self.background,
            min_score=self.min_score,
            nms=self.nms,
            detections=self.detections,
            anchors=self.anchors if self.proposals == "rpn" else (),
        )


class _Training(Descent[Detector, Batch]):
    """One descent, and detecting by it."""

    def __init__(self, protocol: VocDetection, encoder: Encoder, target: Target, run: Run) -> None:
        self.protocol, self.train, self.flip = protocol, target.train, target.flip
        self.truth = _objects(target.train)
        usable = [i for i, t in enumerate(self.truth) if bool((~t["difficult"]).any())]
        if not usable:
            raise BenchError(
                f"{target.train.name}: no image has an object that is not difficult: name another split"
            )
        self.rows = torch.tensor(usable)
        net = Detector(protocol.detector(), encoder, target.classes, run.generator("voc_detection"))
        count, size = len(usable), protocol.images
        super().__init__(protocol, net, run, count=count, size=size, bias_decay=protocol.bias_decay)
        self.proposals = self._proposals(target.train)

    def _proposals(self, samples: Samples) -> list[Tensor] | None:
        """Each image's boxes, or None where the detector makes its own."""
        if self.protocol.proposals == "rpn":
            return None
        found = SOURCES[self.protocol.proposals](samples, self.run)
        return [boxes[: self.protocol.most or None] for boxes in found]

    def batches(self, epoch: int, picks: list[Tensor]) -> Iterator[Batch]:
        """Images, their proposals and their objects, each resized and mirrored by the image's own draws."""
        picks = [self.rows[pick] for pick in picks]
        for pick, images in zip(picks, whole(self.train.images, picks), strict=True):
            draw = draws(self.run.seed, epoch, pick)
            sides = [self.protocol.sides[k] for k in draw.integers(len(self.protocol.sides)).tolist()]
            turned = draw.coin(0.5 if self.protocol.mirror and self.flip else 0.0).tolist()
            placed = [
                _placed(i, side, self.protocol.longest, turn)
                for i, side, turn in zip(images, sides, turned, strict=True)
            ]
            where = list(zip(pick.tolist(), [place for _, place in placed], strict=True))
            boxes = None if self.proposals is None else [place(self.proposals[i]) for i, place in where]
            yield [image for image, _ in placed], boxes, [self._taught(i, place) for i, place in where]

    def _taught(self, i: int, place: _Place) -> Objects:
        """The objects of a training image that teach, with label 0 for the background."""
        truth = self.truth[i]
        plain = ~truth["difficult"]
        return {
            "boxes": place(truth["boxes"][plain]),
            "labels": truth["labels"][plain].to(self.run.device) + 1,
        }

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """The detector's losses, which count alike."""
        with self.run.autocast():
            _, losses = self.net(*batch)
        backward(torch.stack([loss.float() for loss in losses.values()]).sum())
        return {name: loss.detach() for name, loss in losses.items()}

    def detect(self, samples: Samples) -> list[Objects]:
        """Each image's ``boxes`` (k, 4) in its own pixels, ``labels`` (k,) and ``scores`` (k,), on the CPU."""
        found: list[Objects] = []
        given = self._proposals(samples)
        size = TEST if samples.images.side is not None else 1
        picks = in_batches(len(samples), size)
        for pick, images in zip(picks, whole(samples.images, picks), strict=True):
            placed = [_placed(i, self.protocol.test_side, self.protocol.longest, turn=False) for i in images]
            where = list(zip(pick.tolist(), [place for _, place in placed], strict=True))
            boxes = None if given is None else [place(given[i]) for i, place in where]
            with frozen(self.net), self.run.autocast():
                results, _ = self.net([image for image, _ in placed], boxes)
            found += [
                {
                    "boxes": place.back(one["boxes"].float()).cpu(),
                    "labels": one["labels"].cpu() - 1,
                    "scores": one["scores"].float().cpu(),
                }
                for one, (_, place) in zip(results, where, strict=True)
            ]
        return found


@dataclass(frozen=True)
class _Place:
    """Where the boxes of an image go that was resized by ``scale`` (x, y), and mirrored in ``width`` (0: not)."""

    scale: tuple[float, float]
    width: int
    device: torch.device

    def __call__(self, boxes: Tensor) -> Tensor:
        boxes = boxes.to(self.device) * torch.tensor(self.scale * 2, device=self.device)
        if not self.width:
            return boxes
        left, top, right, bottom = boxes.unbind(1)
        return torch.stack([self.width - right, top, self.width - left, bottom], 1)

    def back(self, boxes: Tensor) -> Tensor:
        """To the image as it was; nothing was mirrored."""
        return boxes / torch.tensor(self.scale * 2, device=boxes.device)


def _placed(image: Tensor, side: int, longest: int, turn: bool) -> tuple[Tensor, _Place]:
    """The image at its size in [0, 1], mirrored if ``turn``, and where its boxes go."""
    height, width = fitted(image, side, longest)
    scale = (width / image.shape[2], height / image.shape[1])
    out = resized(image, (height, width))
    return out.flip(-1) if turn else out, _Place(scale, width if turn else 0, image.device)


def _objects(samples: Samples) -> list[Objects]:
    if samples.boxes is None:
        raise BenchError(f"{samples.name} has no boxes to learn or to find")
    return [dict(one) for one in samples.boxes]


def _mean(values: Sequence[float]) -> float:
    """Over the classes that have an object to be found."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _pictures(
    samples: Samples, found: Sequence[Objects], truth: Sequence[Objects], names: Sequence[str], count: int
) -> Iterator[Picture]:
    """The first images with their true boxes in white and confident detections in their class's color."""
    picks = [torch.tensor([i]) for i in range(min(count, len(samples)))]
    for i, (image,) in enumerate(whole(samples.images, picks)):
        sure = found[i]["scores"] >= SHOWN
        shown = {name: values[sure] for name, values in found[i].items()}
        yield Picture(f"detections-{i}", with_boxes(image, truth[i], shown, names))
