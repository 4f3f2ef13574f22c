"""Which forward passes move batch norm's running statistics.

The released codes of VAT and MixMatch let the labeled pass (or the first one) alone move them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def unrecorded(*modules: nn.Module) -> Iterator[None]:
    """Inside, batch norm normalizes by the batch as ever, and its running statistics stay as they are."""
    norms = [m for one in modules for m in one.modules() if getattr(m, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False  # type: ignore[assignment]  # torch's stub: a module or a tensor
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True  # type: ignore[assignment]
