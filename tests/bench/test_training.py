"""The loop under everything that trains: schedules, batches, resuming, and what stops it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.data.sources import Resident
from bench.draws import Draws
from bench.records import BenchError
from bench.session import Session
from bench.training import (
    DivergedError,
    Schedule,
    descend,
    epoch_batches,
    estimate_batch_norm,
    set_rate,
    sgd,
    steps_of,
    stream,
)


class StopError(Exception):
    """The machine went away."""


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (Schedule(), [1, 1, 1, 1, 1]),
        (Schedule("step", (0.4, 0.8), 0.1), [1, 1, 0.1, 0.1, 0.01]),
        (Schedule("cosine"), [(1 + math.cos(math.pi * t / 5)) / 2 for t in range(5)]),
        (Schedule("linear", (0.6,)), [1, 1, 1, 1, 0.5]),
        (Schedule("linear"), [1, 0.8, 0.6, 0.4, 0.2]),
        (Schedule(warmup=4), [0.25, 0.5, 0.75, 1, 1]),
        (Schedule("inverse_sqrt", gamma=3.0), [1, 0.5, 7**-0.5, 10**-0.5, 13**-0.5]),
        (Schedule("linear", warmup=2), [0.5, 0.8, 0.6, 0.4, 0.2]),
    ],
    ids=lambda v: f"{v.kind}-{v.warmup}" if isinstance(v, Schedule) else "",
)
def test_schedules_by_hand(schedule, wanted):
    assert [schedule(done, 5) for done in range(5)] == pytest.approx(wanted)


def test_an_unknown_schedule_is_told_what_to_write():
    with pytest.raises(BenchError, match="'cosin' is not known: write constant, step, cosine or linear"):
        Schedule("cosin")(0, 1)


def test_a_groups_scale_multiplies_its_rate():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b], "scale": 0.1}], 1.0)
    set_rate(optimizer, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.05]


def test_an_epochs_batches_hold_every_sample_once_but_for_the_incomplete_last():
    batches = epoch_batches(10, 3, seed=1, epoch=0)
    assert [len(b) for b in batches] == [3, 3, 3]
    assert len(torch.cat(batches).unique()) == 9
    assert torch.equal(torch.cat(epoch_batches(10, 3, 1, 0, start=2)), batches[2])
    assert not torch.equal(torch.cat(epoch_batches(10, 3, 1, 1)), torch.cat(batches))
    assert not torch.equal(torch.cat(epoch_batches(10, 3, 2, 0)), torch.cat(batches))


def test_fewer_samples_than_a_batch_make_one_of_all():
    (batch,) = epoch_batches(4, 100, 0, 0)
    assert batch.sort().values.tolist() == [0, 1, 2, 3]


def test_a_stream_gives_each_view_of_each_sample():
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 2)

    def shaken(images, draws):
        return images.float() + draws.uniform().view(-1, 1, 1, 1) / 2

    found = list(stream(Resident(pixels), 4, [lambda images, _: images, shaken], seed=3, epoch=1))
    assert len(found) == 2
    for index, (plain, shaky) in found:
        assert torch.equal(plain[:, 0, 0, 0], index.to(torch.uint8))
        torch.testing.assert_close(shaky[:, 0, 0, 0], index + Draws(3, 1, index, stream=1).uniform() / 2)
    (last,) = stream(Resident(pixels), 4, [shaken], seed=3, epoch=1, start=1)
    assert torch.equal(last[0], found[1][0])


@pytest.mark.parametrize(
    ("budget", "per_epoch", "passes", "steps"),
    [
        (1000, 7, 10, 100),
        (1000, 7, 400, 2),
        (5, 7, 100, 1),
        ("3 epochs", 7, 10, 21),
        ("0.5 epochs", 7, 10, 4),
        ("1 epoch", 7, 1, 7),
    ],
)
def test_steps_that_a_budget_buys(budget, per_epoch, passes, steps):
    assert steps_of(budget, per_epoch, passes) == steps


@pytest.mark.parametrize("budget", ["12", "12 hours", "epochs", "many epochs", "nan epochs", "inf epochs"])
def test_a_bad_budget_is_told_what_to_write(budget):
    with pytest.raises(BenchError, match="neither a number of encoder passes nor like"):
        steps_of(budget, 7, 1)


class Task:
    """A regression with dropout, momentum, a moving average and an epoch's own state."""

    def __init__(self, folder, stop=-1):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.average = torch.zeros(4)
        self.marks = torch.zeros(1)
        self.optimizer = sgd(self.net, 0.003, 0.9, 1e-3, nesterov=True)
        self.stop, self.steps, self.epochs = stop, [], []
        self.session = Session(folder, seed=5, device=torch.device("cpu"), cache=None)
        self.x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))

    def update(self, done, index):
        if done == self.stop:
            raise StopError
        batch = self.x[index]
        loss = (self.net(batch) - batch.sum(1, keepdim=True) + 0.1 * torch.randn(())).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.mul_(0.9).add_(batch.mean(0) * self.marks)
        self.steps.append(done)
        return {"loss": loss}

    def begin(self, epoch):
        self.epochs.append(epoch)
        self.marks += epoch + 1

    def run(self, total=23):
        descend(
            self.session,
            total=total,
            per_epoch=4,
            state={
                "net": self.net,
                "optimizer": self.optimizer,
                "average": self.average,
                "marks": self.marks,
            },
            batches=lambda epoch, first: epoch_batches(20, 5, 5, epoch, first),
            update=self.update,
            begin_epoch=self.begin,
            end_epoch=lambda epoch: self.epochs.append(-epoch - 1),
        )
        return [*(p.detach().clone() for p in self.net.parameters()), self.average, self.marks]


