"""The contracts: what a method, a protocol, a backbone and a dataset are, and what they are handed.

A **method** is a black box: it is handed a backbone, images and as many labels as it may see, and
hands back a model. A **protocol** is handed a model and a labeled target, and yields numbers.
A method and a protocol never meet. Every unit is a frozen dataclass in a file of its own, whose
fields are its hyper-parameters and whose defaults are the paper's.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.draws import Draws
from bench.facts import Facts, tell
from bench.records import BenchError, Needs, TargetNeeds, Unit

__all__ = [
    "OUTPUT",
    "Backbone",
    "BenchError",
    "Cache",
    "DataShape",
    "Dataset",
    "Draws",
    "Encoder",
    "Evaluation",
    "Frame",
    "Images",
    "Measurement",
    "Method",
    "Model",
    "Needs",
    "Picture",
    "Room",
    "Rows",
    "Run",
    "Samples",
    "Tap",
    "Target",
    "TargetNeeds",
    "TrainingSet",
    "Unit",
    "Writer",
]

# A batched view of the images: uint8 (N, 3, H, W) of one size and their draws -> (N, 3, h, w),
# uint8 in 0..255 or float in [0, 1]. Streamed sources call it on one image at a time, in a worker.
Frame = Callable[[Tensor, Draws], Tensor]

OUTPUT = "output"  # the tap of what an encoder itself returns


# ---- data ------------------------------------------------------------------------------------


class Images(abc.ABC):
    """N images, resident on the device as uint8 or streamed from files."""

    side: int | None = None  # None where sizes vary
    color: bool = True  # False: the three channels are copies of one

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def views(
        self, batches: Iterable[Tensor], frames: Sequence[Frame], seed: int, epoch: int | Iterable[int]
    ) -> Iterator[list[Tensor]]:
        """For each int64 batch of indices, one tensor per frame.

        ``batches`` may be endless; ``epoch`` is that of all of them, or one for each. Batches are read ahead, and
        only within one call: who wants many asks for them at once.

        View v of image i is ``frames[v](image, Draws(seed, epoch, i, stream=v))``, whatever the
        batch it comes in. Tensors are on the run's device.
        """

    @abc.abstractmethod
    def to(self, device: torch.device) -> Images:
        """Resident images move; streamed ones remember where to put their batches."""


@dataclass(frozen=True)
class Samples:
    """Images with whatever annotations their dataset has; ``name`` is unique and names the content."""

    name: str
    images: Images
    labels: Tensor | None = None  # int64 (N,), -1 where unknown
    multilabel: Tensor | None = None  # int8 (N, C): +1 present, -1 absent, 0 to be ignored
    boxes: Sequence[Mapping[str, Tensor]] | None = None  # boxes (k, 4) xyxy, labels (k,), difficult (k,)
    masks: Sequence[Tensor] | None = None  # uint8 (H, W), 0 background, 255 ignored

    def __len__(self) -> int:
        return len(self.images)


class Dataset(abc.ABC):
    """A dataset: knows its classes and reads its splits from the form they are published in."""

    kind: ClassVar[str] = "dataset"
    name: ClassVar[str]
    classes: ClassVar[int]  # a class without it has a teller
    color: ClassVar[bool] = True
    flip: ClassVar[bool] = True  # a mirrored image keeps its class
    annotations: ClassVar[tuple[str, ...]] = ("class",)
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    test_split: ClassVar[str] = "test"  # "val" for ImageNet and Places
    image_side: ClassVar[int | None] = None  # None where sizes vary or a setting decides
    # What pictures call the classes, by label. Nothing else may hang on it: it is no part of a unit's digest (bench.code).
    class_names: ClassVar[tuple[str, ...]] = ()
    # "module:function", free of torch (bench.facts.Teller): what settings and files say of the constants above.
    teller: ClassVar[str] = ""

    def facts(self, root: Path) -> Facts:
        """Classes, annotations, image side: what planning is told too (:mod:`bench.facts`).

        :raises BenchError: files that should say it are missing below ``root``.
        """
        names = [f.name for f in dataclasses.fields(Facts)]
        known = Facts(**{name: getattr(self, name) for name in names if hasattr(self, name)})
        settings: dict[str, Any] = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
        return tell(self.teller, settings, root, known)

    @abc.abstractmethod
    def load(self, split: str, root: Path) -> Samples:
        """One split, from below ``root`` (``BENCH_DATA``); embedded sets need no files.

        :raises BenchError: a missing, empty, truncated or corrupt file, by its path and with the remedy.
        """

    def paths(self, root: Path) -> list[Path]:
        """All files below ``root`` that this dataset reads with these settings, sorted; embedded sets read none.

        :raises BenchError: a folder or a list that names them is missing.
        """
        return []

    def check(self, root: Path) -> list[str]:
        """What is wrong with the files below ``root``, a line each; empty when all is well."""
        problems = []
        for split in self.splits:
            try:
                self.load(split, root)
            except BenchError as error:
                problems.append(str(error))
        return problems


@dataclass(frozen=True)
class DataShape:
    """What a method may know of its training set before it sees it."""

    classes: int
    count: int  # training images
    side: int | None
    color: bool
    flip: bool  # a mirrored image keeps its class


@dataclass(frozen=True)
class TrainingSet:
    """Images with as many labels as the method may see: the rest was taken out before it got here."""

    images: Images
    labels: Tensor | None  # int64 (N,), -1 where hidden; None for a method that may see none
    classes: int
    flip: bool = True

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> DataShape:
        return DataShape(self.classes, len(self), self.images.side, self.images.color, self.flip)


@dataclass(frozen=True)
class Target:
    """What a protocol judges on. ``train`` and ``validation`` are disjoint; choices are made on the latter."""

    train: Samples
    validation: Samples
    test: Samples
    classes: int
    flip: bool = True
    class_names: tuple[str, ...] = ()  # for pictures; () where the dataset does not say


# ---- models ----------------------------------------------------------------------------------


class Encoder(nn.Module):
    """A backbone's network with named layers. Takes uint8 RGB (N, 3, H, W), or floats in [0, 1], of any size.

    :param input: pixels to network input: statistics, Sobel, L or ab channels; saved with the weights.
    :param trunk: fully convolutional; ``layers`` are names of its children, tapped after their ReLU.
    :param top: what lies above the trunk up to the features (fc6, fc7); None: global average pooling.
    :param layers: the taps, in order, with ``channels`` (how many maps) and ``strides`` (input pixels a step).
    :param dim: width of ``forward``'s output.
    """

    def __init__(
        self,
        *,
        input: nn.Module,  # noqa: A002 - the contract's own word
        trunk: nn.Sequential,
        layers: Sequence[str],
        channels: Mapping[str, int],
        strides: Mapping[str, int],
        dim: int,
        top: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.input, self.trunk, self.top = input, trunk, top
        self.layers, self.channels, self.strides, self.dim = tuple(layers), dict(channels), dict(strides), dim

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, dim)."""
        return self.pool(self.maps(images))

    def maps(self, images: Tensor) -> Tensor:
        """The trunk's last maps (N, C, h, w), which ``pool`` and ``top`` read."""
        maps: Tensor = self.trunk(self.input(images))
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        """The trunk's last maps (N, C, h, w) to features (N, dim)."""
        return maps.mean((2, 3)) if self.top is None else self.top(maps)

    def activations(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The maps at the named layers, each (N, C, H, W), after ReLU; stops at the highest one."""
        self._check_layers(layers)
        wanted, x = set(layers), self.input(images)
        found: dict[str, Tensor] = {}
        for name, stage in self.trunk.named_children():
            if len(found) == len(wanted):
                break
            x = stage(x)
            if name in wanted:
                found[name] = x
        return found

    def _check_layers(self, layers: Sequence[str]) -> None:
        missing = [layer for layer in layers if layer not in self.layers]
        if missing:
            raise BenchError(
                f"layer {missing[0]!r} does not exist here; layers are: {', '.join(self.layers)}"
            )

    def read(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """:meth:`activations`, and under "output" what ``forward`` returns: the same, whatever is read together."""
        inner = [layer for layer in layers if layer != OUTPUT]
        if len(inner) == len(layers):
            return self.activations(images, inner)
        if not inner:
            return {OUTPUT: self(images)}
        if type(self).activations is not Encoder.activations:  # it has ways of its own to come to its maps
            return {**self.activations(images, inner), OUTPUT: self(images)}
        self._check_layers(inner)
        found: dict[str, Tensor] = {}

        def keep(name: str) -> None:
            stage = self.trunk.get_submodule(name)
            hooks.append(
                stage.register_forward_hook(lambda _stage, _inputs, maps: found.__setitem__(name, maps))
            )

        hooks: list[torch.utils.hooks.RemovableHandle] = []
        try:
            for layer in inner:
                keep(layer)
            found[OUTPUT] = self(images)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def above(self, layer: str, generator: torch.Generator) -> nn.Module:
        """A re-initialized copy of what lies above a tap: maps (N, C, H, W) to features (N, dim)."""
        import copy

        names = [name for name, _ in self.trunk.named_children()]
        if layer not in self.layers:
            raise BenchError(f"layer {layer!r} does not exist here; layers are: {', '.join(self.layers)}")
        rest = list(self.trunk.children())[names.index(layer) + 1 :]
        tail = nn.Sequential(*rest, self.top if self.top is not None else _GlobalAverage())
        tail = copy.deepcopy(tail)
        initialize(tail, generator)
        return tail


class _GlobalAverage(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """He et al. (ICCV 2015) normal weights, zero biases, unit norms: the same on every device and version."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fan_in = part.weight[0].numel()
            if isinstance(part, nn.ConvTranspose2d):
                fan_in = part.weight.shape[0] * part.weight[0, 0].numel() // (part.stride[0] * part.stride[1])
            with torch.no_grad():
                draw = torch.randn(part.weight.shape, generator=generator)
                part.weight.copy_(draw * (2.0 / fan_in) ** 0.5)
                if part.bias is not None:
                    part.bias.zero_()
        elif isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):  # noqa: SLF001 - all batch norms
            part.reset_parameters()


