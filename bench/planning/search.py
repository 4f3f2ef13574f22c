"""Random search over settings: the same number of trials for every method and for the baseline.

Oliver et al., NeurIPS 2018, section 4.1: a comparison is fair when each method, the supervised baseline among
them, was tuned with the same budget. The first trial is what the suite says; the others are drawn from declared
ranges, by SHA-256 of (seed, label, trial, field), so that a plan is the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.records import BenchError
from bench.registry import Info, suggest

_KEYS = ("trials", "seed", "every", "methods")
_RANGE = ("low", "high", "log")


@dataclass(frozen=True)
class Search:
    """How often settings are tried, and from what they are drawn.

    :param every: ranges of fields, for each method that has them; ``methods``: ranges by label.
    """

    trials: int = 0
    seed: int = 0
    every: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def ranges(self, label: str, info: Info) -> dict[str, Any]:
        """What is drawn for a method."""
        shared = {k: v for k, v in self.every.items() if k in info.fields}
        return {**shared, **self.methods.get(label, {})}

    def settings(self, label: str, info: Info, trial: int) -> dict[str, Any]:
        """The settings that a trial changes: none of the first."""
        if trial == 0:
            return {}
        return {
            key: _value(given, info.fields[key].type, _uniform(self.seed, label, trial, key))
            for key, given in self.ranges(label, info).items()
        }


def parse(raw: Mapping[str, Any], labels: Mapping[str, Info], where: str) -> Search:
    """The table ``[search]``, checked against the suite's methods by label."""
    for key in raw:
        if key not in _KEYS:
            raise BenchError(f"{where}: unknown key {key!r}{suggest(key, _KEYS)}")
    if not raw:
        return Search()
    for key in ("trials", "seed"):
        value = raw.get(key, 1 if key == "trials" else 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < (key == "trials"):
            raise BenchError(f"{where}.{key} must be a whole number, not {value!r}")
    every = _ranges(raw.get("every", {}), f"{where}.every")
    own = _by_label(raw.get("methods", {}), labels, f"{where}.methods")
    found = Search(raw.get("trials", 1), raw.get("seed", 0), every, own)
    for label, info in labels.items():
        if not found.ranges(label, info):
            raise BenchError(
                f"{where}: nothing to draw for {label!r}: every method has the same number of trials, so write"
                f" [search.methods.{label}] with a range"
            )
    return found


def _by_label(methods: Any, labels: Mapping[str, Info], where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(methods, dict):
        raise BenchError(f"{where} must be tables of ranges by label, not {methods!r}")
    for label, table in methods.items():
        if label not in labels:
            raise BenchError(f"{where}: there is no method {label!r} here{suggest(label, labels)}")
        info = labels[label]
        for key in _ranges(table, f"{where}.{label}"):
            if key not in info.fields:
                raise BenchError(
                    f"{where}.{label}: method {info.name!r} has no field {key!r}{suggest(key, info.fields)}"
                )
    return methods


def _ranges(table: Any, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise BenchError(f"{where} must be a table of ranges, not {table!r}")
    for key, given in table.items():
        _check(given, f"{where}.{key}")
    return table


def _check(given: Any, where: str) -> None:
    if isinstance(given, list) and given:
        return
    if not isinstance(given, dict) or not {"low", "high"} <= set(given) <= set(_RANGE):
        raise BenchError(
            f"{where} must be a list of values or a range like {{low = 1e-4, high = 1e-2, log = true}}, not {given!r}"
        )
    low, high = given["low"], given["high"]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (low, high))
    if not numbers or low >= high or (given.get("log") and low <= 0):
        raise BenchError(f"{where} needs numbers low < high (above 0 where log = true), not {given!r}")


def _uniform(*key: object) -> float:
    """In [0, 1), from the key alone."""
    word = hashlib.sha256(":".join(map(str, key)).encode()).digest()[:7]
    return int.from_bytes(word, "big") / 2**56


def _value(given: Any, kind: str, u: float) -> Any:
    if isinstance(given, list):
        return given[int(u * len(given))]
    low, high = given["low"], given["high"]
    value = low * (high / low) ** u if given.get("log") else low + (high - low) * u
    if kind == "int":
        return round(value)
    digits = 3 - math.ceil(math.log10(abs(value))) if value else 0  # three digits are read and written alike
    return round(value, digits)
