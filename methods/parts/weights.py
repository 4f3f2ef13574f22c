"""Anybody's weights: reading a file of them, and fitting their names to a network's."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.contracts import BenchError

Weights: TypeAlias = "Mapping[str, Tensor]"

SHOWN = 10  # mismatches that are told
_WRAPPERS = {"module", "_orig_mod"}  # what DataParallel and torch.compile put into names, wherever they like
# Of two nets in one file, the one that papers do not judge: MoCo's keys, DINO's student, averages' second copies.
_SECOND = {
    "encoder_k",
    "momentum_encoder",
    "base_momentum",
    "student",
    "variants",
    "state_dict_ema",
    "model_ema",
}

# How others name the same layers, as pairs of a pattern in our name and theirs.
_SPELLINGS: tuple[tuple[tuple[str, str], ...], ...] = (
    (),
    ((r"^trunk\.", ""),),  # a network of theirs, below our encoder
    # torchvision's and timm's residual networks, on the registered ones
    ((r"^trunk\.conv1\.0\.", "conv1."), (r"^trunk\.conv1\.1\.", "bn1."), (r"^trunk\.layer", "layer")),
)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict (``torch.save``), nested ones by dotted names.

    Nothing in the file is run: a pickle may hold tensors and plain values only.

    :raises BenchError: a missing, damaged or other kind of file, by its path and with the remedy.
    """
    if not path.is_file():
        raise BenchError(f"{path}: there is no such file; write the path of the weights")
    try:
        whole = load_file(path) if path.suffix == ".safetensors" else _pickled(path)
    except pickle.UnpicklingError as error:
        raise BenchError(
            f"{path}: holds more than tensors and plain values ({_reason(error)}); save its state dict alone: "
            "torch.save(model.state_dict(), file)"
        ) from error
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise BenchError(
            f"{path}: neither a safetensors file nor a state dict ({_reason(error)}); of TorchScript or an exported "
            'program, write network = "program"'
        ) from error
    found = dict(_flat(whole, ()))
    if not found:
        raise BenchError(f"{path}: holds no tensors; save a state dict: torch.save(model.state_dict(), file)")
    return found


def _pickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """What a reader said, in a few words: torch's messages are pages."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named[1] if named else " ".join(str(error).split())[:120] or type(error).__name__


def _flat(value: Any, name: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield ".".join(name), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            parts = (p for p in str(key).split(".") if p not in _WRAPPERS)
            yield from _flat(inner, (*name, *parts))


def fit(
    found: Weights, wanted: Weights, where: str, *, prefix: str | None = None, dropped: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The file's tensors under the network's names; counters of batches and input statistics may lack.

    Of all prefixes (``encoder_q.``, ``teacher.backbone.``...) the one under which most names and shapes
    agree is taken; of equals one that is no second copy (MoCo's keys, DINO's student). Several that are left are
    refused where their weights differ.

    :param wanted: what the network has (``state_dict``).
    :param prefix: of the names in the file that count, where it is known.
    :param dropped: modules that the network had and that were taken off: their weights may be left over.
    :raises BenchError: what is missing, left over below a module of the network, or of another shape, by name.
    """
    candidates: list[tuple[int, bool, int, str, Callable[[str], str]]] = []
    for spelling in _SPELLINGS:
        name = _renamer(spelling)
        for candidate, count in _prefixes(found, wanted, name).items():
            if prefix in {None, candidate}:
                second = bool(_SECOND & set(candidate.split(".")))
                candidates.append((count, not second, -len(candidate), candidate, name))
    if not candidates:
        raise BenchError(
            f"{where}: no weight of the network is in the file{'' if prefix is None else f' below {prefix!r}'}; the "
            f"file has {_some(list(found))}; the network {_some(list(wanted))}"
        )
    best = max(candidates, key=lambda one: one[:4])
    *_, chosen, name = best
    names = {key: chosen + name(key) for key in wanted}
    problems = list(_problems(found, wanted, names, chosen, dropped))
    if problems:
        raise BenchError(f"{where}: does not fit the network: {_some(problems, '; ')}")
    fitting = {key: found[other] for key, other in names.items() if other in found}
    others = {c[3] for c in candidates if c[:2] == best[:2] and _differs(found, fitting, c[3], c[4])}
    if others:
        listed = ", ".join(map(repr, sorted({chosen, *others})))
        raise BenchError(
            f"{where}: several networks fit, below {listed}: write checkpoint.prefix = one of them"
        )
    return fitting


def _differs(found: Weights, fitting: Weights, prefix: str, name: Callable[[str], str]) -> bool:
    """Whether the file has other weights of the same names below another prefix."""
    pairs = ((value, found.get(prefix + name(key))) for key, value in fitting.items() if not _optional(key))
    return any(other is not None and not torch.equal(value, other) for value, other in pairs)


def _renamer(spelling: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    def name(key: str) -> str:
        for ours, theirs in spelling:
            key = re.sub(ours, theirs, key)
        return ".".join(p for p in key.split(".") if p not in _WRAPPERS)

    return name


def _prefixes(found: Weights, wanted: Weights, name: Callable[[str], str]) -> Counter[str]:
    """For each prefix, how many of the network's names and shapes the file has below it."""
    ends: dict[str, list[str]] = {}
    for key in found:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    counts: Counter[str] = Counter()
    for key, value in wanted.items():
        own = name(key)
        for other in ends.get(own.rpartition(".")[2], []):
            if other.endswith(own) and found[other].shape == value.shape and not _optional(key):
                head = other[: len(other) - len(own)]
                if not head or head.endswith("."):
                    counts[head] += 1
    return counts


def _optional(key: str) -> bool:
    return key.startswith("input.") or key.endswith("num_batches_tracked")


def _problems(
    found: Weights, wanted: Weights, names: Mapping[str, str], prefix: str, dropped: Sequence[str]
) -> Iterator[str]:
    for key, other in names.items():
        if other not in found:
            if not _optional(key):
                yield f"{other} is missing"
        elif found[other].shape != wanted[key].shape:
            yield f"{other} has shape {tuple(found[other].shape)} instead of {tuple(wanted[key].shape)}"
    used, roots = set(names.values()), {n[len(prefix) :].partition(".")[0] for n in names.values()}
    for other in found:
        rest = other[len(prefix) :]
        if other in used or not other.startswith(prefix) or rest.partition(".")[0] not in roots:
            continue
        if not any(rest.startswith(f"{module}.") for module in dropped):
            yield f"{other} is unknown"


def _some(lines: Sequence[str], glue: str = ", ") -> str:
    more = len(lines) - SHOWN
    return glue.join(lines[:SHOWN]) + (f"{glue}and {more} more" if more > 0 else "")
