"""Published lists of the training images whose labels may be seen: S4L's and SimCLR's 1% and 10% of ImageNet."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.records import BenchError

_REMEDY = 'write one image a line, as NAME.JPEG or CLASS/NAME.JPEG, or {"values": [...]} as S4L\'s files do'


def shown(labels: Tensor, paths: Sequence[str], file: Path, sha256: str = "") -> Tensor:
    """The labels (N,) of the images at ``paths`` that ``file`` names; -1 for all others.

    :param paths: .../CLASS/NAME.EXT, one a label. Endings of names do not count.
    :param sha256: that the file must have, where it is known.
    :raises BenchError: no such file, another one, a name that no image has, or that images of two classes have.
    """
    wanted = dict.fromkeys(map(_stem, _names(file, sha256)), -1)
    for index, path in enumerate(paths):
        stem = _stem(path)
        folder, _, name = stem.rpartition("/")
        for key in (name, f"{folder.rpartition('/')[2]}/{name}"):
            if key in wanted:
                wanted[key] = index if wanted[key] < 0 else len(paths)
    for name, index in wanted.items():
        if index < 0:
            raise BenchError(f"{file}: names {name!r}, and no training image is called so; {_REMEDY}")
        if index == len(paths):
            raise BenchError(f"{file}: names {name!r}, which more than one class has; write CLASS/NAME")
    out = torch.full_like(labels, -1)
    rows = torch.tensor(list(wanted.values()))
    out[rows] = labels[rows]
    return out


def _names(file: Path, sha256: str) -> list[str]:
    """The names in a file of lines, or below "values" in JSON."""
    try:
        content = file.read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{file}: cannot be read as a list of images; {_REMEDY}") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in {"", found}:
        raise BenchError(f"{file}: changed since it was planned (SHA-256 {found}); run the suite again")
    names = _values(text, file) if text.lstrip().startswith("{") else text.split()
    if not names:
        raise BenchError(f"{file}: names no image; {_REMEDY}")
    return names


def _values(text: str, file: Path) -> list[str]:
    try:
        names = json.loads(text)["values"]
    except (ValueError, KeyError) as error:
        raise BenchError(f"{file}: not S4L's JSON; {_REMEDY}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BenchError(f"{file}: not S4L's JSON; {_REMEDY}")
    return names


def _stem(name: str) -> str:
    return os.path.splitext(name.replace(os.sep, "/"))[0]  # noqa: PTH122 - a million paths
