"""A class for every pixel: the encoder turned into a fully convolutional network and trained on masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.augment import unit
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
from bench.metrics import confusion_matrix, mean_iou
from protocols._annotated import IGNORED, with_masks
from protocols._dense import alike, draws, resized, whole
from protocols._descent import Descending, Descent, backward, in_batches, judged
from protocols._fcn import Fcn, Segmenter
from protocols._features import frozen

GRAY = 0.45  # what lies beyond the border of an image that is smaller than the crop
TEST = 8  # images at once where they are of one size
Batch: TypeAlias = "tuple[list[Tensor], list[Tensor]]"  # images (3, h, w) and masks (h, w)


@dataclass(frozen=True)
class VocSegmentation(Descending):
    """FCN-32s, or a small head of today, on the encoder; mean IoU (%) with 255 ignored.

    Defaults are the single-stream AlexNet FCN's, by which this literature is compared: 20 whole images a
    step, the loss averaged over each, biases at twice the rate (section 4.3; in the released net the
    score's alone). Larsson et al. (CVPR 2017) crop 448 and drop the rate twice.

    :param head: ``fcn32``: a score a class on the last maps, above fc6 and fc7 as convolutions where the
        backbone has them; ``conv``: a 3x3 convolution of ``width`` maps before the score, on ``layer``.
        Either is interpolated to the image's size by fixed bilinear weights.
    :param layer: of the head ``conv``; "" is the last one.
    :param pad: pixels of padding around the image (FCN: 100 at conv1).
    :param freeze: what lies up to this layer keeps its weights; "": everything is trained.
    :param crop: train on windows of this side (0: whole images), of images resized by a factor in ``scale``.
    :param batch_norm: ``frozen``: the encoder normalizes by the statistics that it came with; ``train``.
    """

    shrinks: ClassVar[dict[str, str]] = {"images": "batch"}
    paper: ClassVar[str] = (
        "Long, Shelhamer & Darrell, Fully Convolutional Networks for Semantic Segmentation, CVPR 2015; "
        "Zhang, Isola & Efros, Colorful Image Colorization, ECCV 2016"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(annotation="mask", spatial=True, trainable=True)

    head: str = "fcn32"
    layer: str = ""
    width: int = 256
    dilation: int = 1
    dropout: float = 0.1
    pad: int = 100
    freeze: str = ""
    steps: int = 100_000
    images: int = 20
    lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_rate: float = 2.0
    bias_decay: float = 0.0
    schedule: str = "constant"
    drops: tuple[float, ...] = ()
    gamma: float = 0.1
    crop: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    mirror: bool = False
    batch_norm: str = "frozen"
    pictures: int = 4

    def __post_init__(self) -> None:
        for name, known in {"head": ("fcn32", "conv"), "batch_norm": ("frozen", "train")}.items():
            if getattr(self, name) not in known:
                raise BenchError(
                    f"voc_segmentation.{name} is {getattr(self, name)!r}; write {' or '.join(known)}"
                )

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement | Picture]:
        training = _Training(self, model.encoder, target, run)
        training.descend()
        for split, samples in judged(target):
            matrix, loss = training.judge(samples)
            yield Measurement("mIoU", 100 * mean_iou(matrix), split=split)
            yield Measurement("pixel_accuracy", 100 * float(np.trace(matrix) / matrix.sum()), split=split)
            yield Measurement("cross_entropy", loss, split=split)
        yield from training.pictures(target.test, target.class_names)

    def network(self) -> Fcn:
        """The settings of the network."""
        return Fcn(
            top=self.head == "fcn32",
            layer=self.layer,
            width=self.width,
            dilation=self.dilation,
            dropout=self.dropout,
            pad=self.pad,
            freeze=self.freeze,
            settled=self.batch_norm == "frozen",
        )


class _Training(Descent[Segmenter, Batch]):
    """One descent, and judging by it."""

    def __init__(self, protocol: VocSegmentation, encoder: Encoder, target: Target, run: Run) -> None:
        self.protocol, self.train, self.flip = protocol, target.train, target.flip
        self.masks = _masks(target.train)
        net = Segmenter(protocol.network(), encoder, target.classes + 1, run.generator("voc_segmentation"))
        count, size = len(target.train), protocol.images
        super().__init__(protocol, net, run, count=count, size=size, bias_decay=protocol.bias_decay)

    def batches(self, epoch: int, picks: list[Tensor]) -> Iterator[Batch]:
        """Images and masks, placed together."""
        for pick, images in zip(picks, whole(self.train.images, picks), strict=True):
            masks = [self.masks[i].to(self.run.device) for i in pick.tolist()]
            yield self._placed(images, masks, pick, epoch)

    def _placed(self, images: list[Tensor], masks: list[Tensor], pick: Tensor, epoch: int) -> Batch:
        """Resized, cropped and mirrored by each image's own draws."""
        protocol, draw = self.protocol, draws(self.run.seed, epoch, pick)
        factors = draw.uniform(low=protocol.scale[0], high=protocol.scale[1]).tolist()
        places, turned = draw.uniform(2).tolist(), draw.coin(0.5 if protocol.mirror and self.flip else 0.0)
        pairs = [
            _crop(*_scaled(image, mask, factor), protocol.crop, place)
            for image, mask, factor, place in zip(images, masks, factors, places, strict=True)
        ]
        pairs = [
            (i.flip(-1), m.flip(-1)) if turn else (i, m) for (i, m), turn in zip(pairs, turned, strict=True)
        ]
        return [image for image, _ in pairs], [mask for _, mask in pairs]

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Images of a size go through together, others add their gradients."""
        images, masks = batch
        total = torch.zeros((), device=self.run.device)
        for places in alike(images):
            with self.run.autocast():
                scores = self.net(torch.stack([images[i] for i in places]))
            loss = _per_image(scores.float(), torch.stack([masks[i] for i in places])).sum() / len(images)
            total += backward(loss)
        return {"loss": total}

    def judge(self, samples: Samples) -> tuple[NDArray[np.int64], float]:
        """Pixel counts (C + 1, C + 1) over all images at their own sizes, and the mean of their losses."""
        masks, classes = _masks(samples), self.net.classes
        matrix, loss = np.zeros((classes, classes), np.int64), 0.0
        for pick, found in self._scores(samples, len(samples)):
            for i, scores in zip(pick.tolist(), found, strict=True):
                matrix += confusion_matrix(scores.argmax(0), masks[i], classes)
                loss += float(_per_image(scores[None], masks[i][None].to(scores.device))) / len(samples)
        return matrix, loss

    def _scores(self, samples: Samples, count: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The first ``count`` images' scores (C + 1, H, W), batch by batch."""
        picks = in_batches(count, TEST)
        for pick, images in zip(picks, whole(samples.images, picks), strict=True):
            found = images[:]
            for places in alike(images):
                with frozen(self.net), self.run.autocast():
                    scores = self.net(torch.stack([unit(images[i]) for i in places])).float()
                for place, one in zip(places, scores, strict=True):
                    found[place] = one
            yield pick, found

    def pictures(self, samples: Samples, names: Sequence[str]) -> Iterator[Picture]:
        """The first images beside their true and their predicted classes."""
        masks, count = _masks(samples), min(self.protocol.pictures, len(samples))
        picks = in_batches(count, TEST)
        views = whole(samples.images, picks)
        for images, (pick, found) in zip(views, self._scores(samples, count), strict=True):
            for i, image, scores in zip(pick.tolist(), images, found, strict=True):
                made = with_masks(image, masks[i], scores.argmax(0).cpu(), names=names)
                yield Picture(f"masks-{i}", made)


def _masks(samples: Samples) -> list[Tensor]:
    if samples.masks is None:
        raise BenchError(f'{samples.name} has no masks; name a segmentation list: task = "segmentation"')
    return samples.masks  # type: ignore[return-value]  # a sequence, perhaps read lazily


def _per_image(scores: Tensor, masks: Tensor) -> Tensor:
    """The mean cross-entropy (N,) over each image's pixels that are not ignored."""
    losses = F.cross_entropy(scores, masks.long(), ignore_index=IGNORED, reduction="none").flatten(1)
    return losses.sum(1) / (masks != IGNORED).flatten(1).sum(1).clamp(min=1)


def _scaled(image: Tensor, mask: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    if image.shape[1:] != mask.shape:
        raise BenchError(f"a mask of {tuple(mask.shape)} on an image of {tuple(image.shape[1:])}")
    if factor == 1.0:
        return unit(image), mask
    height, width = (max(1, round(side * factor)) for side in mask.shape)
    small = F.interpolate(mask[None, None].float(), (height, width), mode="nearest-exact")[0, 0]
    return resized(image, (height, width)), small.to(mask.dtype)


def _crop(image: Tensor, mask: Tensor, side: int, place: list[float]) -> tuple[Tensor, Tensor]:
    """A window of ``side`` (0: all of it) at ``place`` in [0, 1); beyond the border gray, and ignored."""
    if not side:
        return image, mask
    more = [max(0, side - length) for length in mask.shape]
    image = F.pad(image, (0, more[1], 0, more[0]), value=GRAY)
    mask = F.pad(mask, (0, more[1], 0, more[0]), value=IGNORED)
    top, left = (int(at * (length - side + 1)) for at, length in zip(place, mask.shape, strict=True))
    return image[:, top : top + side, left : left + side], mask[top : top + side, left : left + side]
