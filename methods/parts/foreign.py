"""Anybody's network as an encoder: its features, and its maps by module name."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from bench.augment import unit
from bench.contracts import OUTPUT, BenchError, Encoder

_PLAIN = (
    *(nn.Conv2d, nn.Linear, nn.Dropout, nn.Identity, nn.LayerNorm, Permute),
    nn.modules.batchnorm._NormBase,  # noqa: SLF001 - all of them
)


def network(name: str, generator: torch.Generator) -> tuple[nn.Module, tuple[str, ...]]:
    """An untrained network by ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``.

    The last runs the code that it names. A classifier that is the last layer is taken off, so that the
    network returns features; a factory's network returns what it returns.

    :returns: the network, and the names of what was taken off.
    :raises BenchError: no such name, or a package that is not installed.
    """
    source, _, model = name.partition(":")
    if not model:
        raise BenchError(
            f'checkpoint.network is {name!r}; write "torchvision:NAME", "timm:NAME", "package.module:factory" or '
            '"program"'
        )
    with torch.random.fork_rng(devices=[]):  # torch's own initialization draws from the global generator
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        if source == "torchvision":
            return _torchvision(model)
        if source == "timm":
            return _timm(model)
        return _made(source, model), ()


def _torchvision(name: str) -> tuple[nn.Module, tuple[str, ...]]:
    from torchvision import models

    try:
        net = models.get_model(name, weights=None)
    except ValueError as error:
        raise BenchError(
            f"checkpoint.network: torchvision has no model {name!r}; see torchvision.models.list_models()"
        ) from error
    linear = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        return net, ()
    parent, _, own = linear[-1].rpartition(".")
    setattr(net.get_submodule(parent), own, nn.Identity())
    return net, (linear[-1],)


def _timm(name: str) -> tuple[nn.Module, tuple[str, ...]]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise BenchError(f'checkpoint.network: "timm:{name}" needs timm: pip install timm') from error
    if not timm.is_model(name):
        raise BenchError(f"checkpoint.network: timm has no model {name!r}; see timm.list_models()")
    net: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    heads = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return net, (heads,) if isinstance(heads, str) else tuple(heads)


def _made(module: str, factory: str) -> nn.Module:
    try:
        net = getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError) as error:
        raise BenchError(f'checkpoint.network: "{module}:{factory}" cannot be had: {error}') from error
    if not isinstance(net, nn.Module):
        raise BenchError(
            f'checkpoint.network: "{module}:{factory}" returned a {type(net).__name__}, no nn.Module'
        )
    return net


class Foreign(Encoder):
    """A network of any make: its output (N, d), or the mean over its maps, are the features.

    Layers are names of modules whose output are maps: (N, C, H, W), (N, H, W, C), or, where they are named,
    tokens (N, T, C) of a grid, less those before it (class token, registers). Which of these it is, channels
    and strides are found by one pass of a square image of ``side`` pixels. What lies above a layer is not
    known, so nothing is made anew there.

    :param layers: the taps; () finds the blocks, or the activations where there are no blocks.
    :param dropped: modules that were taken off the network: a file may still have weights for them.
    """

    def __init__(
        self,
        net: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        layers: Sequence[str],
        side: int,
        dropped: Sequence[str] = (),
    ) -> None:
        for part in net.modules():
            if getattr(part, "inplace", False):
                part.inplace = False  # type: ignore[assignment]  # a tap must stay what it was
        images = torch.zeros(1, 3, side, side)
        forms, output = _dry_run(net, images)
        maps = {n: form for n, form in forms.items() if form.kind != "tokens"}
        layers = tuple(layers) or tuple(n for n in maps if n in set(_blocks(net, maps)))
        for layer in layers:
            if layer not in forms:
                raise BenchError(
                    f"checkpoint.layers: {layer!r} gives no maps, or is no module of the network, or is used "
                    f"more than once; maps come from: {', '.join(list(forms)[:40])}"
                )
        super().__init__(
            input=Normalize(mean, std),
            trunk=net,  # type: ignore[arg-type]  # read through hooks, not as a sequence
            layers=layers,
            channels={n: forms[n].channels for n in layers},
            strides={n: max(1, round(side / forms[n].cells)) for n in layers},
            dim=as_features(output).shape[1],
        )
        self._forms = {n: forms[n] for n in layers}
        self.dropped = tuple(dropped)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, dim)."""
        return as_features(self.trunk(self.input(images)))

    def maps(self, images: Tensor) -> Tensor:
        """The maps at the last layer: what a protocol that makes new layers puts them on.

        :raises BenchError: a network without maps.
        """
        if not self.layers:
            raise BenchError("no layer of this network gives maps that new layers could read; write layers")
        return self.activations(images, self.layers[-1:])[self.layers[-1]]

    def activations(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The maps at the named modules; stops at the highest one."""
        self._check_layers(layers)
        return self.read(images, layers) if layers else {}

    def read(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Maps and, under "output", features, in one pass that goes as far as it must."""
        inner = [name for name in dict.fromkeys(layers) if name != OUTPUT]
        self._check_layers(inner)
        found: dict[str, Tensor] = {}

        def keep(name: str, out: Tensor) -> None:
            # A copy: what lies above may write into what it is given.
            found[name] = self._forms[name].maps(out, images.shape[-2:]).clone()
            if len(found) == len(inner) and OUTPUT not in layers:
                raise _DoneError

        modules = {name: self.trunk.get_submodule(name) for name in inner}
        with _watched(modules, keep), suppress(_DoneError):
            found[OUTPUT] = self(images)
        return {name: found[name] for name in layers}

    def above(self, layer: str, generator: torch.Generator) -> nn.Module:
        """Not known of a network of any make.

        :raises BenchError: always.
        """
        raise BenchError(
            f'what lies above {layer!r} of a foreign network is not known: write from_layer = "", or load the '
            "weights onto a registered backbone"
        )


@dataclass(frozen=True)
class Form:
    """How a module's output holds its maps, as seen on one square image.

    :param kind: ``first``: (N, C, H, W); ``last``: (N, H, W, C); ``tokens``: (N, before + H * W, C).
    :param cells: H and W on that image.
    """

    kind: str
    channels: int
    cells: int
    before: int = 0

    @classmethod
    def seen(cls, shape: torch.Size) -> Form | None:
        """The form of an output of this shape; None: it holds no maps."""
        if len(shape) == 4:
            _, a, b, c = shape
            if b == c or a != b:
                return cls("first", a, c)
            return cls("last", c, b)
        if len(shape) == 3 and shape[1] > 1:  # a grid, and at most two rows' tokens before it
            cells = isqrt(shape[1])
            return cls("tokens", shape[2], cells, shape[1] - cells**2)
        return None

    def maps(self, out: Tensor, size: Sequence[int]) -> Tensor:
        """(N, C, H, W), of images of ``size``.

        :raises BenchError: tokens that are no grid of such images.
        """
        if self.kind == "first":
            return out
        if self.kind == "last":
            return out.movedim(3, 1)
        height, width = size
        tokens = out[:, self.before :].transpose(1, 2)
        rows = round((tokens.shape[2] * height / width) ** 0.5)
        columns = round(rows * width / height)
        if tokens.shape[2] != rows * columns:
            raise BenchError(f"{tokens.shape[2]} tokens are no grid over an image of {height} x {width}")
        return tokens.unflatten(2, (rows, columns))  # type: ignore[no-any-return, no-untyped-call]  # torch's own


class _DoneError(Exception):
    """All that was asked for is there."""


class Normalize(nn.Module):
    """Pixels to what most networks of others take: [0, 1], less a mean a channel, over a deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (unit(images) - self.mean) / self.std


def as_features(output: object) -> Tensor:
    """What a network returned as (N, d): maps by their mean.

    :raises BenchError: it returned something else.
    """
    if not isinstance(output, Tensor) or output.ndim not in {2, 4}:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BenchError(f"checkpoint.network returns {shape}, neither features (N, d) nor maps (N, C, H, W)")
    return output.mean((2, 3)) if output.ndim == 4 else output


@contextmanager
def _watched(modules: dict[str, nn.Module], keep: object) -> Iterator[None]:
    """Calls ``keep(name, output)`` whenever one of the modules has run."""
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: keep(name, out))  # type: ignore[operator]
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _dry_run(net: nn.Module, images: Tensor) -> tuple[dict[str, Form], object]:
    """Modules that give maps and run once, as they end, with their form; and what the network returns."""
    seen: list[tuple[str, Form]] = []

    def keep(name: str, out: object) -> None:
        if isinstance(out, Tensor) and (form := Form.seen(out.shape)) is not None:
            seen.append((name, form))

    modes = [(part, part.training) for part in net.modules()]
    net.eval()  # the image of the dry run must not move batch norm's statistics
    try:
        with _watched({name: m for name, m in net.named_modules() if name}, keep):
            output = net(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise BenchError(
            f"checkpoint.network refuses images of {images.shape[-1]} pixels ({line}); write another side"
        ) from error
    finally:
        for part, mode in modes:
            part.training = mode
    times = Counter(name for name, _ in seen)
    return {name: form for name, form in seen if times[name] == 1}, output


def _blocks(net: nn.Module, forms: Mapping[str, Form]) -> list[str]:
    """The children that give maps, one level deeper while there is only one, and in place of a row of stages."""

    def inside(name: str) -> list[str]:
        children = net.get_submodule(name).named_children()
        names = [(f"{name}.{n}".lstrip("."), child) for n, child in children]
        return [n for n, child in names if n in forms and _is_tap(child)]

    def expanded(name: str) -> list[str]:
        names = inside(name)
        stages = (
            isinstance(net.get_submodule(name), nn.Sequential) and len({forms[n].cells for n in names}) > 1
        )
        return [deeper for n in names for deeper in expanded(n)] if stages else [name]

    names = inside("")
    while len(names) == 1 and list(net.get_submodule(names[0]).children()):
        names = inside(names[0])
    return [deeper for n in names for deeper in expanded(n)]


def _is_tap(module: nn.Module) -> bool:
    leaf = not list(module.children())
    return not (leaf and (isinstance(module, _PLAIN) or "pool" in type(module).__name__.lower()))
