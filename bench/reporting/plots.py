"""Figures from rows: probe curves by layer, learning curves, errors by number of labels, ablations, bars.

A ``[[figure]]`` block says what is drawn; see README for the grammar by example. Matplotlib is loaded
only when a figure is drawn, through its Agg canvas: no window, no global state, the same bytes again.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.artifacts import written
from bench.planning.suite import Suite
from bench.records import BenchError
from bench.registry import suggest
from bench.reporting import statistics
from bench.reporting.blocks import SELECTION_KEYS, checked, query
from bench.reporting.columns import codes
from bench.reporting.draft import Curve, Point, bare, bars, lines, look
from bench.reporting.selection import Selection, select
from bench.reporting.wording import data_sentences

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "layers": "probe curves, one line a label",
    "learning": "a metric against the training step",
    "labels": "a metric against the number of labels, log x",
    "vary": "a metric against any column or setting",
    "bars": "one bar a label",
}
_KEYS: dict[str, Any] = {**SELECTION_KEYS, "kind": str, "x": str, "x_label": str}
_X = {"layers": "layer", "learning": "step"}
_NAMES = {"labels": "labels", "target_labels": "labels of the target", "step": "optimizer step"}
_SUFFIXES = {".png", ".svg", ".pdf"}


def of_suite(
    suite: Suite, rows: pd.DataFrame, folder: Path, name: str | None = None, form: str = "png"
) -> list[Path]:
    """Draws the figures that a suite asks for (or the one of that name) as ``<suite>-<name>.<form>``."""
    place = f"{suite.path}: figure"
    known = [str(b.get("name", "")) for b in suite.figures]
    if name is not None and name not in known:
        raise BenchError(f"{place}: there is no figure {name!r}{suggest(name, known)}")
    blocks = [b for b in suite.figures if name in {None, b.get("name")}]
    return [draw(rows, b, folder / f"{suite.name}-{b.get('name', '')}.{form}", place) for b in blocks]


def draw(rows: pd.DataFrame, block: Mapping[str, Any], path: Path, where: str = "figure") -> Path:
    """Writes the figure of one [[figure]] block; the suffix (.png, .svg, .pdf) says in which format."""
    if path.suffix not in _SUFFIXES:
        raise BenchError(f"{path}: a figure is written as .png, .svg or .pdf, not {path.suffix!r}")
    with style():
        return save(figure(rows, block, where), path)


def save(made: Figure, path: Path) -> Path:
    """Writes a figure, whole or not at all, the same bytes for the same figure."""
    with style(), written(path) as temporary:
        made.savefig(temporary, metadata=_META[path.suffix], **_shape(path.suffix))
    return path


def image(rows: pd.DataFrame, block: Mapping[str, Any], where: str = "figure", form: str = "svg") -> bytes:
    """The figure of one [[figure]] block as the bytes of a file."""
    with style():
        return bytes_of(figure(rows, block, where), form)


def bytes_of(made: Figure, form: str = "svg") -> bytes:
    """A figure as the bytes of a file."""
    buffer = io.BytesIO()
    with style():
        made.savefig(buffer, metadata=_META[f".{form}"], **_shape(f".{form}"))
    return buffer.getvalue()


def losses(curves: Mapping[str, Path]) -> bytes:
    """The logged losses of one training a label, a panel each, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, few = 3, 5
    height = -(-len(curves) // width)
    made = Figure(figsize=(3.1 * min(width, len(curves)), 2.1 * height), layout="constrained")
    FigureCanvasAgg(made)
    with style():
        grid = made.subplots(height, min(width, len(curves)), squeeze=False)
        for axes in grid.flat[len(curves) :]:
            axes.axis("off")
        for axes, (label, path) in zip(grid.flat, curves.items(), strict=False):
            axes.set_title(label, loc="left", fontsize=9)
            try:
                found = pd.read_parquet(path)
            except (OSError, ValueError):
                axes.text(0.5, 0.5, "curves.parquet is damaged", ha="center", transform=axes.transAxes)
                continue
            for i, name in enumerate([c for c in found.columns if c != "step"][:few]):
                color, _, dash = look(i)
                axes.plot(found["step"], found[name], color=color, linestyle=dash, linewidth=1, label=name)
            axes.legend(fontsize=6.5, frameon=False)
            axes.tick_params(labelsize=7)
            bare(axes, horizontal=True)
        return bytes_of(made, "png")


# Without a date and with fixed ids the same rows give the same bytes.
_META: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
    ".png": {"Software": None},
}


def style() -> AbstractContextManager[None]:
    """How all figures are set, and that the same rows give the same bytes."""
    import matplotlib as mpl

    return mpl.rc_context({"svg.hashsalt": "bench", "font.size": 9, "pdf.fonttype": 42})


