"""Region-based detectors on an encoder: torchvision's heads, on proposals from elsewhere or on their own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou, roi_align, roi_pool

from bench.contracts import Encoder, initialize
from protocols._dense import Below, drawn, learned, parts_above, settle

Objects: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class Rcnn:
    """A detector's settings, as ``voc_detection`` names them; ``anchors`` () means proposals from elsewhere.

    :param settled: batch norms keep the statistics that they came with.
    """

    layer: str = ""
    freeze: str = "conv1"
    settled: bool = True
    pool: str = "pool"
    roi_size: int = 6
    hidden: int = 1024
    rois: int = 64
    positive: float = 0.25
    background: tuple[float, float] = (0.1, 0.5)
    min_score: float = 0.0
    nms: float = 0.3
    detections: int = 100
    anchors: tuple[int, ...] = ()


class Heads(RoIHeads):  # type: ignore[misc]  # torchvision has no types
    """torchvision's, with a lower bound on the background's overlap."""

    lowest = 0.0

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Regions that overlap less than that are taken for nothing (-1)."""
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for boxes, truth, label in zip(proposals, gt_boxes, labels, strict=True):
            label[box_iou(truth, boxes).amax(0) < self.lowest] = -1
        return matched, labels


class Pool(nn.Module):
    """Regions of the maps at one stride, (R, C, size, size), pooled where their pixels lie."""

    def __init__(self, kind: str, size: int, stride: int, first: float) -> None:
        super().__init__()
        self.kind, self.size, self.stride = kind, size, stride
        # Cell 0 is centered at pixel ``first``; the operators assume pixel 0, or half a stride.
        self.shift = (stride - 1) / 2 - first if kind == "align" else -first

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        moved, scale = [b + self.shift for b in boxes], 1 / self.stride
        if self.kind == "pool":
            return roi_pool(maps["0"], moved, self.size, scale)  # type: ignore[no-any-return]
        return roi_align(maps["0"], moved, self.size, scale, aligned=True)  # type: ignore[no-any-return]


class Detector(nn.Module):
    """Images of any size, with proposals or without, to detections and, while it is trained, losses."""

    def __init__(self, p: Rcnn, encoder: Encoder, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.below = Below(encoder, p.layer, p.freeze, settled=p.settled)
        head, width = region_head(encoder, self.below, p, generator)
        predictor = FastRCNNPredictor(width, classes + 1)
        drawn(predictor.cls_score, 0.01, 0.0, generator)
        drawn(predictor.bbox_pred, 0.001, 0.0, generator)
        pool = Pool(p.pool, p.roi_size, self.below.stride, self.below.first)
        low, high = p.background
        self.heads = Heads(
            pool, head, predictor, 0.5, high, p.rois, p.positive, None, p.min_score, p.nms, p.detections
        )
        self.heads.lowest = low
        self.rpn = _rpn(p, self.below.channels, generator) if p.anchors else None

    def forward(
        self, images: list[Tensor], proposals: list[Tensor] | None = None, truth: list[Objects] | None = None
    ) -> tuple[list[Objects], dict[str, Tensor]]:
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        down, across = (max(lengths) for lengths in zip(*sizes, strict=True))
        batch = torch.cat(
            [F.pad(self.below.input(i[None]), (0, across - i.shape[2], 0, down - i.shape[1])) for i in images]
        )
        maps, losses = {"0": self.below(batch).float()}, dict[str, Tensor]()
        if self.rpn is not None:
            proposals, losses = self.rpn(ImageList(batch, sizes), maps, truth)
        found, more = self.heads(maps, proposals, sizes, truth)
        return found, {**losses, **more}

    def train(self, mode: bool = True) -> Detector:
        """Settled batch norms stay so above the pooled layer too."""
        super().train(mode)
        if self.below.settled:
            settle(self.heads)
        return self


def region_head(encoder: Encoder, below: Below, p: Rcnn, generator: torch.Generator) -> tuple[nn.Module, int]:
    """What makes a vector of pooled maps, and its width; the encoder's own weights as far as it has them."""
    rest = parts_above(encoder, below.layer)
    if below.layer != encoder.layers[-1] and rest is not None:
        top = encoder.top if encoder.top is not None else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return copy.deepcopy(nn.Sequential(*rest, top)).requires_grad_(), encoder.dim
    if learned(encoder.top) is not None:
        return copy.deepcopy(encoder.top).requires_grad_(), encoder.dim  # type: ignore[union-attr]  # it is there
    width = below.channels * p.roi_size**2
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(width, p.hidden), nn.ReLU(), nn.Linear(p.hidden, p.hidden), nn.ReLU()
    )
    initialize(layers, generator)
    return layers, p.hidden


def _rpn(p: Rcnn, channels: int, generator: torch.Generator) -> RegionProposalNetwork:
    """Ren et al.'s region proposal network on one level, with their numbers."""
    anchors = AnchorGenerator((p.anchors,), ((0.5, 1.0, 2.0),))
    head = RPNHead(channels, anchors.num_anchors_per_location()[0])
    drawn(head, 0.01, 0.0, generator)
    before, after = {"training": 12_000, "testing": 6000}, {"training": 2000, "testing": 300}
    return RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, before, after, 0.7)
