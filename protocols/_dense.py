"""Images of any size with boxes or masks: what detection and segmentation share.

Images come as they are, one by one where their sizes vary, through the same streams as everything
else. They are resized, cropped and mirrored here, together with what is annotated on them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.augment import unit
from bench.contracts import BenchError, Draws, Encoder, Images
from protocols._views import center_view

NORMS = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - torch has no public name for it
GEOMETRY = 0x6E0  # the stream of the draws that place an image
CELLS = 7  # a side that the highest maps have where a net is explored: 224 pixels at a stride of 32


# ---- images --------------------------------------------------------------------------------------


def whole(images: Images, picks: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The images of each batch as they are, (3, H, W) each, of whatever size, on the run's device."""
    if images.side is not None:
        for (view,) in images.views(picks, [center_view(0)], 0, 0):
            yield list(view)
        return
    singles = [one for pick in picks for one in pick.split(1)]  # type: ignore[no-untyped-call]  # torch's own
    views = images.views(singles, [center_view(0)], 0, 0)
    for pick in picks:
        yield [view[0] for (view,) in islice(views, len(pick))]


def draws(seed: int, epoch: int, index: Tensor) -> Draws:
    """The draws that place the images of a batch, one stream an image."""
    return Draws(seed, epoch, index, stream=GEOMETRY)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) to floats in [0, 1], (3, *size): bilinear with antialiasing."""
    if tuple(image.shape[1:]) == size:
        return unit(image)
    return F.interpolate(unit(image)[None], size, mode="bilinear", antialias=True)[0]


def fitted(image: Tensor, short: int, longest: int) -> tuple[int, int]:
    """The size at which the shorter side is ``short``, or the longer one ``longest`` if that is less (0: as it is)."""
    height, width = image.shape[1:]
    scale = min(short / min(height, width), longest / max(height, width)) if short else 1.0
    return max(1, round(height * scale)), max(1, round(width * scale))


def alike(items: Sequence[Tensor]) -> list[list[int]]:
    """The places of the tensors of each shape: what can be stacked."""
    found: dict[tuple[int, ...], list[int]] = {}
    for place, item in enumerate(items):
        found.setdefault(tuple(item.shape), []).append(place)
    return list(found.values())


# ---- networks ------------------------------------------------------------------------------------


class Below(nn.Module):
    """A copy of an encoder's input and of its net up to a layer, of whatever make the net is.

    Which weights a layer's maps hang on, and where their cells lie, is seen in one pass of an empty image.

    :param layer: the tap whose maps are wanted; "": the last one. ``rest``: all of the trunk instead.
    :param freeze: what runs up to this tap keeps its weights; "": everything is trained.
    :param settled: batch norms keep the statistics that they came with.
    """

    stride: int  # input pixels from one cell of the maps to the next
    first: float  # where the first cell is centered: the input pixel's number, 0 being the first one's middle

    def __init__(
        self, encoder: Encoder, layer: str, freeze: str, *, settled: bool, rest: bool = False
    ) -> None:
        super().__init__()
        self.layer, self.rest, self.settled = layer or encoder.layers[-1], rest, settled
        for key, name in (("layer", self.layer), ("freeze", freeze)):
            if name and name not in encoder.layers:
                layers = ", ".join(encoder.layers)
                raise BenchError(
                    f"layer {name!r} does not exist here; layers are: {layers}; write one of them as {key}"
                )
        self.net = copy.deepcopy(encoder).eval()
        self.input, self.net.input, self.net.top = self.net.input, nn.Identity(), None
        highest = encoder.layers[-1] if rest else self.layer
        self.channels, told = encoder.channels[highest], encoder.strides[highest]
        side, device = CELLS * max(encoder.strides.values()), next(encoder.parameters()).device
        prepared = self.input(torch.zeros(1, 3, side, side, device=device))
        self.net.requires_grad_()
        with _places(self.net, prepared.shape[-1]) as known:
            maps = self(prepared)
        self.stride, self.first = known.get(maps.shape[-1], (told, (told - 1) / 2))
        self._train(maps, self.net.activations(prepared, (freeze,))[freeze] if freeze else None)
        self.train(encoder.training)

    def _train(self, maps: Tensor, frozen: Tensor | None) -> None:
        """The weights that the maps hang on, without those that the frozen ones do."""
        weights = list(self.net.parameters())
        used, kept = _behind(maps, weights), _behind(frozen, weights)
        for weight, is_used, is_kept in zip(weights, used, kept, strict=True):
            weight.requires_grad_(is_used and not is_kept)

    def forward(self, prepared: Tensor) -> Tensor:
        """Maps (N, C, h, w) of what ``input`` gave."""
        if self.rest:
            return self.net.maps(prepared)
        return self.net.activations(prepared, (self.layer,))[self.layer]

    def train(self, mode: bool = True) -> Below:
        """Settled batch norms stay in evaluation mode."""
        super().train(mode)
        if self.settled:
            settle(self)
        return self


def _behind(maps: Tensor | None, weights: Sequence[Tensor]) -> list[bool]:
    """Which of the weights the maps hang on."""
    if maps is None or not maps.requires_grad:
        return [False] * len(weights)
    return [found is not None for found in torch.autograd.grad(maps.sum(), weights, allow_unused=True)]


@contextmanager
def _places(net: nn.Module, side: int) -> Iterator[dict[int, tuple[int, float]]]:
    """Where the cells of maps lie that a net makes of images of ``side``: {the maps' side: (stride, first)}.

    Maps of one side lie alike, by whichever branches they came: a net adds or joins them.
    """
    known = {side: (1, 0.0)}

    def keep(part: nn.Module, inputs: tuple[Tensor, ...], maps: Tensor) -> None:
        stride, first = known.get(inputs[0].shape[-1], (0, 0.0))
        if stride:
            kernel, step, pad = _window(part)
            known.setdefault(maps.shape[-1], (stride * step, first + ((kernel - 1) / 2 - pad) * stride))

    hooks = [part.register_forward_hook(keep) for part in net.modules() if _window(part) != (1, 1, 0)]
    try:
        yield known
    finally:
        for hook in hooks:
            hook.remove()


def _window(part: nn.Module) -> tuple[int, int, int]:
    """Kernel, stride and padding of a layer that moves over the image; (1, 1, 0) for the others."""
    if isinstance(part, nn.Conv2d):
        kernel = (part.kernel_size[0] - 1) * part.dilation[0] + 1
        words = {"same": (kernel - 1) // 2, "valid": 0}
        pad = words[part.padding] if isinstance(part.padding, str) else int(part.padding[0])
        return kernel, part.stride[0], pad
    if isinstance(part, (nn.MaxPool2d, nn.AvgPool2d)):
        kernel, step, pad = (
            v if isinstance(v, int) else v[0] for v in (part.kernel_size, part.stride, part.padding)
        )
        return kernel, step, pad
    if hasattr(part, "kernel") and hasattr(part, "stride"):  # a backbone's own pool
        return int(part.kernel), int(part.stride), 0  # type: ignore[arg-type]  # a module's attributes are anything
    return 1, 1, 0


def parts_above(encoder: Encoder, layer: str) -> list[nn.Module] | None:
    """The trunk's parts above a tap; None for a network that does not say what lies there, as one of any make."""
    if type(encoder).above is not Encoder.above:
        return None
    names = [name for name, _ in encoder.trunk.named_children()]
    return list(encoder.trunk.children())[names.index(layer) + 1 :]


def settle(module: nn.Module) -> None:
    """Batch norms into evaluation mode."""
    for part in module.modules():
        if isinstance(part, NORMS):
            part.eval()


def learned(top: nn.Module | None) -> nn.Module | None:
    """The top, if it has fully connected layers."""
    return top if top is not None and any(isinstance(p, nn.Linear) for p in top.modules()) else None


@dataclass(frozen=True)
class Caffe:
    """Stochastic gradient descent as Caffe's models ask for it: biases learn ``bias_rate`` times as fast.

    :param bias_decay: biases are decayed by this times ``weight_decay``.
    """

    momentum: float
    weight_decay: float
    bias_rate: float = 2.0
    bias_decay: float = 0.0

    def over(self, module: nn.Module) -> torch.optim.SGD:
        """The optimizer of what requires gradients; ``bench.training.set_rate`` sets its rates."""
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for name, p in named if name.endswith("bias") == bias],
                "weight_decay": self.weight_decay * (self.bias_decay if bias else 1.0),
                "scale": self.bias_rate if bias else 1.0,
            }
            for bias in (False, True)
        ]
        return torch.optim.SGD([g for g in groups if g["params"]], lr=0.0, momentum=self.momentum)


def drawn(layer: nn.Module, std: float, bias: float, generator: torch.Generator) -> None:
    """Normal weights of deviation ``std`` and constant biases in every layer that has weights."""
    for part in layer.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            with torch.no_grad():
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * std)
                if part.bias is not None:
                    part.bias.fill_(bias)