def _shape(suffix: str) -> dict[str, Any]:
    return {"format": suffix[1:], "bbox_inches": "tight", "pad_inches": 0.1, "dpi": 150}


def figure(rows: pd.DataFrame, block: Mapping[str, Any], where: str = "figure") -> Figure:
    """The figure of one [[figure]] block."""
    place = checked(block, _KEYS, where)
    kind = block.get("kind", "")
    if kind not in KINDS:
        raise BenchError(f"{place}: kind cannot be {kind!r}{suggest(kind, KINDS)}")
    if "metric" not in block:
        raise BenchError(f"{place}: metric is missing")
    x = _axis(rows, block, kind, place)
    columns = ["metric"] if kind == "bars" else [x]
    found = select(rows, query(block, place, ["label"], columns))
    curves = [_curve(found, row[0]) for row in found.rows]
    height = max(3.4, 1.0 + 0.24 * len(curves)) if kind != "bars" else 0.9 + 0.36 * len(curves)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(6.4, height))
    FigureCanvasAgg(made)
    axes = made.add_subplot()
    if kind == "bars":
        if len(found.columns) > 1:
            several = ", ".join(str(key[0]) for key in found.columns)
            raise BenchError(f"{place}: bars are of one metric, not of {several}: draw a figure of each")
        bars(axes, curves)
        axes.set_xlabel(_metric(found))
    else:
        lines(axes, curves, [c[0] for c in found.columns], kind)
        axes.set_xlabel(block.get("x_label") or _NAMES.get(x, x.rpartition(":")[2]))
        if kind == "learning":
            axes.locator_params(axis="x", integer=True)
        axes.set_ylabel(_metric(found))
    bare(axes, horizontal=kind != "bars")
    axes.set_title(textwrap.fill(block.get("title") or block["name"], 76), loc="left", fontsize=11)
    _caption(made, axes, found, curves, drawn_lines=kind != "bars")
    return made


def _axis(rows: pd.DataFrame, block: Mapping[str, Any], kind: str, place: str) -> str:
    if kind == "vary" and "x" not in block:
        raise BenchError(f'{place}: kind "vary" needs x, as in x = "setting:rotations"')
    if kind == "labels":
        varies = len(set(codes(rows, "labels")[1]) - {"", "0"}) > 1
        return str(block.get("x", "labels" if varies else "target_labels"))
    return str(_X.get(kind, block.get("x", "label")))


def _metric(found: Selection) -> str:
    metric = "/".join(found.query.metrics)
    way = "lower" if found.query.lower_is_better(metric) else "higher"
    return f"{metric} ({found.query.split}, {way} is better)"


def _curve(found: Selection, label: str) -> Curve:
    points = []
    for column in found.columns:
        runs = found.runs.get(((label,), column), {})
        if runs:
            values = tuple(runs.values())
            points.append(Point(column[0], statistics.interval(values), values))
    reasons = {
        why for (row, _), runs in found.planned.items() if row == (label,) for why in runs.values() if why
    }
    return Curve(label, tuple(points), "" if points else "; ".join(sorted(reasons)) or "no such number")


# ---- words ---------------------------------------------------------------------------------------


def _caption(made: Figure, axes: Axes, found: Selection, curves: list[Curve], *, drawn_lines: bool) -> None:
    """Below the axes: what the band is, on what data, what is missing."""
    sentences = [*_interval_words(curves), *data_sentences(found)]
    missing = [f"{c.label} ({c.problem})" for c in curves if not c.points]
    if missing and drawn_lines:
        sentences.append(f"Not drawn: {'; '.join(missing)}.")
    told = [line for s in sentences for line in textwrap.wrap(s, 104)]
    made.canvas.draw()
    box = axes.get_tightbbox()
    low = (box.y0 if box is not None else 0.0) / made.bbox.height
    made.text(axes.get_position().x0, low - 0.03, "\n".join(told), fontsize=7.5, color="0.25", va="top")


def _interval_words(curves: list[Curve]) -> list[str]:
    drawn = [c for c in curves if c.points]
    single = [c.label for c in drawn if all(p.y.n == 1 for p in c.points)]
    counts = sorted({p.y.n for c in drawn for p in c.points if p.y.n > 1})
    if not counts:
        return ["1 seed, no interval."] if drawn else []
    runs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    kind = "BCa bootstrap" if counts[0] >= statistics.BCA_RUNS else "Student-t"
    words = [f"Mean and {kind} 95% interval over {runs} runs (seed and label split)."]
    return [*words, f"1 seed, no interval: {', '.join(single)}."] if single else words
