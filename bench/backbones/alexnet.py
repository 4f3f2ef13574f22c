"""AlexNet as the papers on self-supervised learning changed it.

The variants are data: one table of :class:`_Variant`, after each paper's released code where it could
be read (column "paper"), else after its text.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.backbones._parts import (
    HALF,
    Lab,
    MaxPool,
    Normalize,
    Sobel,
    activation,
    fresh,
    front,
    scaled,
    sequential_encoder,
)
from bench.contracts import Backbone, BenchError, Encoder

__all__ = ["AlexNet"]

_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
_KERNELS = (11, 5, 3, 3, 3)
_GROUPED = {2, 4, 5}
_POOLED = {1, 2, 5}
_LRN = {1, 2}
_FC = 4096
_GRID = 6  # pool5's side at 224 and 227 px
_CONVS = frozenset(_LAYERS)


@dataclass(frozen=True)
class _Variant:
    """A row of the table: what a paper's AlexNet differs in.

    :param batch_norm: the layers with batch norm, which takes the place of their bias.
    :param order: what follows a convolution (and its batch norm); the tap ends with the ReLU.
    :param top_order: what follows a fully connected layer, or precedes it ("drop fc relu").
    """

    paper: str
    widths: tuple[int, ...] = (96, 256, 384, 384, 256)
    groups: int = 2
    batch_norm: frozenset[str] = frozenset()
    affine: bool = True
    slope: float = 0.0
    stride: int = 4
    padding: int = 0
    order: str = "relu pool"
    top_order: str = "fc relu drop"
    input: str = "rgb"  # rgb, signed ([-1, 1]), L, Lab, sobel


_VARIANTS = {
    "caffenet": _Variant("Jia et al., Caffe, ACM MM 2014", order="relu pool lrn"),
    "doersch": _Variant(
        "Doersch et al., ICCV 2015",
        groups=1,
        batch_norm=frozenset({"conv3", "conv4", "conv5", "fc6", "fc7"}),
        affine=False,
        padding=5,
        order="relu pool lrn",
        top_order="fc relu",
    ),
    "zhang": _Variant(
        "Zhang et al., ECCV 2016", batch_norm=_CONVS | {"fc6", "fc7"}, top_order="fc relu", input="L"
    ),
    # Appendix B: batch norm after every convolution, which the released weights have absorbed.
    "split_brain": _Variant("Zhang et al., CVPR 2017", batch_norm=_CONVS, input="Lab"),
    "jigsaw": _Variant("Noroozi & Favaro, ECCV 2016", stride=2, order="relu pool lrn"),
    "bigan": _Variant("Donahue et al., ICLR 2017", batch_norm=_CONVS, slope=0.2, input="signed"),
    "noise_as_targets": _Variant(
        "Bojanowski & Joulin, ICML 2017",
        groups=1,
        batch_norm=_CONVS | {"fc6", "fc7"},
        padding=2,
        order="pool relu",
        top_order="fc relu",
        input="sobel",
    ),
    "rotnet": _Variant(
        "Gidaris et al., ICLR 2018",
        widths=(64, 192, 384, 256, 256),
        groups=1,
        batch_norm=_CONVS | {"fc6", "fc7"},
        padding=2,
        top_order="fc relu",
    ),
    "deepcluster": _Variant(
        "Caron et al., ECCV 2018",
        groups=1,
        batch_norm=_CONVS,
        padding=2,
        top_order="drop fc relu",
        input="sobel",
    ),
    "instance_discrimination": _Variant(
        "Wu et al., CVPR 2018", groups=1, batch_norm=_CONVS, padding=2, top_order="drop fc relu"
    ),
    "context_encoder": _Variant("Pathak et al., CVPR 2016", batch_norm=_CONVS),
}


def _input(kind: str) -> nn.Module:
    if kind in {"L", "Lab"}:
        return Lab(kind)
    if kind == "sobel":
        return Sobel()
    return Normalize(HALF) if kind == "signed" else Normalize()


_INPUT_CHANNELS = {"rgb": 3, "signed": 3, "L": 1, "Lab": 3, "sobel": 2}


@dataclass(frozen=True)
class AlexNet(Backbone):
    """AlexNet in a paper's variant; taps conv1..conv5 after ReLU, features fc7 (N, 4096 x width).

    fc6 is a fully connected layer on a 6x6 grid: pool5's own grid at 224 and 227 px, an adaptive
    average at other sizes, so that the parameters are the papers'. Pools round up as in Caffe, which
    changes nothing at the published sizes. ``noise_as_targets`` pools before its ReLU, so its taps
    conv1, conv2 and conv5 lie after the pool. A convolution with batch norm has no bias: it would cancel.

    :param variant: whose: caffenet, doersch, zhang, split_brain, jigsaw (stride 2, as in pre-training;
        transfer asks for ``stem_stride=4``), bigan, noise_as_targets, rotnet, deepcluster,
        instance_discrimination, context_encoder (its normalization is not documented: batch norm here).
    :param top: with fc6 and fc7; otherwise conv5's pool, averaged to ``grid`` x ``grid`` and flattened,
        (N, 256 x width x grid^2). On patches a method's own layers take the place of fc6: of 64 px (stride 2),
        96 px and 114 px pool5 has 3 x 3.
    """

    name: ClassVar[str] = "alexnet"
    paper: ClassVar[str] = (
        "Krizhevsky et al., ImageNet classification with deep CNNs, NeurIPS 2012; variants by paper"
    )
    variant: str = "caffenet"
    top: bool = True
    grid: int = 1

    def __post_init__(self) -> None:
        if self.variant not in _VARIANTS:
            raise BenchError(f"alexnet has no variant {self.variant!r}; known are: {', '.join(_VARIANTS)}")
        if self.grid < 1 or (self.top and self.grid > 1):
            raise BenchError(f"alexnet.grid must be 1 or more, with top = false, not {self.grid}")

    @property
    def batch_norm(self) -> bool:  # type: ignore[override]  # depends on the settings
        """Whether this variant normalizes by batch statistics."""
        found = _VARIANTS[self.variant].batch_norm
        return bool(found if self.top else found & _CONVS)

    def build(
        self,
        *,
        generator: torch.Generator,
        in_channels: int = 3,
        width: float = 1.0,
        stem_stride: int | None = None,
        input: nn.Module | None = None,  # noqa: A002 - the contract's own word
    ) -> Encoder:
        """An encoder; ``width`` scales the fully connected layers too (multiples of 2, for the groups)."""
        spec = _VARIANTS[self.variant]
        source, channels = front(input, in_channels, lambda: _input(spec.input), _INPUT_CHANNELS[spec.input])
        widths = scaled(spec.widths, width, 2)
        (units,) = scaled((_FC,), width, 2)
        trunk = fresh(lambda: _trunk(spec, channels, widths, stem_stride or spec.stride), generator)
        if self.top:
            top = fresh(lambda: _top(spec, widths[-1], units), generator)
            return sequential_encoder(source, trunk, _LAYERS, dim=units, top=top)
        flat = nn.Sequential(nn.AdaptiveAvgPool2d(self.grid), nn.Flatten())
        return sequential_encoder(source, trunk, _LAYERS, dim=widths[-1] * self.grid**2, top=flat)


def _trunk(spec: _Variant, channels: int, widths: tuple[int, ...], stride: int) -> nn.Sequential:
    trunk: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(widths, 1):
        conv = _convolution(spec, number, channels, width, stride if number == 1 else 1)
        after = [t for t in spec.order.split() if t == "relu" or number in {"pool": _POOLED, "lrn": _LRN}[t]]
        inside = after.index("relu") + 1
        trunk[f"conv{number}"] = nn.Sequential(*conv, *(_layer(spec, t) for t in after[:inside]))
        for part in after[inside:]:
            trunk[f"{part}{number}"] = _layer(spec, part)
        channels = width
    return nn.Sequential(trunk)


def _convolution(spec: _Variant, number: int, channels: int, width: int, stride: int) -> list[nn.Module]:
    """The convolution and, where the variant has it, its batch norm."""
    kernel = _KERNELS[number - 1]
    normed = f"conv{number}" in spec.batch_norm
    conv = nn.Conv2d(
        channels,
        width,
        kernel,
        stride,
        padding=spec.padding if number == 1 else kernel // 2,
        groups=spec.groups if number in _GROUPED else 1,
        bias=not normed,
    )
    return [conv, nn.BatchNorm2d(width, affine=spec.affine)] if normed else [conv]


def _layer(spec: _Variant, part: str) -> nn.Module:
    if part == "relu":
        return activation(spec.slope)
    # Caffe's constants: 5 maps, alpha 1e-4, beta 0.75.
    return MaxPool() if part == "pool" else nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)


def _top(spec: _Variant, channels: int, units: int) -> nn.Sequential:
    """fc6 and fc7 of (N, channels, h, w): features (N, units)."""
    top: OrderedDict[str, nn.Module] = OrderedDict(grid=nn.AdaptiveAvgPool2d(_GRID), flat=nn.Flatten())
    for number, fan_in in ((6, channels * _GRID**2), (7, units)):
        for part in spec.top_order.split():
            if part == "drop":
                top[f"drop{number}"] = nn.Dropout(0.5)
            elif part == "relu":
                top[f"relu{number}"] = activation(spec.slope)
            else:
                normed = f"fc{number}" in spec.batch_norm
                top[f"fc{number}"] = nn.Linear(fan_in, units, bias=not normed)
                if normed:
                    top[f"bn{number}"] = nn.BatchNorm1d(units, affine=spec.affine)
    return nn.Sequential(top)