@pytest.mark.parametrize("stop", [1, 4, 6, 21])
@pytest.mark.parametrize("often", [True, False])
def test_an_interrupted_descent_ends_as_the_undisturbed_one(tmp_path, monkeypatch, stop, often):
    if often:  # save after every step, not only every five minutes
        monkeypatch.setenv("BENCH_CHECKPOINT", "0")
    whole = Task(tmp_path / "whole").run()
    with pytest.raises(StopError):
        Task(tmp_path / "cut", stop).run()
    again = Task(tmp_path / "cut")
    resumed = again.run()
    assert again.steps[0] == (stop if often else 0)
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)


def test_a_finished_descent_is_not_run_again(tmp_path):
    first = Task(tmp_path).run()
    again = Task(tmp_path)
    for a, b in zip(first, again.run(), strict=True):
        assert torch.equal(a, b)
    assert again.steps == []


def test_epochs_begin_and_end_in_turn(tmp_path):
    task = Task(tmp_path)
    task.run(total=10)
    assert task.epochs == [0, -1, 1, -2, 2]
    assert task.steps == list(range(10))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    task = Task(tmp_path)
    task.x[:] = math.inf
    with pytest.raises(
        DivergedError, match=r"loss is nan at step 20: the training diverged \(try a smaller lr\)"
    ):
        task.run()


def test_a_diverged_state_is_never_saved(tmp_path):
    task = Task(tmp_path)
    task.x[:] = math.inf
    with pytest.raises(DivergedError):
        task.run(total=3)
    assert not task.session.checkpoint_file.exists()


def test_sgd_takes_only_what_is_to_be_trained():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(requires_grad=False)
    groups = sgd(net, 0.1, 0.9, 1e-4, nesterov=False).param_groups
    assert [len(g["params"]) for g in groups] == [2]
    assert (groups[0]["momentum"], groups[0]["weight_decay"], groups[0]["nesterov"]) == (0.9, 1e-4, False)


def test_batch_norms_statistics_are_the_plain_average_over_batches():
    norm = nn.BatchNorm1d(3, momentum=0.1)
    net = nn.Sequential(nn.Identity(), norm).eval()
    norm.running_mean += 7  # what was there before does not count
    batches = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * n for n in (8, 16, 32)]
    estimate_batch_norm(net, net, batches)
    arrays = [b.numpy().astype(np.float64) for b in batches]
    np.testing.assert_allclose(norm.running_mean, np.mean([a.mean(0) for a in arrays], 0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, np.mean([a.var(0, ddof=1) for a in arrays], 0), rtol=1e-5)
    assert norm.momentum == 0.1
    assert not net.training
