"""Trainings that start from the encoder of another, and what a network reads of its images."""

from __future__ import annotations

import json

import pytest
import torch

from bench import registry, tensors
from bench.artifacts import folder
from bench.backbones import _whitening
from bench.backbones.alexnet_small import AlexNetSmall
from bench.planning import plan
from bench.planning.suite import load
from bench.records import WHITENINGS, BenchError, Unit

TRANSFER = """
methods = ["namer"]
init = {methods = ["none", "walker"], budget = 24}
"""
METHODS = "[methods]\nwalker = {lr = 0.1}\nnamer = {}"


def starts(suite):
    cells = [p for p in plan.cells(load(str(suite))) if p.label != "walker"]
    return {p.label: p.cell.training for p in cells}


def test_a_start_is_planned_with_its_own_budget_and_the_seed_of_who_starts_there(suite):
    path = suite(f"{METHODS}\n[[grid]]\n{TRANSFER}", top="seeds = 1\nthreads = 1")
    found = starts(path)
    assert set(found) == {"namer", "namer from walker"}
    assert found["namer"].init is None
    start = found["namer from walker"].init
    assert (start.method.name, start.method.get("lr"), start.budget, start.seed) == ("walker", 0.1, 24, 0)
    assert start.data.labels == 0  # walker sees none


def test_the_start_is_made_once_and_its_weights_are_where_the_training_begins(
    suite, home, bench, monkeypatch
):
    from toy_units import namer

    seen = {}
    train = namer.Namer.train

    def look(self, model, data, run):
        seen[run.seed] = {k: v.clone() for k, v in model.encoder.state_dict().items()}
        return train(self, model, data, run)

    monkeypatch.setattr(namer.Namer, "train", look)
    path = suite(
        f'{METHODS}\n[[grid]]\nmethods = ["namer"]\ninit = {{methods = ["walker"], budget = 24}}',
        top="seeds = 1",
    )
    done = bench("run", path, "--jobs", 0)
    assert done.code == 0, done.err
    start = starts(path)["namer from walker"].init
    kept = tensors.read(folder(home / "runs", start).model)
    assert all(torch.equal(v, kept[f"encoder.{k}"]) for k, v in seen[0].items())
    rows = (home / "results" / "toy.csv").read_text()
    assert folder(home / "runs", start).path.name in rows  # the column init


def test_what_cannot_start_there_says_so(suite, bench):
    grid = '[[grid]]\nmethods = ["namer"]\ninit = {methods = ["mean_color"]}'
    done = bench("run", suite(f"[methods]\nmean_color = {{}}\nnamer = {{}}\n{grid}"), "--jobs", 0)
    assert done.code == 2
    assert "its encoder does not fit" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ('{methods = ["wlker"]}', "there is no method 'wlker'; did you mean 'walker'?"),
        ('{methods = ["walker"], bugdet = 3}', "unknown key 'bugdet'; did you mean 'budget'?"),
        ('{methods = ["walker"], budget = -1}', "budget must be a number of encoder passes"),
        ('"walker"', "must be a table"),
    ],
)
def test_a_slip_in_init_is_told_in_one_line(suite, init, told):
    path = suite(f'{METHODS}\n[[grid]]\nmethods = ["namer"]\ninit = {init}')
    with pytest.raises(BenchError) as caught:
        load(str(path))
    assert "init" in str(caught.value)
    assert told in str(caught.value)


# ---- whitening -----------------------------------------------------------------------------------


def test_every_name_has_a_recipe():
    for name in set(WHITENINGS) - {""}:
        assert _whitening.named(AlexNetSmall(), name, 8).build(generator=torch.Generator()).input is not None


@pytest.mark.parametrize(
    ("name", "scaled"), [("centered", lambda x: (x - 127.5) / 255), ("signed", lambda x: x / 127.5 - 1)]
)
def test_scaled_pixels_have_the_units_of_their_papers(name, scaled):
    """vat_tf's svhn.py, and ICT's mean and deviation of 127.5."""
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    backbone = _whitening.named(AlexNetSmall(), name, 8)
    found = backbone.build(generator=torch.Generator()).input(images)
    torch.testing.assert_close(found, scaled(images.float()))


