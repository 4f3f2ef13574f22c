"""Whatever a unit raises becomes a status and a reason."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import distributed
from bench.records import BenchError

# How torch, CUDA and its libraries tell in words, by a plain RuntimeError, what their error classes do not.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|cannot allocate memory|unable to allocate|out of memory"
    r"|\w+_STATUS_(INTERNAL_ERROR_DEVICE_)?ALLOC(ATION)?_FAILED|cudaErrorMemoryAllocation|std::bad_alloc",
    re.IGNORECASE,
)
_KILLED = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly).*")


class SkipError(Exception):
    """This cell cannot be measured; the message is the reason."""


def guarded(action: Callable[[], dict[str, Any]], log: Path) -> dict[str, Any]:
    """Run one unit of work; whatever a unit raises becomes a status and a reason."""
    try:
        return {"status": "ok", "reason": "", **action()}
    except distributed.LostError as lost:
        return dict(lost.outcome)
    except SkipError as reason:
        return {"status": "skipped", "reason": str(reason)}
    except BenchError as error:
        if isinstance(error.__cause__, OSError) and "cannot be written" in str(error):
            raise  # a full disk concerns everything, not this cell
        if _out_of_memory(error.__cause__):
            return {"status": "oom", "reason": f"out of memory: {error}"}
        return {"status": "failed", "reason": str(error), "input": True}
    except Exception as error:  # noqa: BLE001 - a unit may raise anything, and must cost only its own cells
        return _judged(error, log)


def _judged(error: Exception, log: Path) -> dict[str, str]:
    """What was raised by kind: want of memory and a death are tried again, what a unit did wrong is not."""
    first = (str(error).splitlines() or [""])[0]
    if _out_of_memory(error):
        return {"status": "oom", "reason": f"out of memory: {first}"}
    if isinstance(error, RuntimeError) and (death := _KILLED.search(str(error))):
        return {"status": "killed", "reason": death[0].strip()}
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)) + "\n")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return {"status": "failed", "reason": f"{type(error).__name__}: {first} ({where})"}


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was missing, whatever class of error says so."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return told or isinstance(error, (torch.OutOfMemoryError, MemoryError))
