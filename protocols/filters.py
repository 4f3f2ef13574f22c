"""What units respond to: the images that most activate them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.augment import unit as unit_pixels
from bench.contracts import (
    BenchError,
    Encoder,
    Evaluation,
    Measurement,
    Model,
    Picture,
    Run,
    Samples,
    Tap,
    Target,
    TargetNeeds,
)
from bench.features import Features, blocks, chosen, moments
from protocols._features import column, features, frozen
from protocols._pictures import grid, thumbnails
from protocols._scores import labeled
from protocols._views import center_view


@dataclass(frozen=True)
class Filters(Evaluation):
    """Each unit's images of highest activation, anywhere in the map; pictures show some of the units.

    ``purity``: percent of a unit's top test images that are of the class most common among them, the mean
    over the units that respond. ``consistency``: percent that are of the class most common among the unit's
    top *training* images. ``dead``: percent of units that respond to all test images alike.

    :param layers: the taps; () is all of the encoder's.
    :param images: how many of highest activation count.
    :param units: shown in the picture, a row each; chosen by ``choice``: ``variance`` over the test images, the
        highest first, or ``seed``.
    :param patch: 0 shows whole images, else the ``patch`` pixels a side around the place of the highest
        activation, which needs a pass over the images that are shown.
    """

    paper: ClassVar[str] = (
        "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014; "
        "Caron, Bojanowski, Joulin & Douze, Deep Clustering, ECCV 2018 (figure 4)"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(spatial=True)

    layers: tuple[str, ...] = ()
    images: int = 9
    units: int = 8
    choice: str = "variance"
    patch: int = 0
    side: int = 0
    picture_side: int = 48

    def __post_init__(self) -> None:
        if self.choice not in {"variance", "seed"}:
            raise BenchError(f"filters.choice is {self.choice!r}; write variance or seed")

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        """Each unit's highest activation."""
        return [Tap(layer, "adaptive_max", 1, self.side) for layer in self.layers or encoder.layers]

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement | Picture]:
        taps = self.taps(model.encoder)
        parts = {"train": target.train, "test": target.test}
        found = {split: features(model, samples, taps, run) for split, samples in parts.items()}
        for tap in taps:
            train, test = (_Responses(found[s][tap], parts[s], self.images) for s in ("train", "test"))
            for metric, value in scores(train.classes, test.classes, test.alive, target.classes).items():
                yield Measurement(metric, value, column(tap.layer))
            if self.units:
                yield Picture(
                    f"filters {tap.layer}", self._picture(model.encoder, tap, test, target.test, run)
                )

    def _picture(self, encoder: Encoder, tap: Tap, test: _Responses, samples: Samples, run: Run) -> Tensor:
        """A row a unit, its image of highest activation first."""
        units = self._chosen(test.values, run)
        rows = test.rows[test.top[:, units].T]
        if self.patch:
            tiles = self._patches(encoder, tap, samples, rows, units, run)
        else:
            tiles = thumbnails(samples.images, rows.flatten(), self.picture_side)
        return grid(tiles, rows.shape[1])

    def _chosen(self, values: Features, run: Run) -> Tensor:
        """Which units (at most ``units``) are shown, of activations (N, C)."""
        if self.choice == "seed":
            return torch.randperm(values.shape[1], generator=run.generator("filters"))[: self.units]
        spread = values.double().var(0) if isinstance(values, Tensor) else moments(values)[1]
        return spread.argsort(dim=0, descending=True, stable=True)[: self.units]

    def _patches(
        self, encoder: Encoder, tap: Tap, samples: Samples, rows: Tensor, units: Tensor, run: Run
    ) -> Tensor:
        """Squares around each unit's place of highest activation, (units * images, 3, patch, patch)."""
        tiles = []
        with frozen(encoder):
            for unit, line in zip(units.tolist(), rows, strict=True):
                (view,) = next(samples.images.views([line], [center_view(self.side)], 0, 0))
                with run.autocast():
                    maps = encoder.activations(view, [tap.layer])[tap.layer][:, unit].float().cpu()
                tiles.append(around(unit_pixels(view).float().cpu(), maps, self.patch))
        return torch.cat(tiles)


class _Responses:
    """The labeled images' highest activations of each unit (N, C), and which images are on top."""

    def __init__(self, values: Features, samples: Samples, count: int) -> None:
        self.rows, labels = labeled(samples)
        self.values = chosen(values, self.rows)
        self.top, self.alive = highest(self.values, count)
        self.classes = labels[self.top]


def highest(values: Features, count: int) -> tuple[Tensor, Tensor]:
    """The places (k, C) of the highest in each column of (N, C), the first of equals first; which columns vary."""
    best, low = torch.empty(0, values.shape[1]), torch.full((values.shape[1],), torch.inf)
    top, first = best.long(), 0
    for block in blocks(values):
        rows = torch.arange(first, first + len(block))[:, None].expand(-1, block.shape[1])
        both, places = torch.cat([best, block]), torch.cat([top, rows])
        order = both.argsort(dim=0, descending=True, stable=True)[:count]
        best, top = both.gather(0, order), places.gather(0, order)
        low, first = torch.minimum(low, block.amin(0)), first + len(block)
    return top, best[0] > low


def scores(train: Tensor, test: Tensor, alive: Tensor, classes: int) -> Mapping[str, float]:
    """purity, consistency and dead in percent.

    :param train: classes (k, C) of the units' top training images; ``test``: of their top test images.
    :param alive: (C,), which units respond to test images differently.
    """
    dead = 100.0 * float((~alive).double().mean())
    if not alive.any():
        return {"purity": 0.0, "consistency": 0.0, "dead": dead}
    pure = common(test, classes)[1][alive] / len(test)
    same = common(train, classes)[0].gather(0, test).mean(0)[alive]
    return {"purity": 100.0 * float(pure.mean()), "consistency": 100.0 * float(same.mean()), "dead": dead}


def common(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """How surely each class is the most frequent in each column of (k, C), (classes, C), and how often it is there.

    Of several, each with the same chance.
    """
    counts = torch.zeros(classes, labels.shape[1], dtype=torch.float64)
    counts.scatter_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
    highest = counts.amax(0)
    most = (counts == highest).double()
    return most / most.sum(0), highest


def around(images: Tensor, maps: Tensor, patch: int) -> Tensor:
    """Squares (n, 3, patch, patch) of images (n, 3, H, W) around the peaks of maps (n, h, w), inside the image."""
    height, width = images.shape[2:]
    patch = min(patch, height, width)
    peak = maps.flatten(1).argmax(1)
    tiles = []
    for image, place in zip(images, peak.tolist(), strict=True):
        y, x = divmod(place, maps.shape[2])
        top = _start((y + 0.5) * height / maps.shape[1], patch, height)
        left = _start((x + 0.5) * width / maps.shape[2], patch, width)
        tiles.append(image[:, top : top + patch, left : left + patch])
    return torch.stack(tiles)


def _start(center: float, patch: int, length: int) -> int:
    return min(max(0, round(center - patch / 2)), length - patch)
