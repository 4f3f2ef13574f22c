"""Tiny stand-ins for what the harness hands to a method: images, a backbone, a run."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import tensors
from bench.augment import unit
from bench.contracts import Backbone, Draws, Encoder, Frame, Images, Model, Run, TrainingSet
from bench.draws import seed_of


class TinyImages(Images):
    """uint8 (N, 3, side, side): noise, over a ramp that turns with the label."""

    def __init__(self, count: int, side: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.side = side
        labels = torch.arange(count) % classes
        ramp = torch.linspace(0, 120, side).view(1, 1, 1, side) * (labels.view(-1, 1, 1, 1) + 1) / classes
        noise = torch.randint(0, 120, (count, 3, side, side), generator=generator)
        self.pixels, self.labels = (noise + ramp).to(torch.uint8), labels

    def __len__(self) -> int:
        return len(self.pixels)

    def views(
        self, batches: Iterable[Tensor], frames: Sequence[Frame], seed: int, epoch: int | Iterable[int]
    ) -> Iterator[list[Tensor]]:
        epochs = itertools.repeat(epoch) if isinstance(epoch, int) else epoch
        for batch, e in zip(batches, epochs, strict=False):
            yield [f(self.pixels[batch], Draws(seed, e, batch, stream=v)) for v, f in enumerate(frames)]

    def to(self, device: torch.device) -> Images:
        return self


class _Input(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (unit(images) - 0.5) / 0.25


class TinyBackbone(Backbone):
    """Two convolutions, with batch norm by default."""

    name = "tiny"
    paper = ""

    def __init__(self, *, norm: bool = True) -> None:
        self.norm = norm

    def build(self, *, generator: torch.Generator, **_: Any) -> Encoder:
        trunk = nn.Sequential()
        for i, (inner, outer) in enumerate(((3, 6), (6, 8)), 1):
            conv = nn.Conv2d(inner, outer, 3, 2, 1)
            with torch.no_grad():
                conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * 0.3)
                conv.bias.zero_()
            norm = nn.BatchNorm2d(outer) if self.norm else nn.Identity()
            trunk.add_module(f"conv{i}", nn.Sequential(conv, norm, nn.ReLU()))
        channels, strides = {"conv1": 6, "conv2": 8}, {"conv1": 2, "conv2": 4}
        layers = ("conv1", "conv2")
        return Encoder(input=_Input(), trunk=trunk, layers=layers, channels=channels, strides=strides, dim=8)


class StoppedError(Exception):
    """The run was interrupted."""


class TinyRun(Run):
    """Keeps checkpoints in memory; ``stop`` interrupts after so many steps."""

    def __init__(self, seed: int = 0, budget: int | str = "2 epochs", precision: str = "fp32") -> None:
        self.seed, self.budget, self.precision, self.device = seed, budget, precision, torch.device("cpu")
        self.saved: tuple[int, dict[str, Tensor], str] | None = None
        self.stop = -1
        self.seen, self.snapshots, self.clusters, self.curves = 0, [], {}, {}

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, *purpose.encode()))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()

    def resume(self, state: Mapping[str, Any]) -> int:
        if self.saved is None:
            return 0
        done, kept, text = self.saved
        tensors.unpack(state, {k: v.clone() for k, v in kept.items()}, text)
        return done

    def checkpoint(self, done: int, state: Mapping[str, Any], *, force: bool = False) -> None:
        packed, text = tensors.pack(state)
        # As a file would: contiguous, whatever the weights are.
        kept = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in packed.items()}
        self.saved = (done, kept, text)
        if done == self.stop:
            raise StoppedError

    def snapshot(self, done: int, total: int, model: Model) -> None:
        self.snapshots.append(done)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.curves[step] = dict(values)

    def progress(self, done: int, total: int) -> None: ...

    def saw(self, images: int) -> None:
        self.seen += images

    def assignments(self, epoch: int, ids: Tensor) -> None:
        self.clusters[epoch] = ids

    def picture(self, name: str, image: Tensor) -> None: ...


@pytest.fixture
def backbone() -> TinyBackbone:
    return TinyBackbone()


@pytest.fixture
def plain_backbone() -> TinyBackbone:
    return TinyBackbone(norm=False)


@pytest.fixture
def make_run() -> type[TinyRun]:
    return TinyRun


@pytest.fixture
def stopped() -> type[Exception]:
    return StoppedError


@pytest.fixture
def data() -> TrainingSet:
    """48 images of 16 x 16 in 4 classes, a third of the labels shown."""
    images = TinyImages(48, 16, 4)
    return TrainingSet(images, torch.where(torch.arange(48) < 16, images.labels, -1), 4)


class SmallBackbone(TinyBackbone):
    """As many input channels, as wide and from such an input as asked for."""

    def build(
        self, *, generator: torch.Generator, in_channels: int = 3, width: float = 1.0, **kwargs: Any
    ) -> Encoder:
        trunk, widths = nn.Sequential(), [round(width * 6), round(width * 8)]
        for i, (inner, outer) in enumerate(zip([in_channels, *widths], widths, strict=False), 1):
            conv = nn.Conv2d(inner, outer, 3, 2, 1)
            with torch.no_grad():
                conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * 0.3)
                conv.bias.zero_()
            norm = nn.BatchNorm2d(outer) if self.norm else nn.Identity()
            trunk.add_module(f"conv{i}", nn.Sequential(conv, norm, nn.ReLU()))
        layers = ("conv1", "conv2")
        channels, strides = dict(zip(layers, widths, strict=True)), {"conv1": 2, "conv2": 4}
        entry = kwargs.get("input") or _Input()
        return Encoder(
            input=entry, trunk=trunk, layers=layers, channels=channels, strides=strides, dim=widths[-1]
        )


@pytest.fixture
def small() -> SmallBackbone:
    return SmallBackbone()


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws without a generator of its own is the same in any order of tests."""
    torch.manual_seed(0)
