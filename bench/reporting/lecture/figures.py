"""The lecture's figures: plots of rows, sheets of the pictures that runs kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bench.records import BenchError
from bench.reporting import pictures, plots
from bench.reporting.columns import matching
from bench.reporting.lecture.parts import Rows, rows_of, unit_missing
from bench.reporting.lecture.specs import Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURE = ("lecture", "note", "own", "suite", "absent", "methods")


@dataclass(frozen=True)
class Drawn:
    """A figure as far as it can be made: the file, or why there is none."""

    spec: Spec
    path: Path | None
    missing: str = ""


def figure(spec: Spec, rows: Rows, runs: Path, path: Path) -> Drawn:
    """The figure as ``path``, or why it cannot be drawn; pictures whose runs are gone stay as they are."""
    made, why = _figure(spec, rows, runs)
    if made is not None:
        return Drawn(spec, plots.save(made, path))
    if spec.parts[0]["kind"] == "pictures" and path.exists():
        return Drawn(spec, path)
    return Drawn(spec, None, why)


def image(spec: Spec, rows: Rows, runs: Path) -> tuple[bytes, str]:
    """The figure as the bytes of an SVG (of a PNG where it is a sheet of pictures), or why there is none."""
    made, why = _figure(spec, rows, runs)
    form = "png" if spec.parts[0]["kind"] == "pictures" else "svg"
    return (plots.bytes_of(made, form) if made is not None else b""), why


def _figure(spec: Spec, rows: Rows, runs: Path) -> tuple[Figure | None, str]:
    (block,) = spec.parts
    frame, why = (None, str(block["absent"])) if "absent" in block else rows_of(block, rows)
    if frame is None:
        return None, why
    try:
        if block["kind"] == "pictures":
            return _sheet(spec, frame, runs)
        if block["kind"] == "learning" and not pd.to_numeric(frame["step"], errors="coerce").notna().any():
            return None, "no row has a training step: the suite keeps no snapshots"
        asked = {k: v for k, v in block.items() if k not in _FIGURE}
        asked["title"] = f"{spec.title} (here: {spec.note})"
        with plots.style():
            return plots.figure(frame, asked, "lecture.toml: figure"), ""
    except BenchError as error:
        return None, str(error).removeprefix(f"{spec.place}: ")


def _sheet(spec: Spec, frame: pd.DataFrame, runs: Path) -> tuple[Figure | None, str]:
    (block,) = spec.parts
    wanted = {"label": block.get("labels"), "method": block.get("methods")}
    wanted = {column: names_ for column, names_ in wanted.items() if names_}
    chosen = frame[matching(frame, wanted, spec.place)] if wanted else frame
    found = pictures.kept(chosen, runs, block.get("protocol", ""))
    if found:
        title, caption = f"{spec.title} (here: {spec.note})", f"In the lecture: {spec.lecture}."
        return pictures.sheet(found, title, caption, block.get("bands", ())), ""
    what = f"protocol {block['protocol']}" if "protocol" in block else "its methods"
    return None, unit_missing(block) or f"no run in {runs} kept pictures of {what}"
