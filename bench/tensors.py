"""Tensors on disk: safetensors only, so that reading a file never runs code.

A training's state (modules, optimizers, tensors, plain values, nested) is packed into one file: the
tensors by name, the rest as JSON in the header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.artifacts import written
from bench.records import BenchError

# RuntimeError is torch's word for a file that went between two looks at it.
_UNREADABLE = (SafetensorError, OSError, RuntimeError, ValueError)


def save(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write tensors whole or not at all."""
    # A clone each: safetensors refuses tensors that share memory.
    plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    with written(path) as temporary:
        try:
            save_file(plain, temporary, metadata={"format": "pt", **(header or {})})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    :raises BenchError: the file is missing, damaged or of another kind.
    """
    try:
        return load_file(path)
    except _UNREADABLE as error:
        raise BenchError(
            f"{path}: not a readable safetensors file ({error}); delete it and it is made again"
        ) from error


def read_header(path: Path) -> dict[str, str]:
    """The text that was saved beside the tensors."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except _UNREADABLE as error:
        raise BenchError(
            f"{path}: not a readable safetensors file ({error}); delete it and it is made again"
        ) from error


def save_model(path: Path, model: nn.Module) -> None:
    """Weights and buffers of a model, variants and parts included."""
    save(path, model.state_dict())


def load_model(path: Path, model: nn.Module) -> None:
    """Fill a model of the same shape.

    :raises BenchError: the first keys and shapes that do not agree, by name.
    """
    tensors = read(path)
    own = model.state_dict()
    problems = [f"{k} is missing" for k in own if k not in tensors]
    problems += [f"{k} is unknown" for k in tensors if k not in own]
    problems += [
        f"{k} has shape {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    if problems:
        raise BenchError(
            f"{path}: weights of another model: {'; '.join(problems[:3])}; delete it and it is made again"
        )
    model.load_state_dict(tensors)


# ---- nested state --------------------------------------------------------------------------------


def pack(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """A training's state as named tensors and JSON."""
    tensors: dict[str, Tensor] = {}
    values = {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in state.items()}
    return tensors, json.dumps(_encode(values, "", tensors))


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[k, _encode(v, f"{name}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_encode(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"state {name!r} holds a {type(value).__name__}: only tensors, numbers, text and lists are kept"
    )


def unpack(state: Mapping[str, Any], tensors: Mapping[str, Tensor], text: str) -> None:
    """Load packed values into ``state``: objects by ``load_state_dict``, tensors in place."""
    values = _decode(json.loads(text), tensors)
    for key, target in state.items():
        if hasattr(target, "load_state_dict"):
            target.load_state_dict(values[key])
        elif isinstance(target, Tensor):
            with torch.no_grad():
                target.copy_(values[key])
        elif isinstance(target, dict):
            target.clear()
            target.update(values[key])
        elif isinstance(target, list):
            target[:] = values[key]
        else:
            raise TypeError(f"state {key!r} is a {type(target).__name__} and cannot be restored in place")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {k: _decode(v, tensors) for k, v in content}
    items = [_decode(v, tensors) for v in content]
    return tuple(items) if kind == "tuple" else items
