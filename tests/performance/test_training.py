"""A training costs little more than the bare steps of the same networks on one resident batch."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
import torch.nn.functional as F
from _ratio import middle, tell

from bench import registry
from bench.cache import FileCache
from bench.contracts import TrainingSet
from bench.data.sources import Resident
from bench.records import Unit
from bench.session import Session
from methods.parts.hypercolumns import hypercolumns

BAR = 0.9  # of the bare steps' images a second
WARM = 2  # turns that are not counted
CPU = torch.device("cpu")
COUNT = 3000
PRECISIONS = ["fp32", "bf16"]

# Settings, backbone, side of the images, steps a turn, turns.
CASES = {
    "rotation": (
        {"batch_size": 128, "crop": 48, "augment": "crop_flip", "copies": "one", "lr": 0.05},
        Unit("alexnet_small"),
        64,
        6,
        24,
    ),
    "mean_teacher": ({"batch_size": 100}, Unit.of("conv_large", {"width": 0.5}), 32, 1, 8),
    "colorization": ({"batch_size": 128, "crop": 48, "stride": 4}, Unit("alexnet_small"), 64, 2, 8),
    "split_brain": ({"batch_size": 128, "crop": 48, "stride": 4}, Unit("alexnet_small"), 64, 2, 8),
    "larsson_colorization": (
        {"batch_size": 128, "crop": 48, "locations": 32, "hidden": 128},
        Unit("alexnet_small"),
        64,
        2,
        8,
    ),
    "context_encoder": (
        {"batch_size": 128, "crop": 48, "width": 8, "adversarial": 0.001},
        Unit("alexnet_small"),
        64,
        2,
        8,
    ),
}


def maps_of(model, images):
    """The last tap's."""
    last = model.encoder.layers[-1]
    return model.encoder.activations(images, [last])[last]


def tell_pixels_apart(scores):
    """Against classes that never change."""
    rows = scores.permute(0, 2, 3, 1).reshape(-1, scores.shape[1]).float()
    return F.cross_entropy(rows, torch.arange(len(rows)) % scores.shape[1])


def bare_colorization(model, images):
    return tell_pixels_apart(model.parts["decoder"](maps_of(model, images)))


def bare_split_brain(model, images):
    ab, lightness = maps_of_towers(model, images)
    return tell_pixels_apart(model.parts["predict_ab"](ab)) + tell_pixels_apart(
        model.parts["predict_L"](lightness)
    )


def maps_of_towers(model, images):
    parts = model.encoder.input(images).split([1, 2], 1)
    for stage in list(model.encoder.trunk)[:-1]:  # the last is a pool above the last tap
        parts = stage.first(parts[0]), stage.second(parts[1])
    return parts


def bare_larsson_colorization(model, images):
    places = torch.linspace(0.1, 0.9, 32)[:, None].expand(len(images), -1, 2)
    maps = model.encoder.activations(images, model.encoder.layers)
    hidden = model.parts["hidden"](hypercolumns(maps.values(), places))
    classes = torch.arange(len(hidden)) % 32
    return sum(F.cross_entropy(model.parts[name](hidden).float(), classes) for name in ("hue", "chroma"))


def bare_context_encoder(model, images):
    """The painter's network, and the discriminator's three passes: true, made, and made for the painter."""
    made, judge = (
        model.parts["painter"](model.encoder.trunk(model.encoder.input(images))),
        model.parts["discriminator"],
    )
    error = made.square().mean() - judge(made.detach()).mean() - judge(torch.zeros_like(made)).mean()
    judge.requires_grad_(False)
    fooled = judge(made).mean()
    judge.requires_grad_(True)
    return error + fooled


def bare_rotation(model, images):
    scores = model.parts["rotation"](model.encoder(images))
    return F.cross_entropy(scores.float(), torch.arange(len(images)) % 4)


ALONE = {
    "rotation": bare_rotation,
    "colorization": bare_colorization,
    "split_brain": bare_split_brain,
    "larsson_colorization": bare_larsson_colorization,
    "context_encoder": bare_context_encoder,
}


class Bare:
    """Forward, backward and optimizer step on one batch that never changes."""

    def __init__(self, method, model, pixels, run, alone):
        self.model, self.run, self.alone = model.train(), run, alone
        self.learner = method.learner(model)
        self.optimizer = method.new_optimizer(model)
        pixels = pixels[: method.batch_size, :, : method.crop or None, : method.crop or None]
        self.batch = pixels.contiguous(memory_format=torch.channels_last)
        self.classes = torch.arange(len(self.batch)) % 4

    def step(self):
        with self.run.autocast():
            loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def loss(self):
        if self.learner is self.model:
            return self.alone(self.model, self.batch)
        scores = self.learner(self.batch).float()
        with torch.no_grad():
            taught = self.model(self.batch).float()
        return F.cross_entropy(scores, self.classes) + F.mse_loss(scores.softmax(1), taught.softmax(1))


class Turns:
    """Called after every step of the training: after ``steps`` of them it takes as many bare ones."""

    def __init__(self, bare, steps):
        self.bare, self.steps, self.pairs, self.begin = bare, steps, [], 0.0

    def __call__(self, done, total):
        if done % self.steps:
            return
        begin, between = self.begin, time.process_time()
        for _ in range(self.steps):
            self.bare.step()
        self.begin = time.process_time()
        self.pairs.append((self.begin - between, between - begin))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), list(itertools.product(CASES, PRECISIONS)))
def test_training_keeps_up_with_bare_steps(name, precision, tmp_path, one_thread):
    settings, backbone, side, steps, turns = CASES[name]
    method = registry.load("method", Unit.of(name, settings))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(COUNT) % 10 if method.sees_labels else None
    data = TrainingSet(Resident(pixels), labels, 10)

    def build():
        model = method.build(
            registry.load("backbone", backbone), data.shape, torch.Generator().manual_seed(0)
        )
        return model.to(memory_format=torch.channels_last)

    epochs = steps * (WARM + turns) / (COUNT // method.batch_size)
    run = Session(
        tmp_path,
        seed=0,
        device=CPU,
        cache=FileCache(tmp_path),
        precision=precision,
        budget=f"{epochs:.4f} epochs",
    )
    run.report = watch = Turns(Bare(method, build(), pixels, run, ALONE.get(name)), steps)
    method.train(build(), data, run)
    ratio = middle(watch.pairs[WARM:])
    tell(f"training, {name}, {precision}", ratio, f"at least {BAR}")
    assert ratio >= BAR
