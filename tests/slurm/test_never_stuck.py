"""No setting, death or limit of a site makes submit refuse for good: with a made-up SLURM that says what real ones say."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass, field

import pytest

from bench import artifacts, store
from bench.launch import Places
from bench.planning import plan
from bench.planning.suite import load
from bench.records import BenchError
from bench.slurm import cluster, ledger, resources, submission
from bench.slurm.cluster import Limits, Node, Partition
from bench.slurm.jobs import JobState
from bench.slurm.supervisor import Beat, Crew, Event

FULL = (
    "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS "
    "policy (job submit limit, user's size and/or time limits)\n"
)
NO_NODE = "sbatch: error: Batch job submission failed: Requested node configuration is not available\n"
MEMORY = (
    "sbatch: error: Memory specification can not be satisfied\n"
    "sbatch: error: Batch job submission failed: Requested node configuration is not available\n"
)
NODES = tuple(Node(f"node{n}", frozenset({"main"}), 16000, "idle") for n in (1, 2))
SITE = Limits(1001, accounting=True, partitions=(Partition("main", default=True),), nodes=NODES)


@dataclass
class Slurm:
    """Takes so many jobs; refuses what ``refuses`` says of the arguments."""

    places: int = 1000
    refuses: object = lambda _: ""
    taken: list = field(default_factory=list)
    asked: int = 0
    says: int = 0  # of the user's associations

    def run(self, *words, text="", **_):
        if words[0] == "sacctmgr":
            return f"{self.says}\n" if self.says else "\n"
        if words[0] == "squeue":
            return "".join(f"{n}\n" for n in range(sum(count for count, *_ in self.taken)))
        if words[0] != "sbatch":
            return ""
        self.asked += 1
        array = next((w for w in words if w.startswith("--array=0-")), "--array=0-0%1")
        count = int(array.removeprefix("--array=0-").partition("%")[0]) + 1
        said = self.refuses(words) or (FULL if sum(c for c, *_ in self.taken) + count > self.places else "")
        if said:
            raise cluster.SlurmError("sbatch: refused", said)
        self.taken.append((count, words, text))
        return f"{len(self.taken)}\n"


@pytest.fixture
def slurm(monkeypatch):
    one = Slurm()
    monkeypatch.setattr(cluster, "run", one.run)
    monkeypatch.setattr(cluster, "limits", lambda: SITE)
    monkeypatch.setattr(ledger, "views", lambda runs, **_: alive(runs, one))
    return one


def alive(runs, slurm):
    """All that was taken is pending, unless a test closed it."""
    found = []
    for one in ledger.submissions(runs):
        over = ledger.exits(one)
        for index in range(len(one.manifest["packs"])):
            if index not in over:
                job = one.jobs.get(str(index), "")
                beat = artifacts.read_json(one.file("beats", index)) or {}
                found.append(ledger.View(one, index, job, JobState("PENDING", "", queued=True), beat))
    return found


@pytest.fixture
def submit(home, monkeypatch):
    """Submits a suite; gives what came of it, and its rows."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    places = Places(home / "runs", home / "results", home / "data", home / "cache")

    def go(path, *, again=False):
        loaded = load(str(path))
        planned = plan.cells(loaded)
        try:
            sent = submission.submit(planned, resources.rules(loaded), places, again=again)
        except BenchError as error:
            sent = error
        return sent, store.collect("toy", planned, places.runs)

    go.places = places
    return go


def status_of(submit, path, **facts):
    """As if the first training of a suite had ended like this."""
    training = plan.cells(load(str(path)))[0].cell.training
    files = artifacts.folder(submit.places.runs, training)
    artifacts.write_json(files.status, facts)
    return artifacts.training_id(training)


ONE_A_JOB = "[methods]\nwalker = {}\n[slurm]\npack = 0\n"


# ---- a full queue --------------------------------------------------------------------------------


def test_of_an_array_above_the_limit_as_much_is_sent_as_has_a_place(suite, slurm, submit):
    slurm.places = 5
    path = suite(ONE_A_JOB, top="seeds = 16")
    sent, _ = submit(path)
    assert (sent.jobs, sent.cells, sent.waiting, dict(sent.refused)) == (5, 5, 11, {})
    assert sum(count for count, *_ in slurm.taken) == 5
    assert slurm.asked < 12
    firsts = [text.partition("bench.slurm.supervisor ")[2].split()[1] for _, _, text in slurm.taken]
    assert firsts == ["0", "4"]  # of 4 and of 1: each begins where the last one ended
    again, _ = submit(path)
    assert (again.jobs, again.waiting, again.draft.owned) == (0, 11, 5)
    slurm.places = 16
    rest, _ = submit(path)
    assert (rest.jobs, rest.waiting) == (11, 0)
    owned = [
        name
        for one in ledger.submissions(submit.places.runs)
        for pack in one.manifest["packs"]
        for name in pack
    ]
    assert len(owned) == len(set(owned)) == 16


