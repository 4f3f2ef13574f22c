"""The harness's side of a run: what is kept, what is resumed, what is refused."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from bench import session as session_module
from bench import tensors
from bench.records import BenchError
from bench.session import Session, snapshot_steps


@pytest.fixture
def start(tmp_path):
    def make(**changes):
        settings = {"seed": 1, "device": torch.device("cpu"), "cache": None, "stamp": "a"} | changes
        return Session(tmp_path, **settings)

    return make


def test_there_is_nothing_to_resume_at_first(start):
    assert start().resume({"x": torch.ones(1)}) == 0


def test_state_curves_images_and_time_are_resumed(start):
    first, net = start(), nn.Linear(2, 1)
    descent = torch.optim.SGD(net.parameters(), 0.1, 0.9)
    net(torch.ones(1, 2)).sum().backward()
    descent.step()
    first.saw(30)
    first.log(5, {"loss": 0.5})
    first.started -= 100
    first.checkpoint(7, {"net": net, "optimizer": descent}, force=True)
    second, other = start(), nn.Linear(2, 1)
    after = torch.optim.SGD(other.parameters(), 0.1, 0.9)
    assert second.resume({"net": other, "optimizer": after}) == 7
    assert torch.equal(other.weight, net.weight)
    assert torch.equal(
        after.state[other.weight]["momentum_buffer"], descent.state[net.weight]["momentum_buffer"]
    )
    second.saw(3)
    second.log(6, {"loss": 0.25})
    assert second.images_seen == 33
    assert second.curves == [{"step": 5, "loss": 0.5}, {"step": 6, "loss": 0.25}]
    assert 100 <= second.seconds < 110


def test_time_is_not_counted_twice_over_two_interruptions(start):
    x = {"x": torch.ones(1)}
    first = start()
    first.started -= 100
    first.checkpoint(1, x, force=True)
    second = start()
    second.resume(x)
    second.checkpoint(2, x, force=True)
    third = start()
    third.resume(x)
    assert 100 <= third.seconds < 110


def test_a_checkpoint_of_another_run_is_refused(start):
    start().checkpoint(3, {"x": torch.ones(1)}, force=True)
    with pytest.raises(
        BenchError, match=r"belongs to another run \(its settings or label split differ\); delete"
    ):
        start(stamp="b").resume({"x": torch.zeros(1)})


@pytest.mark.parametrize(
    "other",
    [
        {"y": torch.zeros(2)},
        {"x": torch.zeros(3)},
        {"x": nn.Linear(2, 2)},
        {"x": torch.zeros(2), "more": torch.zeros(1)},
    ],
    ids=["names", "shapes", "kinds", "more"],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(start, other):
    start().checkpoint(3, {"x": torch.ones(2)}, force=True)
    with pytest.raises(
        BenchError, match=r"checkpoint\.safetensors: does not fit \(.+\); delete it to start again"
    ) as told:
        start().resume(other)
    assert "\n" not in str(told.value)


def test_a_damaged_checkpoint_is_one_line(start):
    run = start()
    run.checkpoint(3, {"x": torch.ones(2)}, force=True)
    run.checkpoint_file.write_bytes(run.checkpoint_file.read_bytes()[:-4])
    with pytest.raises(BenchError, match="not a readable safetensors file"):
        start().resume({"x": torch.ones(2)})


@pytest.mark.parametrize("words", ["often", "-1", "nan"])
def test_how_often_is_a_number_of_minutes(start, monkeypatch, words):
    monkeypatch.setenv("BENCH_CHECKPOINT", words)
    with pytest.raises(
        BenchError, match=f"BENCH_CHECKPOINT: '{words}' is no number of minutes; write e.g. 5"
    ):
        start()


def test_a_checkpoint_is_written_when_asked_or_when_time_has_passed(start, monkeypatch):
    run = start()
    run.checkpoint(1, {"x": torch.ones(1)})
    assert not run.checkpoint_file.exists()
    monkeypatch.setenv("BENCH_CHECKPOINT", "0.001")
    run = start()
    time.sleep(0.07)
    run.checkpoint(2, {"x": torch.ones(1)})
    assert start().resume({"x": torch.ones(1)}) == 2
    run.checkpoint(3, {"x": torch.ones(1)})
    assert start().resume({"x": torch.ones(1)}) == 2


def test_finishing_writes_the_curves_and_drops_the_checkpoint(start, tmp_path):
    run = start()
    run.log(20, {"a": 1.5, "b": 2.0})
    run.log(40, {"a": 1.25})
    run.checkpoint(40, {"x": torch.ones(1)}, force=True)
    run.finish()
    frame = pd.read_parquet(tmp_path / "curves.parquet")
    assert frame["step"].tolist() == [20, 40]
    assert frame["a"].tolist() == [1.5, 1.25]
    assert frame["b"].isna().tolist() == [False, True]
    assert not run.checkpoint_file.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["curves.parquet"]


@pytest.mark.parametrize(
    ("total", "count", "steps"),
    [(100, 4, {25, 50, 75, 100}), (10, 3, {3, 7, 10}), (2, 5, {1, 2}), (7, 1, {7}), (1, 3, {1})],
)
def test_snapshots_lie_evenly_and_the_last_step_is_one(total, count, steps):
    assert snapshot_steps(total, count) == steps


def test_models_are_kept_on_their_steps_and_only_when_asked(start, tmp_path):
    run, net = start(snapshots=3), nn.Linear(1, 1, bias=False)
    for done in range(1, 10):
        with torch.no_grad():
            net.weight.fill_(done)
        run.snapshot(done, 9, net)
        start().snapshot(done, 9, net)
    found = sorted((tmp_path / "snapshots").iterdir())
    assert [int(p.stem) for p in found] == [3, 6, 9]
    assert [tensors.read(p)["weight"].item() for p in found] == [3, 6, 9]


def test_generators_depend_on_seed_and_purpose_alone(start):
    def draw(seed, purpose):
        return start(seed=seed).generator(purpose).initial_seed()

    assert draw(1, "weights") == draw(1, "weights")
    assert len({draw(1, "weights"), draw(1, "targets"), draw(2, "weights")}) == 3
    torch.manual_seed(0)
    before = torch.get_rng_state()
    start().generator("weights").manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_precision_decides_the_forward_pass(start):
    net, x = nn.Linear(4, 4), torch.randn(2, 4)
    with start(precision="fp32").autocast():
        assert net(x).dtype == torch.float32
    with start(precision="bf16").autocast():
        assert net(x).dtype == torch.bfloat16


def test_assignments_and_pictures_lie_beside_the_run(start, tmp_path):
    run = start()
    run.assignments(3, torch.tensor([1, 0, 2]))
    assert tensors.read(tmp_path / "assignments" / "000003.safetensors")["ids"].tolist() == [1, 0, 2]
    image = torch.rand(3, 5, 7)
    run.picture("../rec/onstruction", image * 1.2 - 0.1)
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name == "rec_onstruction.png"
    wanted = ((image * 1.2 - 0.1).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1), wanted)


def test_assignments_come_back_by_epoch(start, tmp_path):
    run = start()
    for epoch in (10, 2):
        run.assignments(epoch, torch.tensor([epoch, 1]))
    kept = session_module.Assignments(tmp_path)
    assert list(kept) == [2, 10]
    assert kept[10].tolist() == [10, 1]
    assert kept[10].dtype == torch.int64
    assert len(session_module.Assignments(tmp_path / "elsewhere")) == 0