class Model(nn.Module):
    """What a method hands back, and all that is saved of it.

    :param head: a classifier on the encoder's features, where the method made one.
    :param variants: other models of the same training ("student"): judged when a suite asks for them.
    :param parts: decoder, generator, pretext heads: for pictures and transfer.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module | None = None,
        variants: Mapping[str, Model] | None = None,
        parts: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.variants, self.parts = nn.ModuleDict(variants or {}), nn.ModuleDict(parts or {})

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes)."""
        if self.head is None:
            raise BenchError("this model has no classifier of its own")
        scores: Tensor = self.head(self.encoder(images))
        return scores


class Backbone(abc.ABC):
    """An architecture: handed to the method, which builds what it needs of it."""

    kind: ClassVar[str] = "backbone"
    name: ClassVar[str]
    paper: ClassVar[str]
    batch_norm: ClassVar[bool] = True

    @abc.abstractmethod
    def build(
        self,
        *,
        generator: torch.Generator,
        in_channels: int = 3,
        width: float = 1.0,
        stem_stride: int | None = None,
        input: nn.Module | None = None,  # noqa: A002 - the contract's own word
    ) -> Encoder:
        """A fresh encoder. ``input`` replaces the default one (RGB minus mean over deviation)."""


# ---- what a unit may ask of the harness --------------------------------------------------------


