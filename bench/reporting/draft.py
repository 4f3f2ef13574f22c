"""How figures are drawn: colors and markers that color-blind readers tell apart, labels beside their lines."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.reporting import statistics
from bench.reporting.columns import number
from bench.reporting.wording import decimals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette without its yellow, which is hard to see on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_CROWD = 8  # more lines than this make their bands fainter
_WIDE = 30  # numbers that span this factor stand on a log axis
_DASHES = ("-", "--", ":", "-.")


def look(i: int) -> tuple[str, str, str]:
    """Color, marker and dash of the i-th line: no two of the first 28 are alike."""
    return _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)], _DASHES[i // len(_COLORS) % len(_DASHES)]


def bare(axes: Axes, *, horizontal: bool) -> None:
    """No box; light lines to read values by."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis="y" if horizontal else "x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def step_scale(logs: list[float]) -> float:
    """A distance in proportion to those between the numbers of a log axis."""
    span = max(logs) - min(logs)
    return max(span / max(1, len(logs) - 1) * 0.7, 0.3)


@dataclass(frozen=True)
class Label:
    """A line's name, where the line ends, and how it is drawn."""

    text: str
    x: float
    y: float
    color: str
    marker: str


def direct_labels(axes: Axes, labels: list[Label]) -> None:
    """Each line's name and marker right of its end, spread so that none covers another, with a thin leader."""
    if not labels:
        return
    axes.margins(y=0.08)
    axes.autoscale_view()
    box = axes.get_window_extent()
    spacing = 12.5 * axes.figure.dpi / 72 / box.height  # a line of 9 points, in fractions of the axes
    ends = [axes.transAxes.inverted().transform(axes.transData.transform((one.x, one.y))) for one in labels]
    order = sorted(range(len(labels)), key=lambda i: float(ends[i][1]))
    right = axes.get_xlim()
    for i, at in zip(order, spread([float(ends[i][1]) for i in order], spacing), strict=True):
        one, end = labels[i], ends[i]
        style: dict[str, Any] = {"color": one.color, "transform": axes.transAxes, "clip_on": False}
        axes.plot([end[0] + 0.012, 1.03], [end[1], at], linewidth=0.6, alpha=0.7, **style)
        axes.plot([1.04], [at], marker=one.marker, ms=4, **style)
        axes.text(1.055, at, one.text, va="center", fontsize=9, **style)
    axes.set_xlim(right)


def spread(wanted: list[float], spacing: float) -> list[float]:
    """Ascending places in [0, 1] at least ``spacing`` apart, as near as possible to those wanted."""
    groups: list[tuple[float, int]] = []  # (center, members): neighbors that touch move as one
    for place in wanted:
        center, count = place, 1
        while (
            groups and center - spacing * (count - 1) / 2 < groups[-1][0] + spacing * (groups[-1][1] + 1) / 2
        ):
            before, members = groups.pop()
            center = (before * members + center * count) / (members + count)
            count += members
        groups.append((center, count))
    free = [center + spacing * (i - (count - 1) / 2) for center, count in groups for i in range(count)]
    last = len(free) - 1
    return [max(min(at, 1 - spacing * (last - i)), spacing * i) for i, at in enumerate(free)]


@dataclass(frozen=True)
class Point:
    """One x of a line: its text and the mean with its interval."""

    x: str
    y: statistics.Interval
    runs: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One label's points, or why it has none."""

    label: str
    points: tuple[Point, ...]
    problem: str = ""


# ---- lines ---------------------------------------------------------------------------------------


