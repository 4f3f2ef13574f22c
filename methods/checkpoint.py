"""Anybody's checkpoint: weights out of a file, onto a network of any make, judged as everything else is."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from bench.contracts import Backbone, BenchError, DataShape, Method, Model, Run, TrainingSet
from methods.parts import weights
from methods.parts.foreign import Foreign, network
from methods.parts.programs import Program

PROGRAM = "program"  # the network that a file itself is

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint(Method):
    """Nothing is trained: the encoder's weights are read from a file.

    A safetensors file or a state dict (``torch.save``), nested or not, with the names of the network, of
    torchvision or of timm, below any prefix (``module.``, ``backbone.``, ``encoder_q.``, ``teacher.``...). What does not
    fit is told by name, and nothing is loaded. Reading these runs no code: safetensors holds plain bytes, and of a
    state dict's pickle only tensors and plain values are admitted. A file may also be the network itself (``network =
    "program"``), TorchScript or an exported program (``.pt2``): frozen protocols then read its output, the others
    are skipped. What an exported program may call is a closed list of tensor operators, and nothing in it is
    unpickled; TorchScript is compiled and run by torch, tensor operators without Python, so take it from
    those whom you trust with your machine's time and memory.

    :param file: its path; the file's SHA-256 is part of the model's identity. A factory that brings its own
        weights needs none.
    :param network: ``torchvision:NAME``, ``timm:NAME``, ``package.module:factory`` (**imports that module and runs
        that function**: code of the user's choice), ``program``: the file is the network, or "": the suite's backbone.
    :param layers: modules of such a network that are tapped; () finds its blocks.
    :param prefix: of the names in the file; "auto" takes the one under which most weights fit.
    :param mean: of the pixels in [0, 1], subtracted; ``std``: divided by. A backbone has its own.
    :param side: of the image that is passed through such a network to find its maps' sizes.
    :param file_sha256: written by the plan; where a suite says it, the file must have it.
    """

    paper: ClassVar[str] = (
        "He, Fan, Wu, Xie & Girshick, Momentum Contrast, CVPR 2020; Caron et al., Emerging Properties in "
        "Self-Supervised Vision Transformers, ICCV 2021 (whose checkpoints' names are known; cite the file's own)"
    )
    depends_on: ClassVar[tuple[str, ...]] = ("backbone",)
    files: ClassVar[tuple[str, ...]] = ("file",)
    own_network: ClassVar[str] = "network"

    file: str = ""
    network: str = ""
    layers: tuple[str, ...] = ()
    prefix: str = "auto"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    side: int = 224
    file_sha256: str = ""

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The network without its weights."""
        if not self.network:
            return Model(backbone.build(generator=generator))
        if self.network == PROGRAM:
            return Model(Program(self._path(), self.mean, self.std, self.side))
        if self._runs_code:
            _log.warning("checkpoint.network: running %s", self.network)
        net, dropped = network(self.network, generator)
        return Model(Foreign(net, self.mean, self.std, self.layers, self.side, dropped))

    def train(self, model: Model, data: TrainingSet, run: Run) -> Model:
        """Read the weights; a factory's network without a file stays as it came, and a program has its own."""
        if self.file and self.network != PROGRAM:
            self._load(model)
        elif not self.file and not self._runs_code:
            raise BenchError('checkpoint.file is ""; write the path of the weights')
        run.snapshot(1, 1, model)
        return model.to(run.device)

    def _path(self) -> Path:
        """The file, if it is the one that was planned."""
        path = Path(self.file).expanduser()
        if self.file_sha256 and path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if self.file_sha256 != digest:
                raise BenchError(
                    f"{path}: changed since it was planned (SHA-256 {digest}); run the suite again"
                )
        return path

    def _load(self, model: Model) -> None:
        path = self._path()
        found = weights.read(path)
        dropped = model.encoder.dropped if isinstance(model.encoder, Foreign) else ()
        prefix = None if self.prefix == "auto" else self.prefix
        own = model.encoder.state_dict()
        fitting = weights.fit(found, own, str(path), prefix=prefix, dropped=dropped)
        model.encoder.load_state_dict({**own, **fitting})
        _log.info("%s: %d of %d tensors read", path, len(fitting), len(found))

    @property
    def _runs_code(self) -> bool:
        return bool(self.network) and self.network.partition(":")[0] not in {"torchvision", "timm", PROGRAM}
