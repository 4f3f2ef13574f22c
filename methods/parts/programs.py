"""Files that are a network themselves: TorchScript, and programs of ``torch.export``."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.contracts import BenchError, Encoder
from methods.parts.exported import Exported
from methods.parts.foreign import Normalize, as_features

_REFUSED = re.compile(
    r"\b(?:torch|ops\.aten)\.(?:save|from_file)\(|\bops\.(?!aten\b|prim\b|torchvision\b)\w+"
)


def kind(path: Path) -> str:
    """``torchscript``, ``exported``, or nothing: by what the file holds, whatever it is called.

    :raises BenchError: there is no such file.
    """
    if not path.is_file():
        raise BenchError(f"{path}: there is no such file; write the path of the program")
    if not zipfile.is_zipfile(path):
        return ""
    names = zipfile.ZipFile(path).namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "torchscript"
    return "exported" if any(re.fullmatch(r"[^/]+/models/model\.json", name) for name in names) else ""


def read(path: Path) -> nn.Module:
    """The program in a file.

    TorchScript is compiled by torch's own reader: no Python runs, its pickles hold tensors and types of its
    own alone, and one that calls an operator that writes or reads files, or one of a library, is refused before it
    is loaded. It is a program all the same, and may take memory and time as it likes. Of exported programs see
    :class:`methods.parts.exported.Exported`.

    :raises BenchError: neither of both, or a damaged one.
    """
    found = kind(path)
    if not found:
        raise BenchError(
            f"{path}: neither TorchScript (torch.jit.save) nor an exported program (torch.export.save)"
        )
    try:
        return _script(path) if found == "torchscript" else Exported(path)
    except (
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        StopIteration,
        zipfile.BadZipFile,
    ) as error:
        raise BenchError(f"{path}: cannot be read as {found}: {_line(error)}") from error


def _script(path: Path) -> nn.Module:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            refused = (
                _REFUSED.search(archive.read(name).decode(errors="replace")) if name.endswith(".py") else None
            )
            if refused:
                raise BenchError(
                    f"{path}: calls {refused[0].rstrip('(')}, which is no tensor operator; it is not loaded"
                )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; files of it are there
        net: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return net.eval()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


class Program(Encoder):
    """A program as an encoder: its output (N, d), or the mean over its maps, are the features.

    There are no layers to tap and no weights to train; the program is not part of the model's state, since its
    file is part of the model's identity.

    :param side: of the image that is passed through to find the width of its output, where the program says none.
    """

    def __init__(self, path: Path, mean: Sequence[float], std: Sequence[float], side: int) -> None:
        self._program = [read(path)]  # in a list: no submodule, so that nothing saves, trains or copies it
        self._name, self._where = path.name, torch.device("cpu")
        size = getattr(self._program[0], "size", (None, 3, None, None))
        self._batch: int | None = size[0]
        self._sides: tuple[int | None, int | None] = (size[2], size[3])
        with torch.no_grad():
            found = self._run(torch.zeros(2, 3, size[2] or side, size[3] or side))
        normalize = Normalize(mean, std)
        super().__init__(
            input=normalize, trunk=nn.Sequential(), layers=(), channels={}, strides={}, dim=found.shape[1]
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, dim).

        :raises BenchError: images of a size that the program does not take.
        """
        return self._run(self.input(images))

    def maps(self, images: Tensor) -> Tensor:
        """:raises BenchError: always; a program gives its output alone."""
        raise BenchError(f"{self._name} is a program: it gives its output alone")

    def _run(self, images: Tensor) -> Tensor:
        for own, side in zip(self._sides, images.shape[2:], strict=True):
            if own not in {None, side}:
                raise BenchError(f"{self._name} takes images of {own} pixels, not {side}: write side = {own}")
        if images.device != self._where:
            self._program[0].to(images.device)
            self._where = images.device
        parts = [self._part(part) for part in images.split(self._batch or len(images))]  # type: ignore[no-untyped-call]
        return torch.cat(parts)

    def _part(self, images: Tensor) -> Tensor:
        """One call; a batch that is too small for a fixed size is filled up with its own last image."""
        missing = (self._batch or len(images)) - len(images)
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        try:
            return as_features(self._program[0](filled))[: len(images)]
        except (RuntimeError, ValueError, AssertionError, LookupError, TypeError) as error:
            raise BenchError(
                f"{self._name} refuses images of {images.shape[-1]} pixels ({_line(error)}); write another side"
            ) from error