def lines(axes: Axes, curves: list[Curve], order: list[str], kind: str) -> None:
    """One line a label, its interval as a band, its name at its end."""
    places = _places(axes, order, kind)
    drawn = [c for c in curves if c.points]
    connected = kind != "vary" or all(number(v) is not None for v in order)
    ends = []
    for i, curve in enumerate(drawn):
        color, marker, dash = look(i)
        shift = 0.0 if connected else (i - (len(drawn) - 1) / 2) * 0.12
        xs = [places[p.x] + shift for p in curve.points]
        ys = [p.y.mean for p in curve.points]
        every = max(1, len(xs) // 12)
        axes.plot(
            xs, ys, color=color, marker=marker, linestyle=dash if connected else "none", markevery=every, ms=5
        )
        _band(axes, xs, curve, color, 0.18 if len(drawn) <= _CROWD else 0.08, connected=connected)
        ends.append(Label(curve.label, xs[-1], ys[-1], color, marker))
    if not connected:
        axes.set_xlim(-0.5, len(order) - 0.5)
    if len(drawn) > _CROWD:  # a wide interval of few runs must not press so many lines together
        means = [p.y.mean for curve in drawn for p in curve.points]
        margin = 0.06 * (max(means) - min(means)) or 1.0
        axes.set_ylim(min(means) - margin, max(means) + margin)
    direct_labels(axes, ends)


def _band(axes: Axes, xs: list[float], curve: Curve, color: str, alpha: float, *, connected: bool) -> None:
    """The 95% interval; where a point has one run only there is none."""
    every = [(x, p.y) for x, p in zip(xs, curve.points, strict=True)]
    known = [(x, y.mean, y.low, y.high) for x, y in every if y.low is not None and y.high is not None]
    if connected and len(known) == len(xs) > 1:
        low, high = [k[2] for k in known], [k[3] for k in known]
        axes.fill_between(xs, low, high, color=color, alpha=alpha, linewidth=0)
        return
    for x, mean, bottom, top in known:
        error = [[mean - bottom], [top - mean]]
        axes.errorbar([x], [mean], yerr=error, color=color, capsize=3, linestyle="none", linewidth=1.2)


def _places(axes: Axes, order: list[str], kind: str) -> dict[str, float]:
    """Where each x stands: by size where all are numbers, else side by side."""
    sizes = {v: number(v) for v in order}
    if kind == "layers" or not order or any(s is None for s in sizes.values()):
        places = {v: float(i) for i, v in enumerate(order)}
        axes.set_xticks(list(places.values()), _tick_names(order))
        return places
    finite = sorted(s for s in sizes.values() if s is not None and math.isfinite(s))
    if kind == "learning" or ("all" not in sizes and not _wide(finite, kind)):
        gaps = [b - a for a, b in itertools.pairwise(finite)]
        if kind != "learning" and gaps and min(gaps) > 0.06 * sum(gaps):
            axes.set_xticks(finite, _tick_names(order))
        return {v: s for v, s in sizes.items() if s is not None}
    return _log_places(axes, sizes, finite)


def _wide(sizes: list[float], kind: str) -> bool:
    return kind == "labels" or (sizes[0] > 0 and sizes[-1] / sizes[0] >= _WIDE)


def _log_places(axes: Axes, sizes: Mapping[str, float | None], finite: list[float]) -> dict[str, float]:
    """A log axis by hand, on which 0 stands left of all numbers and "all" right of them."""
    logs = [math.log10(s) for s in finite if s > 0] or [0.0]
    gap = step_scale(logs)
    places = {}
    for name, size in sizes.items():
        if size is None or math.isinf(size):
            places[name] = max(logs) + gap
        else:
            places[name] = math.log10(size) if size > 0 else min(logs) - gap
    axes.set_xticks(list(places.values()), _tick_names(list(places)))
    return places


def _tick_names(names: list[str]) -> list[str]:
    width = 12 if len(names) <= _CROWD else 8
    return [textwrap.fill(n or "features", width, break_on_hyphens=True) for n in names]


# ---- bars ----------------------------------------------------------------------------------------


def bars(axes: Axes, curves: list[Curve]) -> None:
    """One bar a label, its runs as dots; where there is no number, the reason."""
    names = [c.label for c in curves]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    highest = max((p.y.high or p.y.mean for c in curves for p in c.points), default=1.0)
    axes.set_xlim(min([0.0, *(p.y.mean for c in curves for p in c.points)]), highest * 1.18 or 1.0)
    for i, curve in enumerate(curves):
        if not curve.points:
            axes.text(
                0.01,
                i,
                textwrap.shorten(curve.problem, 70),
                transform=axes.get_yaxis_transform(),
                va="center",
            )
            continue
        point = curve.points[0]
        y = point.y
        axes.barh(i, y.mean, height=0.62, color=look(0)[0], alpha=0.75)
        axes.plot(point.runs, [i] * len(point.runs), "k.", ms=4, alpha=0.6)
        end = max(y.high or y.mean, *point.runs, y.mean)
        if y.low is not None and y.high is not None:
            axes.errorbar(
                y.mean, i, xerr=[[y.mean - y.low], [y.high - y.mean]], color="black", capsize=3, linewidth=1
            )
        digits = decimals(highest)
        axes.annotate(f"{y.mean:.{digits}f}", (end, i), (6, 0), textcoords="offset points", va="center")
