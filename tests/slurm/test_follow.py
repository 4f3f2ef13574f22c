"""Who waits for a suite is told what SLURM says of its jobs, and waits for none that cannot come."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.launch import Places
from bench.records import BenchError
from bench.slurm import cluster, follow, ledger, sweeping
from bench.slurm.jobs import JobState

HELD = JobState("PENDING", "launch failed requeued held", queued=True)


def view(word, reason=""):
    return ledger.View(None, 0, "1", JobState(word, reason), {})


def submission(folder):
    manifest = {"suite": "toy", "created": 0.0, "packs": [{"a": ["b"]}], "arrays": []}
    return ledger.Submission(folder, manifest)


def test_states_are_counted_with_their_reasons():
    views = [view("PENDING", "JobHeldAdmin"), view("RUNNING"), view("RUNNING"), view("PENDING", "Priority")]
    assert follow._words(views) == "2 RUNNING, 1 PENDING (JobHeldAdmin), 1 PENDING (Priority)"


def test_a_job_that_slurm_was_not_asked_about_is_not_counted():
    assert follow._words([ledger.View(None, 0, "", None, {})]) == ""


def test_without_a_terminal_a_line_says_why_jobs_wait(capsys):
    with follow._Lines() as show:
        show(0, 3, "")
        show(0, 3, "3 PENDING (Resources)")  # within ten seconds: not yet
        show(3, 3, "")
    assert capsys.readouterr().err == "[0/3] jobs over\n[3/3] jobs over\n"
    lines = follow._Lines()
    lines.show(0, 3, "3 PENDING (Resources)")
    assert capsys.readouterr().err == "[0/3] jobs over: 3 PENDING (Resources)\n"


@pytest.mark.parametrize("reason", ["launch failed requeued held", "launch_failed_requeued_held"])
def test_a_job_that_no_node_could_launch_is_dead(reason):
    assert view("PENDING", reason).word == "dead"


@pytest.mark.parametrize("reason", ["JobHeldUser", "JobHeldAdmin", "BeginTime", "Resources", ""])
def test_a_job_that_waits_is_not(reason):
    assert view("PENDING", reason).word == "queued"


def test_a_held_job_that_may_not_be_canceled_is_closed_all_the_same(tmp_path, monkeypatch):
    """A colleague's, in a shared folder."""

    def refuse(jobs):
        raise BenchError("scancel: Access/permission denied")

    monkeypatch.setattr(cluster, "cancel", refuse)
    one = ledger.View(submission(tmp_path), 0, "7", HELD, {})
    assert "could not be launched" in sweeping._bury(one, Places(*[tmp_path] * 4))
    monkeypatch.setattr(ledger, "submissions", lambda _: [one.submission])
    monkeypatch.setattr(ledger, "views", lambda _: [one])
    sweeping.sweep(tmp_path, Places(*[tmp_path] * 4))
    assert ledger.exits(one.submission) == {0}


@pytest.mark.parametrize(("job", "state"), [("", None), ("7", HELD)], ids=["no job", "held"])
def test_what_cannot_come_is_not_waited_for(tmp_path, monkeypatch, job, state):
    one = ledger.View(submission(tmp_path), 0, job, state, {})
    monkeypatch.setattr(follow, "LOOK", 0.0)
    monkeypatch.setattr(follow, "ASK", -1.0)
    asked = []

    def views(runs):
        asked.append(runs)
        assert len(asked) < 3, "it waits"
        return [one]

    monkeypatch.setattr(ledger, "views", views)
    watched = SimpleNamespace(places=SimpleNamespace(runs=Path("runs")))
    follow._until_over([one], watched, lambda *_: None)
    assert len(asked) == 1