def test_an_image_is_normalized_by_itself():
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    pixels = images.double() / 255
    mean = pixels.flatten(1).mean(1).view(-1, 1, 1, 1)
    deviation = pixels.flatten(1).std(1, correction=0).view(-1, 1, 1, 1)
    torch.testing.assert_close(
        _whitening.PerImage()(images).double(), (pixels - mean) / deviation, atol=1e-5, rtol=1e-5
    )


def test_a_suite_whitens_and_the_statistics_are_saved_with_the_weights(home, bench):
    path = home / "white.toml"
    path.write_text("""
budget = 200
backbone = {name = "alexnet_small", widths = [4, 4, 4, 4, 4], stem_stride = 1}
data = {dataset = {name = "digits", side = 16}, labels = 40, whitening = ["", "laine_aila", "per_image"]}
methods = {supervised = {batch_size = 20}}
protocols = {error = {}}
""")
    done = bench("run", path, "--jobs", 0)
    assert done.code == 0, done.err
    cells = {p.cell.training.data.whitening: p.cell.training for p in plan.cells(load(str(path)))}
    kept = {name: tensors.read(folder(home / "runs", t).model) for name, t in cells.items()}
    assert "encoder.input.matrix" not in kept[""]
    matrix = kept["laine_aila"]["encoder.input.matrix"].double()
    dataset = registry.load("dataset", Unit.of("digits", {"side": 16}))
    (pixels,) = next(dataset.load("train", home).images.views([torch.arange(1000)], [lambda x, _: x], 0, 0))
    rows = pixels.flatten(1).double() / 255
    covariance = torch.cov(rows.T, correction=0)
    # Laine & Aila: (S + 1e-5)^(-1/2), so its square times (S + 1e-5) is the identity.
    identity = matrix @ matrix @ (covariance + 1e-5 * torch.eye(768, dtype=torch.float64))
    torch.testing.assert_close(identity, torch.eye(768, dtype=torch.float64), atol=2e-2, rtol=0)
    settings = json.loads((folder(home / "runs", cells["laine_aila"]).path / "spec.json").read_text())
    assert "bench.backbones._whitening" in settings["modules"]


def test_an_unknown_whitening_is_told_in_one_line(suite):
    path = suite("[methods]\nwalker = {}", data='dataset = "dots"\nwhitening = "zca"')
    with pytest.raises(BenchError, match=r"data.whitening must be one of laine_aila, .*, not 'zca'"):
        plan.cells(load(str(path)))


# ---- runs that differ by seed ----------------------------------------------------------------------


def test_a_fold_may_be_the_seeds(home):
    path = home / "folds.toml"
    path.write_text("""
seeds = 5
budget = 10
backbone = "alexnet_small"
data = {dataset = {name = "stl10", fold = "seed"}}
methods = {supervised = {}}
protocols = {error = {}}
""")
    folds = {
        p.cell.training.seed: p.cell.training.data.dataset.get("fold") for p in plan.cells(load(str(path)))
    }
    assert folds == {i: i for i in range(5)}


def test_only_the_named_classes_are_judged():
    from pathlib import Path

    from bench.data import assemble
    from bench.records import Aim

    dataset = registry.load("dataset", Unit.of("digits", {"side": 16}))
    aim = Aim(Unit.of("digits", {"side": 16}), validation=60, classes=(2, 5, 7))
    found, _ = assemble.target(aim, dataset, Path("nowhere"), torch.device("cpu"))
    for part in (found.train, found.validation, found.test):
        assert set(part.labels.tolist()) == {2, 5, 7}
    everything = dataset.load("test", Path("nowhere")).labels
    assert len(found.test) == sum(int((everything == c).sum()) for c in (2, 5, 7))
