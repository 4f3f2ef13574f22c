"""Stand-ins that are small enough to be read: a run in memory, images in a list, an encoder made by hand."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.contracts import Cache, Draws, Encoder, Frame, Images, Model, Run, Samples, Tap, Target
from bench.draws import seed_of


class Killed(Exception):  # noqa: N818 - it is no error
    """The machine went away."""


class MemoryCache(Cache):
    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor | None:
        return self.kept.get(key)

    def put(self, key: str, value: Tensor) -> None:
        self.kept[key] = value.clone()


class FakeRun(Run):
    """Keeps each offered checkpoint by value; ``kill_at`` raises after that many steps."""

    def __init__(self, taps: Sequence[Tap] = (), weights_digest: str = "w", kill_at: int = 0) -> None:
        self.seed, self.device, self.precision, self.budget = 3, torch.device("cpu"), "fp32", 0
        self.taps, self.weights_digest, self.kill_at = tuple(taps), weights_digest, kill_at
        self.cache = MemoryCache()
        self.saved: tuple[int, dict[str, Any]] | None = None

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, *purpose.encode()))

    def autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def resume(self, state: Mapping[str, Any]) -> int:
        if self.saved is None:
            return 0
        done, values = self.saved
        for name, part in state.items():
            if isinstance(part, Tensor):
                part.copy_(values[name])
            else:
                part.load_state_dict(copy.deepcopy(values[name]))
        return done

    def checkpoint(self, done: int, state: Mapping[str, Any], *, force: bool = False) -> None:
        def value(part: Any) -> Any:
            return part.clone() if isinstance(part, Tensor) else copy.deepcopy(part.state_dict())

        self.saved = done, {name: value(part) for name, part in state.items()}
        if done == self.kill_at:
            raise Killed

    def snapshot(self, done: int, total: int, model: Model) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def saw(self, images: int) -> None: ...

    def assignments(self, epoch: int, ids: Tensor) -> None: ...

    def picture(self, name: str, image: Tensor) -> None: ...


class ListImages(Images):
    """Resident uint8 (N, 3, side, side)."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels, self.side = pixels, pixels.shape[-1]

    def __len__(self) -> int:
        return len(self.pixels)

    def views(
        self, batches: Sequence[Tensor], frames: Sequence[Frame], seed: int, epoch: int
    ) -> Iterator[list[Tensor]]:
        for batch in batches:
            yield [f(self.pixels[batch], Draws(seed, epoch, batch, v)) for v, f in enumerate(frames)]

    def to(self, device: torch.device) -> Images:
        return self


def tiny_encoder(seed: int = 0) -> Encoder:
    """Two convolutions with batch norm on 8x8 images; 16 features."""
    torch.manual_seed(seed)

    class Center(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images.float() / 255 if images.dtype == torch.uint8 else images) * 4 - 2

    def stage(i: int, o: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU())

    trunk = nn.Sequential()
    trunk.add_module("conv1", stage(3, 8, 1))
    trunk.add_module("conv2", stage(8, 16, 2))
    return Encoder(
        input=Center(),
        trunk=trunk,
        layers=("conv1", "conv2"),
        channels={"conv1": 8, "conv2": 16},
        strides={"conv1": 1, "conv2": 2},
        dim=16,
    )


def samples(name: str, count: int, seed: int, classes: int = 3) -> Samples:
    """Images whose class shows as a bright row in a color of its own, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 160, (count, 3, 8, 8), generator=generator)
    pixels[torch.arange(count), labels, 1 + 2 * labels] += 90
    return Samples(name, ListImages(pixels.to(torch.uint8)), labels)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tensors this small only lose time by being shared out."""
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Model:
    return Model(tiny_encoder())


@pytest.fixture
def target() -> Target:
    return Target(samples("train", 150, 1), samples("val", 60, 2), samples("test", 90, 3), 3, flip=False)


@pytest.fixture
def make_run() -> Callable[..., FakeRun]:
    return FakeRun


@pytest.fixture
def make_samples() -> Callable[..., Samples]:
    return samples


@pytest.fixture
def killed() -> type[Killed]:
    return Killed


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws without a generator of its own is the same in any order of tests."""
    torch.manual_seed(0)
