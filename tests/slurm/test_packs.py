"""Work into jobs: by measured duration, by what is asked for, never more than an array may hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import artifacts, launch
from bench.launch import InProcess, Places
from bench.planning import plan
from bench.planning.suite import load
from bench.slurm import packs, resources
from bench.slurm.packs import Tried
from bench.slurm.resources import Policy


@pytest.fixture
def made(home, suite, monkeypatch):
    """Works of a suite: its cells, rules and forecast."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))

    def make(tables="[methods]\nwalker = {}", *, tried=None, done=(), owners=None, **more):
        loaded = load(str(suite(tables, **more)))
        cells = plan.cells(loaded)
        rules = resources.rules(loaded)
        forecast = packs.Forecast(loaded, cells, home / "runs")
        ready = [p.cell.training for p in cells] if done == "all" else done
        return packs.works(cells, rules, forecast, tried or {}, owners or {}, ready), rules.policy

    return make


def tasks_of(arrays):
    return [[len(pack) for pack in array.packs] for array in arrays]


def test_equal_tasks_are_packed_up_to_a_slice_of_time(made):
    found, policy = made(top="seeds = 10\nminutes = 5")  # 10 cells, a minute of each of 2 workers
    assert {work.seconds for work, _ in found} == {60.0}
    assert tasks_of(packs.arrays(found, replace(policy, pack=2), 1000)) == [[4, 4, 2]]
    assert tasks_of(packs.arrays(found, replace(policy, pack=20), 1000)) == [[10]]
    assert tasks_of(packs.arrays(found, replace(policy, pack=0), 1000)) == [[1] * 10]


def test_an_array_holds_as_many_jobs_as_the_cluster_allows(made):
    found, policy = made(top="seeds = 1500")
    arrays = packs.arrays(found, replace(policy, pack=0), 1001)
    assert [len(a.packs) for a in arrays] == [1001, 499]
    assert len({w.task.training for a in arrays for w in a.works}) == 1500


def test_methods_that_ask_for_other_things_go_to_other_arrays(made):
    table = "[methods]\nwalker = {}\nslow = {use = 'walker', lr = 0.5}\n[slurm.methods.slow]\ngpus = 1"
    found, policy = made(table, top="seeds = 3")
    arrays = packs.arrays(found, policy, 1000)
    assert [(a.resources.gpus, sum(map(len, a.packs))) for a in arrays] == [(0, 3), (1, 3)]


def test_an_evaluation_that_asks_for_more_follows_its_training_element_by_element(made):
    found, policy = made(
        "[methods]\nwalker = {}\n[slurm.protocols.votes]\nmem = '9G'",
        top="seeds = 4",
        protocols="norms = {}\nvotes = {}",
    )
    lead, follower = packs.arrays(found, replace(policy, pack=0), 1000)
    assert (lead.follows, follower.follows, follower.resources.mem) == (None, 0, 9216)
    assert [[w.task.training for w in p] for p in lead.packs] == [
        [w.task.training for w in p] for p in follower.packs
    ]
    assert all(w.train for w in lead.works)
    assert not any(w.train for w in follower.works)


def test_a_model_that_is_there_is_only_judged(made):
    found, _ = made(top="seeds = 2", done="all")
    assert [(work.train, more) for work, more in found] == [(False, ()), (False, ())]


def test_what_ran_out_of_memory_gets_more_alone_and_elsewhere_than_where_a_node_failed(made):
    first = made(top="seeds = 3")[0][0][0].task.training
    found, policy = made(top="seeds = 3", tried={first: Tried(2, "oom", ("node3",))})
    (suspect, _), *_ = found
    assert (suspect.resources.mem, suspect.resources.avoid) == (4 * 4096, ("node3",))
    assert tasks_of(packs.arrays(found, policy, 1000)) == [[1], [2]]


def test_a_training_stands_behind_the_one_that_it_starts_from_in_the_same_job(made):
    found, policy = made(top="seeds = 3")
    (a, _), (b, _), (c, _) = found
    late = replace(a.task, training=replace(a.task.training, init=c.task.training))
    chain = [(c, ()), (b, ()), (replace(a, task=late), ())]
    (array,) = packs.arrays(chain, replace(policy, pack=0), 1000)
    assert [[w.task.training.seed for w in p] for p in array.packs] == [[2, 0], [1]]


def test_what_starts_from_another_keeps_its_own_resources(made):
    found, policy = made(top="seeds = 4")
    (a, _), (b, _), (c, _), (d, _) = found
    large = replace(a.resources, mem=3 * a.resources.mem)
    after = replace(b.task, training=replace(b.task.training, init=a.task.training))
    last = replace(c.task, training=replace(c.task.training, init=after.training))
    chain = [(a, ()), (replace(b, task=after, resources=large), ()), (replace(c, task=last), ()), (d, ())]
    lead, follower = packs.arrays(chain, replace(policy, pack=0), 1000)[:2]
    assert [[w.task.training.seed for w in p] for p in lead.packs] == [[0]]
    assert (lead.resources.mem, follower.resources.mem, follower.follows) == (a.resources.mem, large.mem, 0)
    assert [[w.task.training.seed for w in p] for p in follower.packs] == [[1, 2]]
    assert all(w.train for w in follower.works)


def test_jobs_wait_for_those_that_make_the_same_model(made):
    name = artifacts.training_id(made(top="seeds = 2")[0][0][0].task.training)
    found, policy = made(top="seeds = 2", owners={name: ("12_3",)})
    assert [a.after for a in packs.arrays(found, policy, 1000)] == [("12_3",), ()]


def test_durations_come_from_finished_trainings_that_are_alike(made, suite, home):
    path = suite(top="seeds = 2", protocols="norms = {}")
    places = Places(home / "runs", home / "results", home / "data", home / "cache")
    list(InProcess().run(launch.tasks(plan.cells(load(str(path))))[:1], places))
    status = next((home / "runs").glob("*/status.json"))
    artifacts.merge_json(status, {"train_seconds": 500.0})
    (_, (other, _)), _ = made(top="seeds = 2")
    assert other.seconds == pytest.approx(500, abs=5)


def test_wall_time_is_shared_by_the_workers_of_a_job(made):
    found, _ = made(top="seeds = 4\nminutes = 2")
    pack = [work for work, _ in found]
    assert packs.wall_seconds(pack) == pytest.approx(120)
    assert Policy().pack == 20


def test_the_first_jobs_take_along_what_follows_them(made):
    found, policy = made(
        "[methods]\nwalker = {}\nslow = {use = 'walker', lr = 0.3}\n[slurm]\ncpus = 1\n[slurm.methods.slow]\ncpus = 2\n"
        "[slurm.protocols.large]\nmem = '9G'",
        top="seeds = 4",
        protocols="norms = {}\nlarge = {use = 'norms', factor = 3}",
    )
    whole = packs.arrays(found, replace(policy, pack=0), 1000)
    assert [(len(a.packs), a.follows) for a in whole] == [(4, None), (4, 0), (4, None), (4, 2)]
    assert [(len(a.packs), a.follows) for a in packs.first(whole, 6)] == [
        (4, None),
        (4, 0),
        (2, None),
        (2, 2),
    ]
    assert [(len(a.packs), a.follows) for a in packs.first(whole, 3)] == [(3, None), (3, 0)]
    assert packs.first(whole, 8) == whole
