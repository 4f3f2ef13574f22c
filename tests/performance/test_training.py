"""A training costs little more than the bare steps of the same networks on one resident batch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from _plain import PLAIN
from _turns import COUNT, keeps_up

from bench import registry
from bench.contracts import TrainingSet
from bench.data.sources import Resident
from bench.records import Unit

# Settings, backbone, side of the images, steps a turn, turns.
CASES = {
    "rotation": (
        {"batch_size": 128, "crop": 48, "augment": "crop_flip", "copies": "one", "lr": 0.05},
        Unit("alexnet_small"),
        64,
        3,
        20,
    ),
    "noise_as_targets": (
        {"batch_size": 128, "crop": 48, "augment": "crop_flip", "dim": 64, "every": 1, "feature_norm": True},
        Unit("alexnet_small"),
        64,
        4,
        16,
    ),
    "deep_infomax": ({"units": 256}, Unit.of("infomax", {"units": 256}), 32, 4, 16),
    "cpc": (
        {
            "batch_size": 32,
            "crop": 48,
            "patch": 16,
            "stride": 8,
            "window": 14,
            "width": 32,
            "feature_norm": True,
        },
        Unit.of("alexnet_small", {"batch_norm": False}),
        64,
        2,
        16,
    ),
    "bigan": (
        {"batch_size": 64, "crop": 48, "size": 8, "dim": 32},
        Unit("alexnet_small"),
        64,
        2,
        14,
    ),
    "colorization": ({"batch_size": 128, "crop": 48, "stride": 4}, Unit("alexnet_small"), 64, 2, 16),
    "split_brain": ({"batch_size": 128, "crop": 48, "stride": 4}, Unit("alexnet_small"), 64, 2, 16),
    "larsson_colorization": (
        {"batch_size": 128, "crop": 48, "locations": 32},
        Unit("alexnet_small"),
        64,
        2,
        16,
    ),
    "context_encoder": (
        {"batch_size": 128, "crop": 48, "width": 8, "adversarial": 0.001},
        Unit("alexnet_small"),
        64,
        2,
        16,
    ),
    "mean_teacher": ({"batch_size": 50}, Unit.of("conv_large", {"width": 0.5}), 32, 1, 8),
}
# Two methods stand for all in bfloat16; a CPU that has none of its own takes seconds a step: few small ones.
JUDGED = [*itertools.product(CASES, ["fp32"]), ("rotation", "bf16"), ("mean_teacher", "bf16")]


class Bare:
    """Forward, backward and optimizer step on one batch that never changes."""

    def __init__(self, name, method, model, pixels, run):
        self.model, self.run = model.train(), run
        self.learner = method.learner(model)
        self.optimizer = method.new_optimizer(model)
        pixels = pixels[: method.batch_size, :, : method.crop or None, : method.crop or None]
        self.batch = pixels.contiguous(memory_format=torch.channels_last)
        self.classes = torch.arange(len(self.batch)) % 4
        if name in PLAIN:
            self.loss = PLAIN[name](method, model, self.batch)

    def step(self):
        with self.run.autocast():
            loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def loss(self):
        if self.learner is self.model:
            scores = self.model.parts["rotation"](self.model.encoder(self.batch))
            return F.cross_entropy(scores.float(), self.classes)
        scores = self.learner(self.batch).float()
        with torch.no_grad():
            taught = self.model(self.batch).float()
        return F.cross_entropy(scores, self.classes) + F.mse_loss(scores.softmax(1), taught.softmax(1))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), JUDGED)
def test_training_keeps_up_with_bare_steps(name, precision, tmp_path, one_thread):
    settings, backbone, side, steps, turns = CASES[name]
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        settings, steps, turns = {**settings, "batch_size": 10}, 1, 6
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

    def bare(model, run):
        return Bare(name, method, model, pixels, run)

    what = f"{name}, {precision}"
    assert keeps_up(what, tmp_path, method, build, bare, data, steps=steps, turns=turns, precision=precision)
