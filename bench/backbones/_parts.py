"""What the families share: input front ends, the pooling of Caffe, and how weights come to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.contracts import BenchError, Encoder, initialize

__all__ = [
    "CIFAR",
    "HALF",
    "IMAGENET",
    "Lab",
    "MaxPool",
    "Normalize",
    "Sobel",
    "activation",
    "fresh",
    "front",
    "scaled",
    "sequential_encoder",
]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Channel means and deviations of pixels in [0, 1].
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR: Statistics = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
HALF: Statistics = ((0.5,) * 3, (0.5,) * 3)  # [0, 1] to [-1, 1]

M = TypeVar("M", bound=nn.Module)


def _unit(images: Tensor) -> Tensor:
    """uint8 0..255 or float [0, 1] to float [0, 1]."""
    return images if images.is_floating_point() else images.float() / 255


class Normalize(nn.Module):
    """RGB minus mean over deviation: uint8 or float [0, 1], (N, C, H, W), to float of the same shape.

    :param statistics: means and deviations per channel, of pixels in [0, 1]; they are saved with the weights.
    """

    channels = 3
    mean: Tensor
    std: Tensor

    def __init__(self, statistics: Statistics = IMAGENET) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (_unit(images) - self.mean) / self.std


class Sobel(nn.Module):
    """DeepCluster's front end (Caron et al., ECCV 2018, section 3.3): normalized RGB to two gradients.

    (N, 3, H, W) to (N, 2, H, W): the mean of the channels, then its horizontal and its vertical 3x3
    Sobel filter with zero padding. Nothing to learn.
    """

    channels = 2

    def __init__(self, statistics: Statistics = IMAGENET) -> None:
        super().__init__()
        self.normalize = Normalize(statistics)

    def forward(self, images: Tensor) -> Tensor:
        # Sums of shifted maps, not a convolution: autocast would round the pixels before they are subtracted.
        gray = F.pad(self.normalize(images).mean(1), (1, 1, 1, 1))
        across, down = gray[..., :-2] - gray[..., 2:], gray[..., :-2, :] - gray[..., 2:, :]
        vertical = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
        horizontal = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
        return torch.stack([vertical, horizontal], 1)


class Lab(nn.Module):
    """sRGB to CIE Lab (D65), the input of colorization (Zhang et al., ECCV 2016) and Split-Brain (CVPR 2017).

    (N, 3, H, W) to (N, 1, 2 or 3, H, W): (L - 50) / 50 and a / 110, b / 110, each about [-1, 1]. The
    Caffe networks took L - 50 and ab in their own units; with He weights unit scale trains better.

    :param part: "L", "ab" or "Lab".
    """

    matrix: Tensor

    def __init__(self, part: str = "Lab") -> None:
        super().__init__()
        if part not in {"L", "ab", "Lab"}:
            raise BenchError(f"part of Lab must be 'L', 'ab' or 'Lab', not {part!r}")
        self.part, self.channels = part, len(part)
        rows = [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
        matrix = torch.tensor(rows)
        # White (1, 1, 1) is divided out here, so that gray has exactly a = b = 0.
        self.register_buffer("matrix", (matrix / matrix.sum(1, keepdim=True))[:, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        rgb = _unit(images).float()
        linear = torch.where(rgb > 0.04045, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
        xyz = (linear.unsqueeze(1) * self.matrix).sum(2)
        root = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
        x, y, z = root.unbind(1)
        planes = {"L": (116 * y - 66) / 50, "a": 500 * (x - y) / 110, "b": 200 * (y - z) / 110}
        return torch.stack([planes[p] for p in self.part], 1)


class MaxPool(nn.Module):
    """Max pooling that rounds sizes up, as Caffe does. A map of one pixel is passed on: small images work."""

    def __init__(self, kernel: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, maps: Tensor) -> Tensor:
        if min(maps.shape[2:]) < 2:
            return maps
        return F.max_pool2d(maps, self.kernel, self.stride, ceil_mode=True)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}, ceil"


def activation(slope: float = 0.0) -> nn.Module:
    """ReLU, or leaky ReLU for a slope. Never in place: a tap must stay what it was."""
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def scaled(channels: Sequence[int], width: float, multiple: int = 1) -> tuple[int, ...]:
    """Channel counts times ``width``, rounded to a multiple; 1.0 leaves them as they are."""
    if width == 1.0:
        return tuple(channels)
    return tuple(max(multiple, round(c * width / multiple) * multiple) for c in channels)


def fresh(make: Callable[[], M], generator: torch.Generator) -> M:
    """``make()`` with weights of ``contracts.initialize``: built without storage: torch itself draws nothing.

    Inside ``with torch.device("meta")`` the module stays without storage: for counting.
    """
    counting = torch.get_default_device().type == "meta"
    with torch.device("meta"):
        module = make()
    if counting:
        return module
    with torch.device("cpu"):
        module = module.to_empty(device="cpu")
        initialize(module, generator)
    return module


def front(
    given: nn.Module | None, in_channels: int, default: Callable[[], nn.Module], channels: int = 3
) -> tuple[nn.Module, int]:
    """The input module and how many channels the trunk gets of it."""
    if given is not None:
        return given, in_channels
    if in_channels != 3:
        raise BenchError(
            f"in_channels = {in_channels} needs an input module that yields {in_channels} channels"
        )
    return default(), channels


def sequential_encoder(
    input: nn.Module,  # noqa: A002 - the contract's own word
    trunk: nn.Sequential,
    layers: Sequence[str],
    *,
    dim: int = 0,
    top: nn.Module | None = None,
) -> Encoder:
    """An encoder of a trunk without branches: channels and strides are read off its convolutions and pools.

    ``dim`` 0 is the last tap's channels (global average pooling).
    """
    stride, width = 1, 0
    strides: dict[str, int] = {}
    channels: dict[str, int] = {}
    for name, child in trunk.named_children():
        for part in child.modules():
            if isinstance(part, nn.Conv2d):
                stride, width = stride * part.stride[0], part.out_channels
            elif isinstance(part, (MaxPool, nn.MaxPool2d, nn.AvgPool2d)):
                stride *= part.stride if isinstance(part.stride, int) else part.stride[0]
        if name in layers:
            strides[name], channels[name] = stride, width
    return Encoder(
        input=input,
        trunk=trunk,
        layers=layers,
        channels=channels,
        strides=strides,
        dim=dim or width,
        top=top,
    )
