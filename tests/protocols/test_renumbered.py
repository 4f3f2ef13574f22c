"""Classes have names, no order: every number is the same when they are numbered anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.contracts import Measurement, Model, Samples
from bench.metrics import confusion_matrix, mean_ap, mean_iou
from protocols import mlp_probe
from protocols.clustering import Clustering
from protocols.embedding import Embedding
from protocols.error import Error
from protocols.filters import Filters
from protocols.fine_tune import FineTune
from protocols.knn import Knn
from protocols.linear_probe import LinearProbe
from protocols.linear_svm import LinearSvm
from protocols.mlp_probe import MlpProbe
from protocols.perturbed import Perturbed
from protocols.retrieval import Retrieval
from protocols.small_validation import SmallValidation
from protocols.voc_svm import VocSvm

CLASSES = 7
NEW = torch.tensor([3, 5, 0, 6, 1, 2, 4])  # the number that each class gets

PROTOCOLS = {
    "knn": Knn(k=(20, 1)),
    "knn_unweighted": Knn(k=(6, 2), weighted=False),  # ties are everywhere
    "linear_probe": LinearProbe(epochs=3, batch_size=32, learning_rates=(0.01, 0.1)),
    "linear_probe_cached": LinearProbe(augment="none", epochs=3, batch_size=32, select="best"),
    "mlp_probe": MlpProbe(epochs=3, average_last=2),
    "linear_svm": LinearSvm(costs=(0.1, 1.0)),
    "voc_svm": VocSvm(size=64, side=0, costs=(0.1, 1.0), shot_costs=(0.1, 1.0), shots=(2, 4), draws=2),
    "clustering": Clustering(clusters=(0, 40)),
    "retrieval": Retrieval(k=(1, 5)),
    "filters": Filters(images=4, units=0),
    "embedding": Embedding(images=80, iterations=250, picture_side=300, neighbors=2),
    "error": Error(),
    "small_validation": SmallValidation(sizes=(5, 10)),
    "perturbed": Perturbed(),
    "fine_tune": FineTune(epochs=1, batch_size=32, learning_rates=(0.01,)),
}


def test_all_protocols_that_classify_are_here():
    from pathlib import Path

    own = {type(p).__module__.rpartition(".")[2] for p in PROTOCOLS.values()}
    known = {path.stem for path in Path(mlp_probe.__file__).parent.glob("[a-z]*.py")}
    assert known - own == {
        "voc_classification",
        "voc_detection",
        "voc_segmentation",
    }  # by their metrics, below


def noisy(samples: Samples) -> Samples:
    """With seven classes that the images show badly, and one or two labels each."""
    generator = torch.Generator().manual_seed(len(samples))
    labels = (samples.labels + 3 * torch.randint(0, 3, (len(samples),), generator=generator)) % CLASSES
    several = torch.nn.functional.one_hot(labels, CLASSES)
    several[torch.arange(len(samples)), (labels + torch.arange(len(samples)) % 2) % CLASSES] = 1
    return replace(samples, labels=labels, multilabel=(several * 2 - 1).to(torch.int8))


def renumbered(samples: Samples) -> Samples:
    return replace(
        samples,
        name=f"{samples.name} anew",
        labels=NEW[samples.labels],
        multilabel=samples.multilabel[:, NEW.argsort()],
    )


def of_all(target, change):
    parts = {name: change(getattr(target, name)) for name in ("train", "validation", "test")}
    return replace(target, classes=CLASSES, **parts)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_number_is_the_same(name, model, target, make_run, monkeypatch):
    target, protocol = of_all(target, noisy), PROTOCOLS[name]
    first = judged(protocol, with_head(model), target, make_run())
    classifiers_by_name(monkeypatch)
    again = judged(protocol, with_head(model, NEW.argsort()), of_all(target, renumbered), make_run())
    assert first
    assert again == pytest.approx(first, abs=1e-9)


def judged(protocol, model, target, run):
    return {
        (m.metric, m.layer, m.split): m.value
        for m in protocol.evaluate(model, target, run)
        if isinstance(m, Measurement)
    }


def with_head(model, order=None) -> Model:
    """The model with a classifier whose scores are small whole numbers: ties are everywhere."""
    head = torch.nn.Linear(16, CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.arange(CLASSES * 16).view(CLASSES, 16) % 5 == 0)
        head.bias.zero_()
        if order is not None:
            head.weight.copy_(head.weight[order])

    class Rounded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, x):
            scores = self.head(x)
            return scores.round() + 0 * scores

    return Model(model.encoder, Rounded())


def classifiers_by_name(patch):
    """What begins at random for each class begins with what it had under its old number."""
    randn = torch.randn

    def drawn(*shape, **how):
        found = randn(*shape, **how)
        return found[NEW.argsort()] if found.ndim == 2 and len(found) == CLASSES else found

    patch.setattr(torch, "randn", drawn)


def test_metrics_of_annotated_images_are_the_same():
    random, old = np.random.default_rng(0), NEW.argsort().numpy()
    scores, truth = random.integers(0, 4, (60, CLASSES)) / 4, random.integers(-1, 2, (60, CLASSES))
    for kind in ("ap_11pt", "ap_envelope", "ap_sklearn"):
        assert mean_ap(scores[:, old], truth[:, old], kind) == pytest.approx(mean_ap(scores, truth, kind))
    guess, mask = random.integers(0, CLASSES, (2, 500))
    first = mean_iou(confusion_matrix(guess, mask, CLASSES))
    again = mean_iou(confusion_matrix(NEW.numpy()[guess], NEW.numpy()[mask], CLASSES))
    assert again == pytest.approx(first)
