"""A program of ``torch.export``, read and run without torch's own loader, which runs what a file says."""

from __future__ import annotations

import json
import operator
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bench.contracts import BenchError

Json: TypeAlias = "Mapping[str, Any]"

MAJOR = 8  # of the format's version (torch 2.6 and later)
# The format's numbers for types and memory formats.
_TYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16}
_TYPES |= {7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_FILES = {"from_file"}  # operators of aten that touch files
_ARITHMETIC = "add sub mul neg floordiv truediv mod pow eq ne lt le gt ge and_ or_ not_ getitem"
_STATE = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


class Exported(nn.Module):
    """What ``torch.export.save`` wrote: a list of operators on tensors, run one after the other.

    ``torch.export.load`` unpickles, evaluates text and calls whatever function a file names. Here the graph is
    JSON, the weights are plain bytes, and a node is an operator of ``aten`` or an arithmetic one; a file with
    anything else is refused. ``size``: of the images that it was exported for (N, 3, H, W), None where that varies.

    :raises BenchError: a file that is damaged, of another version, exported in training mode, or needs more.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        archive = _Archive(path)
        whole = archive.json("models/model.json")
        if whole["schema_version"]["major"] != MAJOR:
            raise BenchError(f"{path}: was exported by a version of torch that is not known; export it again")
        graph = whole["graph_module"]["graph"]
        signature = whole["graph_module"]["signature"]
        self.outputs = _outputs(signature, path)
        self.nodes = [_Node(node, path) for node in graph["nodes"]]
        _drop_early(self.nodes, self.outputs)
        images = [s["user_input"]["arg"] for s in signature["input_specs"] if "user_input" in s]
        if len(images) != 1 or "as_tensor" not in images[0]:
            raise BenchError(f"{path}: takes {len(images)} inputs; export a network that takes images alone")
        self.images: str = images[0]["as_tensor"]["name"]
        sizes = graph["tensor_values"][self.images]["sizes"]
        self.size: tuple[int | None, ...] = tuple(one.get("as_int") for one in sizes)
        self.names: dict[str, str] = {}
        for number, (name, value) in enumerate(archive.state(signature).items()):
            self.register_buffer(f"t{number}", value)
            self.names[name] = f"t{number}"

    def forward(self, images: Tensor) -> Any:
        """Whatever the program returns of float images (N, 3, H, W)."""
        known: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self.names.items()}
        known[self.images] = images
        for node in self.nodes:
            node.run(known, images.device)
        found = [_value(one, known, images.device) for one in self.outputs]
        return found[0] if len(found) == 1 else tuple(found)


class _Node:
    """One operator, the arguments that it reads, and the names of what it gives."""

    def __init__(self, record: Json, path: Path) -> None:
        self.operator, self.keywords = _operator(record["target"], path)
        self.inputs: list[tuple[str, Json]] = [(one["name"], one["arg"]) for one in record["inputs"]]
        if any(name in {"train", "training"} and arg.get("as_bool") for name, arg in self.inputs):
            raise BenchError(f"{path}: was exported in training mode; call eval() on the network before")
        self.outputs: list[Json] = record["outputs"]
        self.forgets: set[str] = set()  # what no later node reads: maps of a whole network would fill memory

    def run(self, known: dict[str, Any], device: torch.device) -> None:
        values = {name: _value(arg, known, device) for name, arg in self.inputs}
        found = self.operator(**values) if self.keywords else self.operator(*values.values())
        several = len(self.outputs) > 1
        for record, one in zip(self.outputs, found if several else [found], strict=True):
            ((kind, named),) = record.items()
            if kind == "as_tensors":
                known.update(zip((n["name"] for n in named), one, strict=True))
            elif kind != "as_none":
                known[named.get("name", named.get("as_name"))] = one
        for name in self.forgets:
            del known[name]


def _operator(target: str, path: Path) -> tuple[Callable[..., Any], bool]:
    """What a node calls, and whether it takes its arguments by name."""
    parts = target.split(".")
    if parts[:-1] == ["_operator"] and parts[-1] in _ARITHMETIC.split():
        return getattr(operator, parts[-1]), False
    if parts[:3] == ["torch", "ops", "aten"] and len(parts) == 5 and parts[3] not in _FILES:
        found = getattr(getattr(torch.ops.aten, parts[3], None), parts[4], None)
        if isinstance(found, torch._ops.OpOverload):  # noqa: SLF001 - its only name
            return found, True
    raise BenchError(f"{path}: calls {target!r}; only tensor operators (torch.ops.aten) are run")


_PLAIN = {"as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_int_lists"}
_NOTHING = {"as_none", "as_layout"}  # strided is the only layout that is read
_TABLES: Mapping[str, Mapping[int, Any]] = {"as_scalar_type": _TYPES, "as_memory_format": _FORMATS}
_WRAPPED = {"as_tensor", "as_optional_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"}
_LISTS = {"as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats"}
_NAMES = {"name", "as_name"}


def _value(arg: Json, known: Mapping[str, Any], device: torch.device) -> Any:
    """An argument of the format as what an operator takes; tensors and sizes stand in it by name."""
    ((kind, value),) = arg.items()
    if kind in _PLAIN | _NOTHING:
        return value if kind in _PLAIN else None
    if kind in _NAMES:
        return known[value]
    if kind in _WRAPPED:
        return _value(value, known, device)
    if kind in _LISTS:
        return [_value(one, known, device) for one in value]
    if kind in _TABLES:
        return _TABLES[kind][value]
    if kind == "as_device":
        return device
    raise BenchError(f"an exported program has an argument of kind {kind!r}, which is not read")


def _reads(arg: Json) -> Iterator[str]:
    """The names that an argument stands for."""
    ((kind, value),) = arg.items()
    if kind in _NAMES:
        yield value
    for inner in value if kind in _LISTS else [value] if kind in _WRAPPED else []:
        yield from _reads(inner)


def _drop_early(nodes: Sequence[_Node], outputs: Sequence[Json]) -> None:
    """Let every node forget what no later one reads."""
    needed = {name for one in outputs for name in _reads(one)}
    for node in reversed(nodes):
        own = {name for _, arg in node.inputs for name in _reads(arg)}
        node.forgets = own - needed
        needed |= own


def _outputs(signature: Json, path: Path) -> list[Json]:
    """What the program returns; one that also changes its buffers is still learning."""
    if any("user_output" not in one for one in signature["output_specs"]):
        raise BenchError(f"{path}: changes its own state; call eval() on the network before it is exported")
    return [one["user_output"]["arg"] for one in signature["output_specs"]]


class _Archive:
    """The zip file: JSON records, and tensors as plain bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, zipfile.ZipFile(path)
        self.root = next(n for n in self.file.namelist() if n.endswith("/archive_format")).rpartition("/")[0]

    def bytes(self, name: str) -> bytes:
        if f"{self.root}/{name}" not in self.file.namelist():
            raise BenchError(f"{self.path}: has no {name}; export it again, with torch 2.9 or later")
        return self.file.read(f"{self.root}/{name}")

    def json(self, name: str) -> Any:
        return json.loads(self.bytes(name))

    def state(self, signature: Json) -> dict[str, Tensor]:
        """Parameters, buffers and constants under the names that they have in the graph."""
        found = self._tensors("weights") | self._tensors("constants")
        names: dict[str, Tensor] = {}
        for spec in signature["input_specs"]:
            ((kind, record),) = spec.items()
            if kind in _STATE:
                names[record["arg"]["name"]] = found[record[_STATE[kind]]]
            elif kind != "user_input":
                raise BenchError(f"{self.path}: has an input of kind {kind!r}, which is not read")
        return names

    def _tensors(self, folder: str) -> dict[str, Tensor]:
        records = self.json(f"data/{folder}/model_{folder}_config.json")["config"]
        return {name: self._tensor(folder, record) for name, record in records.items()}

    def _tensor(self, folder: str, record: Json) -> Tensor:
        if record["use_pickle"] or record["tensor_meta"] is None:
            raise BenchError(f"{self.path}: holds a pickled {record['path_name']}, which is not read")
        meta = record["tensor_meta"]
        sizes, strides = ([one["as_int"] for one in meta[key]] for key in ("sizes", "strides"))
        raw = bytearray(self.bytes(f"data/{folder}/{record['path_name']}"))
        if not raw:
            return torch.zeros(sizes, dtype=_TYPES[meta["dtype"]])
        flat = torch.frombuffer(raw, dtype=_TYPES[meta["dtype"]])
        return flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