def test_what_has_no_place_is_not_even_written(suite, slurm, submit, monkeypatch):
    monkeypatch.setattr(
        cluster, "limits", lambda: Limits(1001, accounting=True, enforced="associations,limits")
    )
    slurm.places = slurm.says = 3
    sent, _ = submit(suite(ONE_A_JOB, top="seeds = 16"))
    assert (sent.jobs, sent.waiting, slurm.asked) == (3, 13, 1)
    (one,) = ledger.submissions(submit.places.runs)
    assert len(one.manifest["packs"]) == 3
    again, _ = submit(suite(ONE_A_JOB, top="seeds = 16"))
    assert (again.jobs, again.waiting, slurm.asked) == (0, 13, 2)


def test_hours_are_told_by_account(suite, slurm, bench):
    table = "[slurm]\ngpus = 'a100:4'\ncpus = 8\naccount = 'lab'\npack = 0\n[slurm.methods.slow]\naccount = 'other'\ngpus = 0"
    path = suite(
        "[methods]\nwalker = {}\nslow = {use = 'walker', lr = 0.3}\n" + table, top="seeds = 3\nminutes = 180"
    )
    told = bench("submit", path, "--dry-run").out
    # 120 * 180 / 6 seconds a cell: an hour each
    assert "about 12.00 GPU-hours, 24.00 core-hours of account lab" in told
    assert "about 0.00 GPU-hours, 24.00 core-hours of account other" in told


def test_a_site_without_arrays_gets_jobs_one_by_one(suite, slurm, submit, monkeypatch):
    monkeypatch.setattr(cluster, "limits", lambda: Limits(0, accounting=False))
    sent, _ = submit(suite(ONE_A_JOB, top="seeds = 3"))
    assert sent.jobs == 3
    assert [count for count, *_ in slurm.taken] == [1, 1, 1]
    assert not any(word.startswith("--array") for _, words, _ in slurm.taken for word in words)


def test_followers_of_a_part_are_sent_with_it(suite, slurm, submit):
    path = suite(
        ONE_A_JOB + "[slurm.protocols.large]\ncpus = 1",
        top="seeds = 4",
        protocols="norms = {}\nlarge = {use = 'norms', factor = 3}",
    )
    slurm.places = 5
    sent, _ = submit(path)
    assert [count for count, *_ in slurm.taken] == [4, 1]
    assert (sent.cells, sent.waiting) == (5, 3)


# ---- what will not be taken ----------------------------------------------------------------------


def test_what_is_refused_ends_as_rows_with_the_reason_and_the_rest_goes_on(suite, slurm, submit):
    slurm.refuses = lambda words: MEMORY if "--mem=20480M" in words else ""
    path = suite(
        "[methods]\nwalker = {}\nslow = {use = 'walker', lr = 0.3}\n[slurm.methods.slow]\nmem = '20G'"
    )
    sent, rows = submit(path)
    assert (sent.jobs, len(sent.refused)) == (1, 1)
    found = {row["label"]: (row["status"], row["reason"]) for row in rows}
    assert found["walker"] == ("pending", "")
    assert found["slow"][0] == "failed"
    assert "sbatch refused: Memory specification can not be satisfied" in found["slow"][1]
    slurm.refuses = lambda _: ""
    sent, rows = submit(path)  # the site or the suite was mended
    assert (sent.jobs, {row["status"] for row in rows}) == (1, {"pending"})


def test_where_all_is_refused_it_is_told_and_leaves_nothing_open(suite, slurm, submit, home):
    slurm.refuses = lambda _: NO_NODE
    sent, rows = submit(suite(ONE_A_JOB, top="seeds = 3"))
    assert "sbatch refused: Batch job submission failed: Requested node configuration" in str(sent)
    assert {row["status"] for row in rows} == {"failed"}
    assert [p.name for p in (home / "runs").iterdir()] == [".slurm"]
    assert ledger.submissions(home / "runs") == []


