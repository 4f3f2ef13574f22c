"""A map of the features in two dimensions: t-SNE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

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
)
from bench.metrics import topk_accuracy
from protocols._features import column, features
from protocols._pictures import OKABE_ITO
from protocols._scores import labeled

Floats: TypeAlias = "NDArray[np.float32]"

MARKERS = "os^Dv*PX"  # with as many colors, 64 classes are told apart


@dataclass(frozen=True)
class Embedding(Evaluation):
    """t-SNE of training and test images together; the picture shows them by class.

    A map may show what is not there, so two numbers stand beside it: ``trustworthiness`` (Venna & Kaski, 2006;
    1: all neighbors on the map are neighbors in the features) and ``top1_map``, the accuracy (%) of test images
    by their ``neighbors`` nearest training images on the map.

    :param images: at most so many, half of them of the test set, drawn by the run's seed.
    :param perplexity: no more than a third of the images.
    """

    paper: ClassVar[str] = "van der Maaten & Hinton, Visualizing Data using t-SNE, JMLR 2008"

    images: int = 2000
    perplexity: float = 30.0
    iterations: int = 1000
    neighbors: int = 5
    layer: str = "output"
    pooling: str = "none"
    size: int = 0
    side: int = 0
    picture_side: int = 600

    def __post_init__(self) -> None:
        if self.iterations < 250:
            raise BenchError(f"embedding.iterations is {self.iterations}; write 250 or more")

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        return (Tap(self.layer, self.pooling, self.size, self.side),)

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement | Picture]:
        parts = [self._some(model, part, run) for part in (target.train, target.test)]
        x = np.concatenate([x for x, _ in parts])
        places = self._map(x, int(run.generator("t-SNE").initial_seed()) % 2**31)
        cut = len(parts[0][0])
        labels = np.concatenate([y for _, y in parts])
        count = min(self.neighbors, (len(x) - 1) // 2)
        yield Measurement(
            "trustworthiness", float(trustworthiness(x, places, n_neighbors=count)), column(self.layer)
        )
        judge = KNeighborsClassifier(min(self.neighbors, cut)).fit(places[:cut], labels[:cut])
        votes = np.zeros((len(x) - cut, target.classes))
        votes[:, judge.classes_] = judge.predict_proba(places[cut:])
        yield Measurement("top1_map", 100.0 * topk_accuracy(votes, labels[cut:]), column(self.layer))
        yield Picture("embedding", self._picture(places, labels))

    def _some(self, model: Model, samples: Samples, run: Run) -> tuple[Floats, NDArray[np.int64]]:
        """Features (n, d) and classes (n,) of half of ``images`` that have one."""
        (tap,) = self.taps(model.encoder)
        rows, labels = labeled(samples)
        order = torch.randperm(len(rows), generator=run.generator("embedding"))
        chosen = order[: self.images // 2].sort().values
        found = features(model, samples, [tap], run)[tap][rows[chosen]]
        return found.numpy(), labels[chosen].numpy()

    def _map(self, x: Floats, seed: int) -> Floats:
        """Places (N, 2)."""
        engine = TSNE(
            perplexity=min(self.perplexity, (len(x) - 1) / 3),
            max_iter=self.iterations,
            init="pca" if x.shape[1] > 1 else "random",
            random_state=seed,
        )
        places: Floats = engine.fit_transform(x)
        return places

    def _picture(self, places: Floats, labels: NDArray[np.int64]) -> Tensor:
        """A scatter plot with a legend of the classes, (3, H, W) in [0, 1]."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure: Any = Figure(figsize=(self.picture_side / 100 * 1.25, self.picture_side / 100), dpi=100)
        canvas: Any = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set(xticks=[], yticks=[])
        for label in np.unique(labels).tolist():
            color, marker = OKABE_ITO[label % len(OKABE_ITO)], MARKERS[label // len(OKABE_ITO) % len(MARKERS)]
            here = places[labels == label]
            axes.scatter(
                here[:, 0], here[:, 1], s=16, color=[color], marker=marker, linewidths=0, label=str(label)
            )
        axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), fontsize=10, frameon=False)
        figure.tight_layout()
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
