"""Whatever a unit raises becomes a status and a reason."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import distributed
from bench.records import BenchError


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
        return {"status": "failed", "reason": str(error), "input": True}
    except (torch.OutOfMemoryError, MemoryError) as error:
        return {
            "status": "oom",
            "reason": f"out of memory: {str(error).splitlines()[0] if str(error) else ''}",
        }
    except Exception as error:  # noqa: BLE001 - a unit may raise anything, and must cost only its own cells
        with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc() + "\n")
        frame = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [""])[0]
        return {
            "status": "failed",
            "reason": f"{type(error).__name__}: {first} ({Path(frame.filename).name}:{frame.lineno})",
        }