def test_memory_is_doubled_up_to_the_largest_node_and_then_given_up(suite, slurm, submit):
    path = suite(ONE_A_JOB + "mem = '10G'", top="seeds = 2")
    name = status_of(submit, path, status="oom", reason="job 7 ran out of memory", attempt=1)
    sent, _ = submit(path)
    memory = [next(w for w in words if w.startswith("--mem=")) for _, words, _ in slurm.taken]
    assert sorted(memory) == ["--mem=10240M", "--mem=16000M"]  # 20 G are nowhere
    ledger.close_all((view, "dead", "x") for view in ledger.views(submit.places.runs))
    artifacts.merge_json(submit.places.runs / name / "status.json", {"attempt": 2})
    slurm.taken.clear()
    sent, rows = submit(path)
    assert [reason for _, reason in sent.draft.given_up] == [
        "out of memory with 15.6 GB: no node here has more"
    ]
    assert [count for count, *_ in slurm.taken] == [1]  # the other one goes on
    assert (rows[0]["status"], rows[0]["reason"]) == ("oom", sent.draft.given_up[0][1])
    ledger.close_all((view, "dead", "x") for view in ledger.views(submit.places.runs))
    sent, _ = submit(path, again=True)
    assert sent.jobs == 2  # who asks for it gets it once more


@pytest.mark.parametrize(
    ("state", "avoided"), [("down", True), ("idle", False), ("alloc", False), ("drain*", True)]
)
def test_a_node_that_failed_is_avoided_until_it_is_up_again(
    suite, slurm, submit, monkeypatch, state, avoided
):
    site = Limits(9, accounting=True, nodes=(Node("node1", frozenset(), 16000, state), NODES[1]))
    monkeypatch.setattr(cluster, "limits", lambda: site)
    path = suite(ONE_A_JOB)
    status_of(submit, path, status="killed", reason="x", attempt=1, node="node1")
    submit(path)
    ((_, words, _),) = slurm.taken
    assert ("--exclude=node1" in words) == avoided


def test_a_node_to_avoid_is_forgotten_where_nothing_else_is_left(suite, slurm, submit, monkeypatch):
    monkeypatch.setattr(cluster, "limits", lambda: Limits(9, accounting=True))
    slurm.refuses = lambda words: NO_NODE if any(w.startswith("--exclude=") for w in words) else ""
    path = suite(ONE_A_JOB)
    status_of(submit, path, status="killed", reason="x", attempt=1, node="node1")
    sent, _ = submit(path)
    assert sent.jobs == 1


# ---- deaths that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "saved", "attempts"),
    [
        (JobState("PREEMPTED", "", "node1", 0, 15), False, 0),
        (JobState("FAILED", "", "node1", 75), True, 0),  # a pause that SLURM would not requeue
        (JobState("FAILED", "", "node1", 75), False, 1),  # a time slice in which nothing was saved
        (JobState("FAILED", "", "node1", 137, 9), False, 1),
        (JobState("PENDING", "PartitionTimeLimit", queued=True), False, 0),
    ],
)
def test_what_befell_a_job_counts_where_it_is_its_own(
    suite, slurm, submit, monkeypatch, state, saved, attempts
):
    path = suite(ONE_A_JOB)
    submit(path)
    (view,) = ledger.views(submit.places.runs)
    beat = {"time": time.time(), "running": [], "workers": 1, "saved": saved}
    if state.word != "PENDING":
        artifacts.write_json(view.submission.file("beats", 0), beat)
    gone = ledger.View(view.submission, 0, view.job, state, beat if state.word != "PENDING" else {})
    monkeypatch.setattr(
        ledger, "views", lambda *_, **__: [] if 0 in ledger.exits(view.submission) else [gone]
    )
    sent, _ = submit(path)
    assert len(sent.swept.dead) == 1
    assert sent.jobs == 1  # it is tried again at once
    tried = [json.loads(p.read_text())["attempt"] for p in submit.places.runs.glob("*/status.json")]
    assert tried == [1] * attempts


