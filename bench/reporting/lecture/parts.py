"""What is there of a part of the lecture: its suite's rows, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from bench import registry
from bench.planning.files import builtin
from bench.reporting.blocks import texts
from bench.reporting.columns import among, codes, latest, matching, varying
from bench.reporting.lecture.specs import Spec

Rows = Callable[[str], "pd.DataFrame | None"]  # a suite's rows; None where there are none yet


_PART = ("suite", "head", "against")


def rows_of(part: Mapping[str, Any], rows: Rows) -> tuple[pd.DataFrame | None, str]:
    """The rows of a part's suite, the first of several that has any; else why there are none."""
    why = "published numbers alone"
    for name in texts(part["suite"]) if "suite" in part else ():
        found = rows(name)
        if found is not None and len(found):
            return found, ""
        known = name in builtin()
        why = (
            f"no results of suite {name} yet: bench run {name}" if known else f"there is no suite {name} yet"
        )
    return None, unit_missing(part) or why


def unit_missing(part: Mapping[str, Any]) -> str:
    wanted = [("protocol", part["protocol"])] if "protocol" in part else []
    wanted += [("method", name) for name in part.get("methods", [])]
    for kind, name in wanted:
        if name not in registry.units(kind):
            return f"there is no {kind} {name} yet"
    return ""


def block_of(spec: Spec, part: Mapping[str, Any], frame: pd.DataFrame) -> dict[str, Any]:
    """A part as a [[table]] block."""
    block = {k: v for k, v in part.items() if k not in _PART}
    block |= {"name": spec.name, "title": spec.title}
    if block.get("rows") == "auto":
        where = dict(block.get("where", {})) | ({"protocol": part["protocol"]} if "protocol" in part else {})
        where |= {"label": part["labels"]} if "labels" in part else {}
        planned = {k: v for k, v in where.items() if k not in {"layer", "metric", "split", "step"}}
        chosen = latest(frame)
        chosen = _one_trial(chosen[matching(chosen, planned, spec.place)])
        block["rows"] = ["label", *varying(chosen, ("label", *texts(block.get("columns", "metric"))))]
    return block


def _one_trial(frame: pd.DataFrame) -> pd.DataFrame:
    """Of a search one trial, as the table will show one: what trials draw is not what tells rows apart."""
    trials = sorted({name for name in codes(frame, "setting:trial")[1] if name}, key=int)
    return frame[among(frame, "setting:trial", {"", trials[0]})] if trials else frame
