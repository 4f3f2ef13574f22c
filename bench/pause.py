"""A process may be asked to save and stop: whoever takes long looks here at every step."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TextIO

_asked = threading.Event()


class PausedError(BaseException):
    """Told to stop; not an Exception, so that nothing takes it for a unit's failure."""


def ask() -> None:
    """From now on, whoever checks stops."""
    _asked.set()


def asked() -> bool:
    """Was this process asked to save and stop?"""
    return _asked.is_set()


def check() -> None:
    """Stop here if asked to.

    :raises PausedError: nothing is lost that was saved before this line.
    """
    if _asked.is_set():
        raise PausedError


def own_input() -> TextIO:
    """Standard input, taken away from everybody else: no thread then waits in ``sys.stdin``, whose lock others want."""
    taken = os.fdopen(os.dup(0), encoding="utf-8")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    return taken