@dataclass(frozen=True)
class Tap:
    """What a frozen protocol reads of an encoder: a layer ("output" is ``encoder(images)``), and how it is pooled.

    ``pooling`` is a name of ``bench.pooling`` (``adaptive_avg``, ``rotnet_max``...); ``size`` its grid side
    or, where the pooling decides, 0. ``side`` is the image side that is read (0: as it is), the middle of an image
    that was resized to ``square`` pixels a side, its aspect ignored (0: its shorter side to 256 / 224 of ``side``).
    """

    layer: str
    pooling: str = "none"
    size: int = 0
    side: int = 0
    square: int = 0


class Rows(abc.ABC):
    """Features (N, d) that stay on disk: what is asked for is read, as float32, to the CPU.

    What reads ``len(x)``, ``x.shape`` and ``x[rows]`` takes a tensor just as well.
    """

    shape: tuple[int, int]
    finite: bool = True  # no NaN and no infinity among them

    def __len__(self) -> int:
        return self.shape[0]

    @abc.abstractmethod
    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        """Float32 (n, d), of int64 (n,) or of a slice in steps of one."""


class Writer(abc.ABC):
    """Takes the rows of a matrix in order; those of an interrupted writer are there already."""

    done: int

    @abc.abstractmethod
    def write(self, values: Tensor) -> None:
        """The next rows (n, d)."""

    @abc.abstractmethod
    def close(self) -> Rows:
        """All are there: from now on the cache has them."""


