"""Fits on stored features against fits whose every epoch encodes the images again."""

from __future__ import annotations

import pytest
import torch
from _ratio import cpu_seconds, middle, tell
from sklearn.svm import LinearSVC

from bench import registry
from bench.cache import FileCache
from bench.contracts import Model, Samples, Target
from bench.data.sources import Resident
from bench.records import Unit
from bench.session import Session

CPU = torch.device("cpu")
CLASSES, COUNT, SIDE, EPOCHS = 10, 256, 64, 4
TURNS = 3


@pytest.fixture
def model():
    backbone = registry.load("backbone", Unit("resnet18"))
    encoder = backbone.build(generator=torch.Generator().manual_seed(0))
    return Model(encoder).to(memory_format=torch.channels_last).eval()


@pytest.fixture
def target():
    def samples(name, count, seed):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count) % CLASSES
        present = (torch.nn.functional.one_hot(labels, CLASSES) * 2 - 1).to(torch.int8)
        return Samples(name, Resident(pixels), labels, multilabel=present)

    return Target(samples("train", COUNT, 0), samples("validation", 0, 1), samples("test", 32, 2), CLASSES)


@pytest.fixture
def seconds(tmp_path, model, target, one_thread):
    """CPU seconds of a protocol with this cache, by name and settings; each time in a run of its own."""
    made = iter(range(1000))

    def measure(name, digest="w", **settings):
        protocol = registry.load("protocol", Unit.of(name, settings))
        run = Session(
            tmp_path / str(next(made)),
            seed=0,
            device=CPU,
            cache=FileCache(tmp_path / "cache"),
            taps=tuple(protocol.taps(model.encoder)),
            weights_digest=digest,
        )
        return cpu_seconds(lambda: list(protocol.evaluate(model, target, run)))

    return measure


@pytest.mark.slow
def test_probes_from_the_cache_are_ten_times_as_fast_as_with_the_encoder_in_every_step(seconds):
    stored, fresh = (
        {"augment": augment, "epochs": EPOCHS, "batch_size": 64} for augment in ("none", "crop_flip")
    )
    seconds("linear_probe", **stored)  # fills the cache, for both: test images are read from it as well
    pairs = [(seconds("linear_probe", **fresh), seconds("linear_probe", **stored)) for _ in range(TURNS)]
    tell(f"linear probe of all layers, {EPOCHS} epochs, encoding over cache", middle(pairs), "at least 10")
    assert middle(pairs) >= 10


@pytest.mark.slow
def test_svms_from_the_cache_are_ten_times_as_fast_as_with_encoding_in_every_epoch(seconds, monkeypatch):
    """liblinear goes through the images as often as it says; without a cache each time is another encoding."""
    fit, epochs = LinearSVC.fit, []

    def counted(self, *rows):
        epochs.append(fit(self, *rows).n_iter_)
        return self

    monkeypatch.setattr(LinearSVC, "fit", counted)
    settings = {"size": 2048, "side": 0, "costs": (1.0,), "shots": ()}
    seconds("voc_svm", **settings)
    epochs.clear()
    pairs = []
    for _ in range(TURNS):
        stored = seconds("voc_svm", **settings)
        # A run without a digest keeps nothing: every layer and split is encoded, once.
        pairs.append(((seconds("voc_svm", digest="", **settings) - stored) * min(epochs), stored))
    tell(
        f"SVMs of all layers, {min(epochs)} epochs or more, encoding over cache", middle(pairs), "at least 10"
    )
    assert middle(pairs) >= 10
