"""Who waits for a suite is told what SLURM says of its jobs."""

from __future__ import annotations

from bench.slurm import follow, ledger
from bench.slurm.cluster import JobState


def view(word, reason=""):
    return ledger.View(None, 0, "1", JobState(word, reason), {})


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
