"""Methods on patches cost little more than the bare steps of the same networks on patches that lie ready."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from _turns import COUNT, keeps_up

from bench import registry
from bench.contracts import TrainingSet
from bench.data.sources import Resident
from bench.records import Unit

SIDE, BATCH = 64, 128
STEPS, TURNS = 2, 16
HEADS = {"hidden": (256,), "batch_size": BATCH}
PUZZLE = {"crop": 63, "tile": 16, "permutations": 32, "tile_dim": 128, **HEADS}
CONTEXT = {"patch": 16, "gap": 4, "patch_jitter": 4, "scale": (), "shrunk": (6, 12), "grids": 1}


def jigsaw(model, tiles):
    features = model.parts["tile"](model.encoder(tiles)).view(BATCH, -1)
    return F.cross_entropy(model.parts["puzzle"](features).float(), torch.arange(BATCH) % 32)


def context_prediction(model, tiles):
    features = model.parts["patch"](model.encoder(tiles)).view(BATCH, 9, -1)
    pairs = torch.cat([features[:, FIRST], features[:, SECOND]], 2).flatten(0, 1)
    return F.cross_entropy(model.parts["pair"](pairs).float(), torch.arange(len(pairs)) % 8)


def counting(model, tiles):
    counted = model.parts["counter"](model.encoder(tiles)).float().view(5, BATCH, -1)
    missed = (counted[0] - counted[1:].sum(0)).square().sum(1)
    return missed.mean() + (10 - missed).clamp_min(0).mean()


def damaged_jigsaw(model, tiles):
    maps = model.encoder.trunk(model.encoder.input(tiles[:, :1]))
    features = model.parts["tile"](model.encoder.pool(maps)).view(BATCH, -1)
    scores = model.parts["puzzle"](features).float()
    loss = F.cross_entropy(scores, torch.arange(BATCH) % 32)
    made, real = model.parts["decoder"](features), tiles[:BATCH, :1]
    colors = model.parts["colors"](maps[BATCH:]).float()
    judge = model.parts["judge"]
    fixed = {name: weight.detach() for name, weight in judge.named_parameters()}
    fooled = torch.func.functional_call(judge, fixed, (made,))
    told = judge(torch.cat([real, made.detach()]))
    bins = torch.arange(colors[:, 0].numel()).view_as(colors[:, 0]) % colors.shape[1]
    return (
        loss + F.mse_loss(made.float(), real) + fooled.float().mean() + told.float().mean()
    ) + F.cross_entropy(colors, bins)


FIRST, SECOND = (torch.arange(40) * k % 9 for k in (1, 2))  # forty pairs, as a grid of nine has
CASES = {
    "jigsaw": (jigsaw, PUZZLE, 9, 16),
    "context_prediction": (context_prediction, {**CONTEXT, "patch_dim": 128, **HEADS}, 9, 16),
    "counting": (counting, {"crop": 64, "counts": 128, **HEADS}, 5, 32),
    "damaged_jigsaw": (damaged_jigsaw, {**PUZZLE, "quantiles": 6, "decoder_width": 16}, 9, 16),
}


class Bare:
    """Forward, backward and optimizer step on patches that never change."""

    def __init__(self, method, model, loss, patches, run):
        self.model, self.loss, self.run = model.train(), loss, run
        self.patches, self.optimizer = patches, method.new_optimizer(model)

    def step(self):
        with self.run.autocast():
            loss = self.loss(self.model, self.patches)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_training_keeps_up_with_bare_steps(name, tmp_path, one_thread):
    loss, settings, pieces, side = CASES[name]
    method = registry.load("method", Unit.of(name, settings))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    patches = torch.rand(BATCH * pieces, 3, side, side, generator=generator)
    data = TrainingSet(Resident(pixels), None, 10)

    def build():
        backbone = registry.load("backbone", Unit("alexnet_small"))
        model = method.build(backbone, data.shape, torch.Generator().manual_seed(0))
        return model.to(memory_format=torch.channels_last)

    patches = patches.contiguous(memory_format=torch.channels_last)

    def bare(model, run):
        return Bare(method, model, loss, patches, run)

    assert keeps_up(name, tmp_path, method, build, bare, data, steps=STEPS, turns=TURNS)
