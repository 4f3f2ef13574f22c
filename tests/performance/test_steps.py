"""A semi-supervised step costs little more than its own passes through the network.

Every pass that a step makes is written down (rows, mode, gradient by the weights or by the input) and done again
on images that lie ready: forward, backward, nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import pytest
import torch
from _ratio import middle, tell

from bench import registry
from bench.cache import FileCache
from bench.contracts import TrainingSet
from bench.data.sources import Resident
from bench.records import Unit
from bench.session import Session

BAR = 1.1
COUNT, LABELED = 1280, 640
APART = {"batch_size": 128, "labeled_batch": 64}  # 64 labeled images and 64 others
SETTINGS = {
    "supervised": {"batch_size": 64, "augment": "translate_flip"},
    "vat": {"xi": 0.01},
    "vat with entropy": {"xi": 0.01, "entropy": 1.0},
}
METHODS = [
    "supervised",
    "entropy_minimization",
    "pseudo_label",
    "pi_model",
    "temporal_ensembling",
    "mean_teacher",
    "vat",
    "vat with entropy",
    "mixup",
    "ict",
    "mixmatch",
    "s4l",
]


@dataclass(frozen=True)
class Pass:
    """One forward pass, and what it is followed by."""

    encoder: torch.nn.Module
    rows: int
    training: bool
    learns: bool  # a gradient of the weights
    sought: bool  # a gradient of the input alone


class Diary:
    """The passes of the encoders since they were last asked for."""

    def __init__(self, model):
        self.passes = []
        for encoder in [model.encoder, *(student.encoder for student in model.variants.values())]:
            encoder.trunk.register_forward_hook(lambda *called, encoder=encoder: self.note(encoder, called))

    def note(self, encoder, called):
        _, (x,), out = called
        self.passes.append(
            Pass(
                encoder,
                len(x),
                encoder.trunk.training,
                learns=out.requires_grad and not x.requires_grad,
                sought=x.requires_grad,
            )
        )

    def taken(self):
        taken, self.passes = self.passes, []
        return taken


class Replay:
    """Called after every step of a training: does the step's passes again, each on a resident batch."""

    def __init__(self, diary, pixels):
        self.diary, self.pixels, self.pairs, self.begin = diary, pixels, [], 0.0

    def __call__(self, done, total):
        between = time.process_time()
        passes = self.diary.taken()
        self.go(passes)
        self.diary.taken()
        self.begin, begin = time.process_time(), self.begin
        self.pairs.append((between - begin, self.begin - between))

    def go(self, passes):
        learned = []
        for one in passes:
            one.encoder.train(one.training)
            x = self.pixels[: one.rows].clone().requires_grad_(one.sought)
            with torch.set_grad_enabled(one.learns or one.sought):
                out = one.encoder.trunk(x)
            if one.sought:
                torch.autograd.grad(out.sum(), x)
            elif one.learns:
                learned.append(out.sum())
        for weight in passes[0].encoder.parameters():
            weight.grad = None
        torch.stack(learned).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_step_costs_little_more_than_its_passes(name, tmp_path):
    unit = name.partition(" ")[0]
    known = {f.name for f in fields(registry.load("method", Unit(unit)))}
    settings = {k: v for k, v in APART.items() if k in known} | SETTINGS.get(name, {})
    method = registry.load("method", Unit.of(unit, settings))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.where(torch.arange(COUNT) < LABELED, torch.arange(COUNT) % 10, -1)
    data = TrainingSet(Resident(pixels), labels, 10)
    backbone = registry.load("backbone", Unit("wide_resnet_28_2"))
    model = method.build(backbone, data.shape, torch.Generator().manual_seed(0))
    replay = Replay(Diary(model), torch.randn(256, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    run = Session(
        tmp_path, seed=0, device=torch.device("cpu"), cache=FileCache(tmp_path), budget="0.15 epochs"
    )
    run.report = replay
    method.train(model, data, run)
    print(f"\n{name}: {min(step for step, _ in replay.pairs[1:]):.1f} CPU seconds a step", end="")
    ratio = middle(replay.pairs[1:])
    tell(f"step, {name}", ratio, f"at most {BAR}")
    assert ratio <= BAR
