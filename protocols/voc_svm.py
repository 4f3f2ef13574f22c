"""A linear support vector machine a class on each layer's frozen features, with all labels or a few."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from bench.contracts import (
    BenchError,
    Encoder,
    Evaluation,
    Measurement,
    Model,
    Run,
    Samples,
    Tap,
    Target,
    TargetNeeds,
)
from bench.draws import seed_of
from bench.features import in_memory
from bench.metrics import ap_envelope, mean_ap
from protocols._features import column, features

Floats: TypeAlias = "NDArray[np.float32]"
Integers: TypeAlias = "NDArray[np.int64]"

IN_MEMORY = (
    "liblinear reads all images at once: write a smaller size, fewer labels, or a larger BENCH_MEMORY_GB"
)

# The reference's grid: decades from 1e-7 to 1e2, and powers of one half.
COSTS = tuple(sorted({10.0**e for e in range(-7, 3)} | {0.5**n for n in range(4, 20)}))


@dataclass(frozen=True)
class VocSvm(Evaluation):
    """One SVM a class on rows of unit length; mean average precision (%, of the monotone precision), per layer.

    The cost is chosen a class by cross-validation on the training rows. With k positives a class (``shots``),
    each with (C - 1) k negatives, several times drawn, the paper chooses one cost on the *test* set: that
    number is reported beside ours as ``mAP_K_oracle``. Where a class has too few positives to be folded, the
    middle cost is taken. In training what is difficult counts as absent; in judging it is left out.

    :param layers: the taps; () are all. ``pooling``, ``size``: how their maps are made smaller.
    :param side: of the image that is read, whole, its aspect ignored; ``whole`` false: the middle of one whose
        shorter side is ``side`` * 256 / 224. 0: the images as they are.
    :param costs: candidates; of equal ones the smallest wins. ``shot_costs``: the same with few labels.
    :param shots: positives a class; a number that some class does not have is left out.
    """

    paper: ClassVar[str] = (
        "Goyal, Mahajan, Gupta & Misra, Scaling and Benchmarking Self-Supervised Visual Representation "
        "Learning, ICCV 2019"
    )
    needs: ClassVar[TargetNeeds] = TargetNeeds(annotation="multilabel", spatial=True)

    layers: tuple[str, ...] = ()
    pooling: str = "dims_avg"
    size: int = 9600
    side: int = 227
    whole: bool = True
    costs: tuple[float, ...] = COSTS
    shot_costs: tuple[float, ...] = COSTS
    shots: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96)
    draws: int = 5
    folds: int = 3
    max_iter: int = 2000

    def taps(self, encoder: Encoder) -> Sequence[Tap]:
        square = self.side if self.whole else 0
        how = (self.pooling, self.size, self.side, square)
        return [Tap(layer, *how) for layer in self.layers or encoder.layers]

    def evaluate(self, model: Model, target: Target, run: Run) -> Iterator[Measurement]:
        seed = int(run.generator("voc_svm").initial_seed()) % 2**31
        splits = {name: s for name, s in (("test", target.test), ("validation", target.validation)) if len(s)}
        for tap in self.taps(model.encoder):
            rows = {name: _rows(model, s, tap, run) for name, s in {"train": target.train, **splits}.items()}
            truth = {name: _presence(s) for name, s in {"train": target.train, **splits}.items()}
            layer = column(tap.layer)
            found = [_Class(self, rows["train"], y, seed) for y in truth["train"].T]
            for name in splits:
                scores = np.stack([one.scores(one.chosen, rows[name]) for one in found], 1)
                yield Measurement("mAP", 100 * mean_ap(scores, truth[name], "ap_envelope"), layer, name)
            for k in self.shots:
                if (truth["train"] > 0).sum(0).min() >= k:
                    yield from self._few(k, rows, truth, layer, seed)

    def _few(
        self, k: int, rows: dict[str, Floats], truth: dict[str, Integers], layer: str, seed: int
    ) -> Iterator[Measurement]:
        """K positives a class: the mean and the deviation over the draws."""
        names = [name for name in rows if name != "train"]
        ours: dict[str, list[float]] = {name: [] for name in names}
        paper = []
        for draw in range(self.draws):
            classes = [
                _Class(
                    self,
                    *_drawn(rows["train"], y, k, len(truth["train"].T), (seed, k, draw)),
                    seed,
                    few=True,
                )
                for y in truth["train"].T
            ]
            for name in names:
                ours[name].append(_precision([c.scores(c.chosen, rows[name]) for c in classes], truth[name]))
            by_cost = [
                _precision([c.scores(cost, rows["test"]) for c in classes], truth["test"])
                for cost in sorted(self.shot_costs)
            ]
            paper.append(by_cost)
        for name in names:
            yield Measurement(f"mAP_{k}", float(np.mean(ours[name])), layer, name)
            yield Measurement(f"mAP_{k}_deviation", float(np.std(ours[name])), layer, name)
        yield Measurement(f"mAP_{k}_oracle", float(np.mean(paper, 0).max()), layer, "test")


class _Class:
    """One class's machines, a cost each, and the cost that cross-validation chooses."""

    def __init__(
        self, protocol: VocSvm, x: Floats, labels: Integers, seed: int, *, few: bool = False
    ) -> None:
        self.protocol, self.x, self.seed = protocol, x, seed
        self.y = np.where(labels > 0, 1, -1)
        self.costs = sorted(protocol.shot_costs if few else protocol.costs)
        self.machines: dict[float, Any] = {}
        self.chosen = self._choose()

    def scores(self, cost: float, x: Floats) -> NDArray[np.float64]:
        """Decision values (N,) at a cost."""
        if len(np.unique(self.y)) < 2:
            return np.zeros(len(x))  # a class that nobody or everybody shows cannot be learned
        if cost not in self.machines:
            self.machines[cost] = self._fit(self.x, self.y, cost)
        values: NDArray[np.float64] = self.machines[cost].decision_function(x)
        return values

    def _choose(self) -> float:
        folds = min(self.protocol.folds, int((self.y > 0).sum()), int((self.y < 0).sum()))
        if folds < 2 or len(self.costs) == 1:
            return self.costs[len(self.costs) // 2]
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=self.seed).split(self.x, self.y))
        found = [np.mean([self._held_out(cost, a, b) for a, b in splits]) for cost in self.costs]
        return self.costs[int(np.argmax(found))]

    def _held_out(self, cost: float, train: Integers, test: Integers) -> float:
        machine = self._fit(self.x[train], self.y[train], cost)
        return ap_envelope(machine.decision_function(self.x[test]), self.y[test])

    def _fit(self, x: Floats, y: Integers, cost: float) -> Any:
        """Squared hinge; positives count twice."""
        machine = LinearSVC(
            C=cost,
            class_weight={1: 2, -1: 1},
            dual=True,
            tol=1e-4,
            max_iter=self.protocol.max_iter,
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # the reference's limit is part of the protocol
            return machine.fit(x, y)


def _drawn(
    x: Floats, labels: Integers, k: int, classes: int, key: tuple[int, ...]
) -> tuple[Floats, Integers]:
    """K positives and (C - 1) k negatives of a class (all, where there are fewer), by a draw of their own."""
    random = np.random.Generator(np.random.PCG64(seed_of(*key)))
    positive, negative = np.flatnonzero(labels > 0), np.flatnonzero(labels < 0)
    taken = [random.permutation(positive)[:k], random.permutation(negative)[: (classes - 1) * k]]
    rows = np.sort(np.concatenate(taken))
    return x[rows], labels[rows]


def _precision(scores: Sequence[NDArray[np.float64]], truth: Integers) -> float:
    return 100 * mean_ap(np.stack(scores, 1), truth, "ap_envelope")


def _rows(model: Model, samples: Samples, tap: Tap, run: Run) -> Floats:
    """Features (N, d) of unit length."""
    x: Floats = in_memory(features(model, samples, [tap], run)[tap], IN_MEMORY).numpy()
    norms: Floats = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / (norms + 1e-5), np.float32)


def _presence(samples: Samples) -> Integers:
    """(N, C) of +1, -1 and 0."""
    if samples.multilabel is None:
        raise BenchError(f"{samples.name} does not say which classes are in its images")
    table: Integers = samples.multilabel.cpu().numpy().astype(np.int64)
    return table
