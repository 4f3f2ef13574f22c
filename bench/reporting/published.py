"""The numbers that papers and the lecture printed: read, filtered, never mixed with measured ones."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from bench.records import BenchError
from bench.registry import suggest

COLUMNS = (
    "table_id",
    "paper",
    "method",
    "dataset",
    "protocol",
    "backbone",
    "setting",
    "metric",
    "value",
    "std",
    "source",
    "status",
)
FIELDS = ("setting", "protocol", "dataset", "metric", "backbone")  # what tells numbers of one method apart


def path() -> Path:
    """Where the file lies: package data in an installed wheel, ``results/`` in a checkout."""
    packaged = Path(str(resources.files("bench.reporting") / "published.csv"))
    checkout = Path(__file__).resolve().parents[2] / "results" / "published.csv"
    for found in (packaged, checkout):
        if found.is_file():
            return found
    raise BenchError(f"published.csv is neither at {packaged} nor at {checkout}: install the package again")


@functools.cache
def _read(file: Path) -> pd.DataFrame:
    # As text, so that a number is printed with the digits that the paper printed.
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def load() -> pd.DataFrame:
    """All published numbers, every column as text (``value`` as printed)."""
    return _read(path()).copy()


def table(table_id: str, where: str) -> pd.DataFrame:
    """The numbers of one printed table; ``where`` begins the error line."""
    every = load()
    found = every[every["table_id"] == table_id]
    if found.empty:
        known = list(dict.fromkeys(every["table_id"]))
        raise BenchError(f"{where}: there is no published table {table_id!r}{suggest(table_id, known)}")
    return found


def methods(numbers: pd.DataFrame) -> list[str]:
    """The methods of a printed table, in its order."""
    return list(dict.fromkeys(numbers["method"]))


def pick(numbers: pd.DataFrame, condition: Any, where: str) -> pd.DataFrame:
    """The numbers of a printed table's column: a text that one of FIELDS has, or {field = text, ...}."""
    if not isinstance(condition, dict):
        condition = {_field_of(numbers, str(condition), where): condition}
    for field, wanted in condition.items():
        if field not in FIELDS:
            raise BenchError(f"{where}: published numbers have no field {field!r}{suggest(field, FIELDS)}")
        numbers = numbers[_says(numbers[field], str(wanted))]
    if numbers.empty:
        raise BenchError(f"{where}: no published number has {condition!r}")
    return numbers


def one(numbers: pd.DataFrame, method: str, where: str) -> dict[str, str] | None:
    """The number of one method in one column; None where the paper left it blank."""
    found = numbers[numbers["method"] == method]
    surest_first = found.sort_values("status", key=lambda status: status != "verified", kind="stable")
    found = surest_first.drop_duplicates([*FIELDS, "value"])  # one number may have been found in two places
    if len(found) > 1:
        differing = [f for f in FIELDS if len(set(found[f])) > 1] or ["nothing"]
        raise BenchError(
            f"{where}: {len(found)} published numbers of {method!r} differ in {differing[0]}: name it"
        )
    return {str(k): str(v) for k, v in found.iloc[0].items()} if len(found) else None


def _field_of(numbers: pd.DataFrame, wanted: str, where: str) -> str:
    for field in FIELDS:
        if _says(numbers[field], wanted).any():
            return field
    known = {v for f in FIELDS for v in numbers[f]}
    raise BenchError(f"{where}: no published number says {wanted!r}{suggest(wanted, known)}")


def _says(values: pd.Series[str], wanted: str) -> pd.Series[bool]:
    """Equal, or equal up to the first ";": "10000 labels; mean of 10 runs" is "10000 labels"."""
    return (values == wanted) | (values.str.partition(";")[0] == wanted)
