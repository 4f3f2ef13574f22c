"""Python processes of our own: they import what this one imports, whatever lies in the working folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

OFF_SCREEN = {"MPLBACKEND": "agg"}  # a notebook's backend is not there, and figures are files


def python(module: str, *words: str) -> list[str]:
    """Runs a module without the working folder first, as ``python -m`` has it: a ``methods/`` there is not ours."""
    return [sys.executable, "-P", "-m", module, *words]


def environment() -> dict[str, str]:
    """What it inherits. Where this process has the working folder first, as ``python -m bench`` in a checkout, so has it."""
    inherited = {**os.environ, **OFF_SCREEN}
    here = str(Path.cwd())
    if not sys.flags.safe_path and sys.path[:1] in ([""], [here]):
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return inherited
