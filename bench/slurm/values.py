"""What may stand in ``[slurm]``: each kind of value read as sbatch reads it, a mistake told in one line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.records import BenchError, Value

# What a submission decides itself: as an extra parameter it would break the bookkeeping.
_OURS = {"array", "chdir", "dependency", "error", "export", "job-name", "kill-on-invalid-dep", "no-requeue"}
_OURS |= {"ntasks", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "open-mode", "output", "parsable"}
_OURS |= {"requeue", "signal", "wait", "wrap"}


def table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BenchError(f"{where} must be a table, not {value!r}")
    return value


def text(value: Any, where: str) -> str:
    """One line of text: a line break would end the comment that sbatch reads."""
    if not isinstance(value, str) or not value.isprintable():
        raise BenchError(f"{where} must be text in one line, not {value!r}")
    return value


def count(least: int) -> Callable[[Any, str], int]:
    def check(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BenchError(f"{where} must be a whole number from {least} up, not {value!r}")
        return value

    return check


def gpus(value: Any, where: str) -> int | str:
    """A number, or a type with a number."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]+:\d+|\d+", value):
        return int(value) if value.isdecimal() else value
    if isinstance(value, str):
        raise BenchError(f'{where} must be a whole number, or a type with one as "a100:4", not {value!r}')
    return count(0)(value, where)


_CLOCK = re.compile(r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(?:(\d+):)?(\d+):(\d+))")
_SPAN = re.compile(r"(\d+(?:\.\d+)?) *(s|min|m|h|d|day|days|)")
_MINUTES = {"s": 1 / 60, "min": 1, "m": 1, "": 1, "h": 60, "d": 1440, "day": 1440, "days": 1440}


def minutes(value: Any, where: str) -> float:
    """All that sbatch reads, and ``"20 min"``, ``"2 h"``, ``"1d"`` or a number, in minutes.

    As to sbatch, ``"2:00"`` is two minutes, ``"2:00:00"`` two hours, ``"1-0"`` and ``"1-02:30"`` days with hours.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    if clock := _CLOCK.fullmatch(text):
        days, hours, mins, seconds, own_hours, own_mins, own_seconds = (
            int(part or 0) for part in clock.groups()
        )
        whole = 60 * (24 * days + hours + own_hours) + mins + own_mins
        return whole + (seconds + own_seconds) / 60
    if span := _SPAN.fullmatch(text):
        return float(span[1]) * _MINUTES[span[2]]
    raise BenchError(
        f'{where} must be minutes, or like "02:00:00", "1-12:00", "20 min", "2 h" or "1d", not {value!r}'
    )


def limit(value: Any, where: str) -> int:
    if isinstance(value, str) and value.lower() in {"unlimited", "infinite"}:
        return 0
    found = minutes(value, where)
    if found <= 0 or (found < 1 and not isinstance(value, str)):
        raise BenchError(f'{where} must be a minute or more, not {value!r} (no limit is "unlimited")')
    return -int(-found // 1)


def memory(value: Any, where: str) -> int | None:
    """``"8G"``, ``"500m"`` or a number of MB, in MB; 0 is all that a node has, ``"none"`` asks for none at all."""
    known = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
    if isinstance(value, str) and value.lower() == "none":
        return None
    text = value.upper() if isinstance(value, str) else ""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", text):
        size = float(found[1]) * known[found[2]]
        return max(1, int(size)) if size else 0
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise BenchError(f'{where} must be like "8G", a number of MB, 0 (a whole node) or "none", not {value!r}')


def share(value: Any, where: str) -> int:
    found = memory(value, where)
    if not found:
        raise BenchError(f'{where} must be like "4G" or a number of MB, not {value!r}')
    return found


def command(value: Any, where: str) -> str:
    """Words, as a shell would split them; no shell sees them."""
    try:
        words = shlex.split(text(value, where))
    except ValueError as error:
        raise BenchError(f"{where}: {value!r} cannot be read as a command: {error}") from error
    if not words:
        raise BenchError(f'{where} must be a command, as "apptainer exec image.sif python", not {value!r}')
    return str(value)


def texts(value: Any, where: str) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise BenchError(f"{where} must be a list of texts, not {value!r}")
    return tuple(text(one, where) for one in listed)


def more_options(value: Any, where: str, keys: Iterable[str] = ()) -> tuple[tuple[str, Value], ...]:
    found: dict[str, Value] = {}
    for written, one in table(value, where).items():
        key = written.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise BenchError(f'{where}: {written!r} is no parameter of sbatch; write it as in "mail-type"')
        if key in _OURS:
            raise BenchError(f"{where}: {written!r} is decided by bench; leave it out")
        if key in {name.replace("_", "-") for name in keys}:
            raise BenchError(f"{where}: {written!r} has a key of its own: write it in [slurm] itself")
        if not isinstance(one, (str, int, float)):
            raise BenchError(f"{where}: {written} must be text, a number or true, not {one!r}")
        found[key] = text(one, f"{where}: {written}") if isinstance(one, str) else one
    return tuple(sorted(found.items()))