@dataclass(frozen=True)
class Room:
    """What a cache can still hold, in bytes: of its limit, and of its disk; what may be deleted is free."""

    where: str
    limit: float
    free: float

    @property
    def size(self) -> float:
        return min(self.limit, self.free)


class Cache(abc.ABC):
    """Features on disk, keyed by what they were computed from."""

    @abc.abstractmethod
    def get(self, key: str) -> Tensor | None: ...

    @abc.abstractmethod
    def put(self, key: str, value: Tensor) -> None: ...

    def rows(self, key: str) -> Rows | None:
        """What a writer of this key wrote whole, held against deletion as long as it is referred to."""
        return None

    def writer(self, key: str, count: int, width: int, kept: str) -> Writer:
        """For ``count`` rows of ``width`` numbers, kept as ``float32`` or ``float16``.

        :raises BenchError: there is no room for them.
        """
        raise BenchError("this cache keeps only what memory holds")

    def room(self) -> Room:
        """What is left for writers."""
        return Room("memory", 0.0, 0.0)


class Run(abc.ABC):
    """The harness's side of one training or one evaluation: randomness, time, state, and what is kept."""

    seed: int
    device: torch.device
    precision: str  # "fp32", "bf16"
    budget: int | str  # encoder passes, or "12 epochs"
    taps: tuple[
        Tap, ...
    ] = ()  # what all frozen protocols of this model will read: one forward pass serves them
    steps: int = 0  # a rehearsal: at most so many of each descent, its first ones and its last; 0: all
    cache: Cache
    weights_digest: str = ""  # of the model that is judged
    features: str = "float32"  # as what frozen features are kept and read: or "float16"
    # What the training of the model that is judged kept: cluster ids by epoch, int64 (N,), and the classes of
    # the N images that it was trained on, in the same order (-1: unknown). Nothing where it clustered nothing.
    assigned: Mapping[int, Tensor] = MappingProxyType({})
    assigned_labels: Tensor | None = None

    @abc.abstractmethod
    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator seeded by (seed, purpose): initial weights, targets, permutations."""

    @abc.abstractmethod
    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass: nothing for fp32, bfloat16 autocast for bf16."""

    @abc.abstractmethod
    def resume(self, state: Mapping[str, Any]) -> int:
        """Load the last checkpoint into ``state`` (modules, optimizers, tensors, objects with ``state_dict``).

        Returns the number of steps done, 0 when there is nothing to resume.
        """

    @abc.abstractmethod
    def checkpoint(self, done: int, state: Mapping[str, Any], *, force: bool = False) -> None:
        """Offer the state after ``done`` steps; written when forced (at the end) or minutes have passed."""

    @abc.abstractmethod
    def snapshot(self, done: int, total: int, model: Model) -> None:
        """Offer the model after ``done`` of ``total`` steps; kept when the training asks for one there."""

    @abc.abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Losses and other curves: kept as parquet beside the run, judged by nobody."""

    @abc.abstractmethod
    def progress(self, done: int, total: int) -> None: ...

    @abc.abstractmethod
    def saw(self, images: int) -> None:
        """Count images that a step consumed (the column ``images_seen``)."""

    def warn(self, text: str) -> None:  # noqa: B027 - who keeps no rows need not listen
        """What a reader of the numbers should know: it stands beside them in rows and tables."""

    @abc.abstractmethod
    def assignments(self, epoch: int, ids: Tensor) -> None:
        """Cluster ids (N,) of an epoch, for the clustering protocol."""

    @abc.abstractmethod
    def picture(self, name: str, image: Tensor) -> None:
        """Keep an image (3, H, W) in [0, 1] beside the run."""


# ---- units -------------------------------------------------------------------------------------


class Method(abc.ABC):
    """A pretrainer. Subclasses are frozen dataclasses, one a file; the file's name is the method's."""

    kind: ClassVar[str] = "method"
    # Fields that a rehearsal on few images makes smaller: "batch" (with the batch), "images" (as many as there are).
    # No part of a unit's digest (bench.code).
    shrinks: ClassVar[Mapping[str, str]] = MappingProxyType({})
    paper: ClassVar[str]  # authors, title, venue: where the algorithm comes from
    # What could not be read in the authors' own code, and why: `bench list` says "from description". No part of
    # a unit's digest (bench.code).
    from_description: ClassVar[str] = ""
    sees_labels: ClassVar[bool] = False
    needs: ClassVar[Needs] = Needs()
    # What the model depends on; the plan collapses the other axes: "backbone", "budget", "data", "seed".
    depends_on: ClassVar[tuple[str, ...]] = ("backbone", "budget", "data", "seed")
    variants: ClassVar[tuple[str, ...]] = ()  # names of Model.variants
    distributed: ClassVar[bool] = False  # several processes may train it together; else the plan says one
    # Fields that are paths: the plan writes each file's SHA-256 into the field of that name + "_sha256".
    files: ClassVar[tuple[str, ...]] = ()
    own_network: ClassVar[str] = ""  # a field that, when it is set, names what stands in for the backbone

    @abc.abstractmethod
    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """An untrained model; saved weights are loaded into one built the same way."""

    @abc.abstractmethod
    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """The algorithm. May train ``model`` in place; returns the model to be judged."""


@dataclass(frozen=True)
class Measurement:
    """One number. ``split`` says on what it was measured; choices may only rest on "validation"."""

    metric: str
    value: float
    layer: str = ""
    split: str = "test"
    step: int | None = None


@dataclass(frozen=True)
class Picture:
    """An image (3, H, W) in [0, 1] that a protocol wants kept."""

    name: str
    image: Tensor = field(repr=False)


class Evaluation(abc.ABC):
    """A protocol. Subclasses are frozen dataclasses, one a file; the file's name is the protocol's."""

    kind: ClassVar[str] = "protocol"
    paper: ClassVar[str]
    from_description: ClassVar[str] = ""  # as a method's
    shrinks: ClassVar[Mapping[str, str]] = MappingProxyType({})  # as a method's
    needs: ClassVar[TargetNeeds] = TargetNeeds()

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        """What is read of a frozen encoder: the harness extracts it once for all protocols."""
        return ()

    @abc.abstractmethod
    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement | Picture]:
        """Judge the model; a generator of numbers that does not know where they go."""