def test_time_in_which_the_job_was_suspended_is_no_silence(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    crew, killed = Crew(1, 0, stall=60), []
    task = object()
    crew.busy = {0: task}
    monkeypatch.setattr(crew, "kill", lambda _, outcome=None: killed.append(outcome))
    for gap in [0.5] * 60 + [3600] + [0.5] * 50:
        now[0] += gap
        crew.watch(Event("tick", task), None)
    assert not killed
    for _ in range(40):
        now[0] += 0.5
        crew.watch(Event("tick", task), None)
    assert killed[0]["status"] == "timeout"


@pytest.mark.parametrize("word", ["SUSPENDED", "STOPPED"])
def test_a_job_that_is_suspended_is_called_so(word):
    assert ledger.View(None, 0, "1", JobState(word, "", queued=True), {}).word == "suspended"


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EPERM, "ask its owner"), (errno.ESTALE, "try again later")],
)
def test_a_heartbeat_may_fail_and_the_advice_fits_the_error(
    submit, home, monkeypatch, capsys, number, advice
):
    one = ledger.Submission(home, {})
    beat = Beat(one, 0, 1, submit.places)

    def refuse(_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        beat.write(force=True)
    assert advice in capsys.readouterr().err
    beat.write(force=True)
    assert json.loads(one.file("beats", 0).read_text())["starts"] == 1


# ---- what cannot be, told when it is planned -----------------------------------------------------


def test_processes_without_cpus_are_refused_when_planned(suite, slurm, submit):
    path = suite("[methods]\nnapper = {}\nsupervised = {}\n[slurm]\nnodes = 2\ncpus = 1", top="processes = 4")
    sent, _ = submit(path)
    assert "nodes = 2, cpus = 1: 4 processes of supervised with 1 threads each need 2 CPUs on a node" in str(
        sent
    )
    assert not slurm.taken


def test_a_method_that_cannot_distribute_gets_one_node_and_dry_run_says_so(suite, slurm, submit, bench):
    path = suite("[methods]\nnapper = {}\n[slurm]\nnodes = 2\ncpus = 1", top="processes = 2")
    told = bench("submit", path, "--dry-run")
    assert "napper: one node in place of 2" in told.out
    submit(path)
    ((_, words, _),) = slurm.taken
    assert "--nodes=1" in words


def test_the_path_of_runs_is_the_one_that_was_given(suite, slurm, submit, home, bench, monkeypatch):
    """Its target may be called otherwise on the nodes."""
    (home / "real" / "deep").mkdir(parents=True)
    (home / "link").symlink_to(home / "real")
    monkeypatch.setenv("PWD", str(home / "link" / "deep"))
    monkeypatch.chdir(home / "link" / "deep")
    done = bench("submit", suite(), "--runs", "runs")
    assert done.code == 0, done.err
    ((_, words, text),) = slurm.taken
    assert f"bench.slurm.supervisor {home / 'link' / 'deep' / 'runs'}/" in text
    assert f"--chdir={home / 'link' / 'deep'}" in words
    (one,) = ledger.submissions(home / "real" / "deep" / "runs")
    assert ledger.pack(one, 0)["places"]["runs"] == str(home / "link" / "deep" / "runs")
    monkeypatch.setenv("PWD", "/nowhere")  # of a shell that went elsewhere
    assert artifacts.as_given(home / "x") == home / "x"
    assert artifacts.as_given(artifacts.Path("x")) == home / "real" / "deep" / "x"


def test_cancel_adds_one_file(suite, slurm, submit, home, bench):
    path = suite(ONE_A_JOB, top="seeds = 20")
    submit(path)
    before = {p for p in (home / "runs").rglob("*") if p.is_file()}
    assert "canceled 20 jobs" in bench("cancel", path).out
    new = {p.name for p in (home / "runs").rglob("*") if p.is_file()} - {p.name for p in before}
    assert new == {"over.json"}


@pytest.mark.slow
def test_a_login_node_without_torch_submits(suite, home, bench_process):
    """What units are is known from elsewhere; whether they like their settings is asked in the job."""
    says = {
        "scontrol": "echo 'MaxArraySize = 1001'",
        "sinfo": "",
        "sbatch": "/bin/cat >/dev/null; echo 7",
        "squeue": "",
        "sacct": "",
    }
    for folder in ("bin", "bare/torch"):
        (home / folder).mkdir(parents=True)
    for name, script in says.items():
        (home / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (home / "bin" / name).chmod(0o755)
    (home / "bare" / "torch" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\")"
    )
    path = suite("[methods]\nrotation = {}", data='dataset = "digits"', protocols="linear_probe = {}")
    path.write_text(path.read_text().replace('"dot_net"', '"alexnet_small"'))
    env = {
        "PATH": f"{home / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": f"{home / 'bare'}:{os.environ['PYTHONPATH']}",
    }
    done = bench_process("submit", path, **env)
    assert done.code == 0, done.err
    assert "submitted 1 as 1 jobs" in done.err
