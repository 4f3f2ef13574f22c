"""Linear support vector machines on one layer's frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from bench.contracts import BenchError, Encoder, Evaluation, Measurement, Model, Run, Samples, Tap, Target
from bench.features import in_memory
from bench.metrics import mean_ap
from protocols._features import column, features
from protocols._scores import labeled

Floats: TypeAlias = "NDArray[np.float32]"
Integers: TypeAlias = "NDArray[np.int64]"
Measure: TypeAlias = "Callable[[Any, Floats, Integers], float]"
Weights: TypeAlias = "dict[int, int] | None"

POSITIVES_TWICE: Weights = {1: 2, -1: 1}

IN_MEMORY = (
    "liblinear reads all images at once: write a smaller size, fewer labels, or a larger BENCH_MEMORY_GB"
)

# The reference's grid: decades from 1e-7 to 1e2, and powers of one half.
COSTS = tuple(sorted({10.0**e for e in range(-7, 3)} | {0.5**n for n in range(4, 20)}))


@dataclass(frozen=True)
class LinearSvm(Evaluation):
    """One SVM a class against the rest, on rows of unit length; the cost by cross-validation in training.

    Images with several labels have an SVM a class that counts the positives twice, chosen and judged by
    the average precision (of the monotone precision), one cost a class; others have one cost for all.

    :param costs: candidates; of equal ones the smallest wins.
    """

    paper: ClassVar[str] = (
        "Goyal, Mahajan, Gupta & Misra, Scaling and Benchmarking Self-Supervised Visual Representation "
        "Learning, ICCV 2019"
    )

    layer: str = "output"
    pooling: str = "none"
    size: int = 0
    side: int = 0
    costs: tuple[float, ...] = COSTS
    folds: int = 3
    max_iter: int = 2000

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        return (Tap(self.layer, self.pooling, self.size, self.side),)

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        judge = self._classes if target.train.labels is not None else self._multilabel
        for metric, value, split in judge(model, target, run):
            yield Measurement(metric, value, column(self.layer), split)

    def _rows(self, model: Model, samples: Samples, run: Run) -> Floats:
        """Features (N, d) of unit length."""
        (tap,) = self.taps(model.encoder)
        x: Floats = in_memory(features(model, samples, [tap], run)[tap], IN_MEMORY).numpy()
        norms: Floats = np.linalg.norm(x, axis=1, keepdims=True)
        return np.asarray(x / (norms + 1e-5), np.float32)

    # ---- one class an image ----

    def _classes(self, model: Model, target: Target, run: Run) -> Iterator[tuple[str, float, str]]:
        x, y = self._labeled(model, target.train, run)
        seed = _seed(run)
        cost = self._choose(x, y, seed, _top1, None)
        yield "cost", cost, "train"
        machine = self._fit(x, y, cost, seed, None)
        for split, samples in (("test", target.test), ("validation", target.validation)):
            if len(samples):
                yield "top1", 100 * _top1(machine, *self._labeled(model, samples, run)), split

    def _labeled(self, model: Model, samples: Samples, run: Run) -> tuple[Floats, Integers]:
        rows, labels = labeled(samples)
        return self._rows(model, samples, run)[rows.numpy()], labels.numpy()

    # ---- several labels an image ----

    def _multilabel(self, model: Model, target: Target, run: Run) -> Iterator[tuple[str, float, str]]:
        x, seed = self._rows(model, target.train, run), _seed(run)
        machines = [self._binary(x, y, seed) for y in _multilabel(target.train).T]
        for split, samples in (("test", target.test), ("validation", target.validation)):
            if len(samples):
                part = self._rows(model, samples, run)
                scores = np.stack([m.decision_function(part) for m in machines], 1)
                yield "mAP", 100 * mean_ap(scores, _multilabel(samples), "ap_envelope"), split

    def _binary(self, x: Floats, labels: Integers, seed: int) -> Any:
        y = np.where(labels > 0, 1, -1)  # in training what is difficult counts as absent
        cost = self._choose(x, y, seed, _precision, POSITIVES_TWICE)
        return self._fit(x, y, cost, seed, POSITIVES_TWICE)

    # ---- shared ----

    def _choose(self, x: Floats, y: Integers, seed: int, measure: Measure, weights: Weights) -> float:
        """The cost that cross-validates best; the middle one where there are too few images to tell."""
        costs = sorted(self.costs)
        folds = self._folds(x, y, seed) if len(costs) > 1 else []
        if not folds:
            return costs[len(costs) // 2]
        found = [
            [measure(self._fit(x[a], y[a], cost, seed, weights), x[b], y[b]) for a, b in folds]
            for cost in costs
        ]
        return costs[int(np.argmax(np.nanmean(found, 1)))]

    def _folds(self, x: Floats, y: Integers, seed: int) -> list[tuple[Integers, Integers]]:
        """(train, held out) of each fold, two classes at least in each; empty where that cannot be."""
        counts = np.sort(np.unique(y, return_counts=True)[1])
        count = min(self.folds, int(counts[-2:].min()))
        if count <= 1:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # some class has fewer images than there are folds
            return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(x, y))

    def _fit(self, x: Floats, y: Integers, cost: float, seed: int, weights: Weights) -> Any:
        machine = LinearSVC(
            C=cost, class_weight=weights, dual=True, tol=1e-4, max_iter=self.max_iter, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # the reference's limit is part of the protocol
            return machine.fit(x, y)


def _seed(run: Run) -> int:
    return int(run.generator("linear_svm").initial_seed()) % 2**31


def _multilabel(samples: Samples) -> Integers:
    """(N, C) of +1, -1 and 0."""
    if samples.multilabel is None:
        raise BenchError(f"{samples.name} has neither class labels nor several labels an image")
    table: Integers = samples.multilabel.cpu().numpy().astype(np.int64)
    return table


def _top1(machine: Any, x: Floats, y: Integers) -> float:
    return float((machine.predict(x) == y).mean())


def _precision(machine: Any, x: Floats, y: Integers) -> float:
    return mean_ap(machine.decision_function(x)[:, None], y[:, None], "ap_envelope")
