"""The pictures that runs kept, and sheets of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bench.reporting.columns import combine

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def kept(frame: pd.DataFrame, runs: Path, protocol: str = "", each: int = 3) -> dict[str, list[Path]]:
    """Pictures by label, of its first training that has any: the protocol's, or the method's own."""
    columns = ("label", "training", "cell", "protocol")
    found: dict[str, list[Path]] = {}
    for label, training, cell, judged_by in combine(frame, columns)[1]:
        if not training or (protocol and judged_by != protocol) or found.get(label):
            continue
        folder = runs / training
        files = folder.glob(f"work/{cell}/*/pictures/*.png") if protocol else folder.glob("pictures/*.png")
        found[label] = sorted(files)[:each]
    return {label: files for label, files in found.items() if files}


def sheet(found: dict[str, list[Path]], title: str, caption: str, bands: Sequence[str] = ()) -> Figure:
    """One row a label, its pictures side by side, pixels as they are.

    :param bands: what each of the equally high bands of a picture shows, from top to bottom.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    images = {label: [imread(file) for file in files] for label, files in found.items()}
    width = max(len(row) for row in images.values())
    tall = [max(i.shape[0] / i.shape[1] for i in row) * 7.0 / width for row in images.values()]
    made = Figure(figsize=(7.4, sum(tall) + 0.42 * len(tall) + 0.6), layout="constrained")
    FigureCanvasAgg(made)
    grid = made.subplots(len(images), width, squeeze=False, height_ratios=tall)
    for line, (label, files) in zip(grid, found.items(), strict=True):
        for axes, file, image in zip(line, files, images[label], strict=False):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(f"{label}: {file.stem.replace('_', ' ')}", fontsize=8, loc="left")
        for axes in line:
            axes.axis("off")
        for axes, image in zip(line[: bool(bands)], images[label], strict=False):
            axes.axis("on")
            axes.set_xticks([])
            height = image.shape[0] / len(bands)
            axes.set_yticks([(place + 0.5) * height for place in range(len(bands))], bands, fontsize=7)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
    made.suptitle(textwrap.fill(title, 80), fontsize=11, x=0.01, ha="left")
    made.supxlabel(textwrap.fill(caption, 110), fontsize=7.5, color="0.25", x=0.01, ha="left")
    return made
