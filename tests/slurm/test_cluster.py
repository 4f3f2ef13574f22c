"""What SLURM says: with commands that print what real ones printed, and on a real cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bench.records import BenchError
from bench.slurm import cluster, jobs
from bench.slurm.jobs import JobState

DEAD = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
NO_JOB = "slurm_load_jobs error: Invalid job id specified\n"
OFF = "Slurm accounting storage is disabled\n"

KILLED = """\
JobId=5 JobName=a JobState=COMPLETED Reason=None
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901755 Nice=0 Account=(null) QOS=(null)
   JobState=FAILED Reason=NonZeroExitCode Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=137:0
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=node3
   BatchHost=node3
   Power=

"""
ARRAY = """\
JobId=9 ArrayJobId=9 ArrayTaskId=2,4-6%1 ArrayTaskThrottle=1 JobName=sbatch
   JobState=PENDING Reason=JobArrayTaskLimit Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   NodeList=(null)

JobId=10 ArrayJobId=9 ArrayTaskId=4 JobName=sbatch
   JobState=TIMEOUT Reason=TimeLimit Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:15
   NodeList=node1

"""
CONFIG = """\
Configuration data as of 2026-11-24T03:50:52
AccountingStorageType   = {accounting}
ClusterName             = bench
MaxArraySize            = 1001
MaxJobCount             = 20000
MinJobAge               = 300 sec
SchedulerParameters     = batch_sched_delay=0{more}
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at vm is UP
"""
PARTITIONS = """\
PartitionName=bench AllowGroups=ALL Default=YES QoS=N/A DefaultTime=00:10:00 MaxTime=UNLIMITED State=UP TotalCPUs=8 TotalNodes=4
PartitionName=long AllowGroups=ALL Default=NO QoS=N/A DefaultTime=NONE MaxTime=2-01:00:05 State=DOWN TotalCPUs=8 TotalNodes=4
"""


@pytest.fixture
def say(tmp_path, monkeypatch):
    """Puts a command on the PATH that prints something; tells how often it was called and with what."""
    places = tmp_path / "bin"
    places.mkdir()
    monkeypatch.setenv("PATH", str(places))
    calls = tmp_path / "calls"
    calls.touch()

    def put(name, out="", err="", code=0, seconds=0):
        (tmp_path / f"{name}.out").write_text(out)
        (tmp_path / f"{name}.err").write_text(err)
        script = places / name
        sleep = f"exec /bin/sleep {seconds}\n" if seconds else ""
        script.write_text(
            f'#!/bin/sh\necho "{name} $*" >>{calls}\n{sleep}/bin/cat {tmp_path}/{name}.out\n'
            f"/bin/cat {tmp_path}/{name}.err >&2\nexit {code}\n"
        )
        script.chmod(0o755)

    put("squeue")
    put("sacct", err=OFF, code=1)
    put("scontrol", err=NO_JOB, code=1)
    put("scancel")
    put.calls = lambda: calls.read_text().splitlines()
    return put


# ---- recorded ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "tasks"),
    [
        ("123", ["123"]),
        ("123_7", ["123_7"]),
        ("123_[5-7%4]", ["123_5", "123_6", "123_7"]),
        ("123_[1,3,7-9]", ["123_1", "123_3", "123_7", "123_8", "123_9"]),
        ("123_[0-9:3%1]", ["123_0", "123_3", "123_6", "123_9"]),
        ("123_[4]", ["123_4"]),
        ("123_[1-3,...]", ["123_1", "123_2", "123_3"]),
    ],
)
def test_ids_of_arrays_are_expanded(job, tasks):
    assert jobs.expand(job) == tasks


def test_the_queue_wins_over_old_records(say):
    say("squeue", "7_[3,5-6%2]|PENDING||JobArrayTaskLimit\n7_1|RUNNING|node2|None\n8|PENDING||BeginTime\n")
    say("sacct", "8|NODE_FAIL|0:0|node3\n8.batch|CANCELLED||node3\n8|PENDING|0:0|None assigned\n")
    found = jobs.states(["7_1", "7_5", "8", "7"])
    assert found["7_1"] == JobState("RUNNING", "", "node2", queued=True)
    assert found["7_5"] == JobState("PENDING", "JobArrayTaskLimit", queued=True)
    assert found["8"] == JobState("PENDING", "BeginTime", restarts=1, queued=True)
    assert found["7"].word == "RUNNING"
    assert all(state.alive and not state.dead for state in found.values())
    assert [line.split()[0] for line in say.calls()] == ["squeue", "sacct"]
    assert all(line.endswith("--jobs=7,8") for line in say.calls())


def test_records_tell_the_ends(say):
    say(
        "sacct",
        "1|COMPLETED|0:0|node1||2000M\n1.batch|COMPLETED|0:0|node1||\n"
        "2|FAILED|3:0|node1||2000M\n2.batch|FAILED|3:0|node1||\n"
        "3|FAILED|0:9|node2||2000M\n3.batch|CANCELLED|0:9|node2|3216K|\n"
        "5|FAILED|9:0|node3||2000M\n5.batch|FAILED|9:0|node3|10904K|\n5.0|CANCELLED|0:9|node3|1644K|\n"
        "7|FAILED|9:0|node4||100M\n7.batch|FAILED|9:0|node4|10724K|\n7.0|CANCELLED by 0|0:9|node4|177456K|\n"
        "8|FAILED|0:125|node4||100M\n8.batch|OUT_OF_MEMORY|0:125|node4|3K|\n"
        "9|CANCELLED by 1000|0:0|None assigned||2000M\n"
        "14|REQUEUED|0:0|node3||1M\n14.batch|CANCELLED|0:15|node3||\n14|TIMEOUT|0:0|node4||1M\n",
    )
    found = jobs.states(["1", "2", "3", "5", "7", "8", "9", "14"])
    assert found["1"] == JobState("COMPLETED", "", "node1", 0)
    assert found["2"] == JobState("FAILED", "exit code 3", "node1", 3)
    assert found["3"] == JobState("FAILED", "signal 9", "node2", 0, 9)
    assert found["5"] == JobState("FAILED", "signal 9", "node3", 137, 9)
    assert (found["7"].out_of_memory, found["8"].out_of_memory, found["5"].out_of_memory) == (
        True,
        True,
        False,
    )
    assert found["9"] == JobState("CANCELLED", "cancelled by 1000", "", 0)
    assert (found["14"].word, found["14"].restarts, found["14"].node) == ("TIMEOUT", 1, "node4")
    assert all(state.dead and not state.alive for state in found.values())


def test_a_task_of_its_own_wins_over_the_range_that_is_told_late(say):
    own = "1_0|COMPLETED|0:0|node1\n1_3|FAILED|1:0|node1\n"
    say("sacct", f"{own}1_[0-3%1]|CANCELLED by 0|0:0|None assigned\n")
    found = jobs.states(["1_0", "1_1", "1_3"])
    assert [state.word for state in found.values()] == ["COMPLETED", "CANCELLED", "FAILED"]
    assert [state.restarts for state in found.values()] == [0, 0, 0]
    say("scontrol", ARRAY)
    say("sacct", err=OFF, code=1)
    found = jobs.states(["9_4", "9_5"])
    assert found["9_4"] == JobState("TIMEOUT", "ran into its time limit", "node1", 0, 15)
    assert found["9_5"] == JobState("PENDING", "JobArrayTaskLimit")


def test_without_accounting_the_controller_remembers_for_a_while(say):
    say("squeue", err=NO_JOB, code=1)
    say("scontrol", KILLED)
    assert jobs.states(["5"]) == {"5": JobState("FAILED", "signal 9", "node3", 137, 9, 2)}
    say("scontrol", err=NO_JOB, code=1)
    state = jobs.states(["5"])["5"]
    assert (state.word, state.gone, state.alive, state.dead) == ("UNKNOWN", True, False, False)


@pytest.mark.parametrize("word", ["NODE_FAIL", "PREEMPTED", "REQUEUED"])
def test_what_may_return_is_dead_only_when_the_controller_has_it_no_more(say, word):
    say("sacct", f"5|{word}|0:0|node3\n")
    assert jobs.states(["5"])["5"].dead
    say("scontrol", KILLED.replace("=FAILED", "=PENDING"))
    assert jobs.states(["5"])["5"].alive
    say("squeue", err=DEAD, code=1)
    state = jobs.states(["5"])["5"]
    assert (state.word, state.alive, state.dead, state.gone) == ("UNKNOWN", False, False, False)


@pytest.mark.parametrize("record", ["5|RUNNING|0:0|node3\n", "5|PENDING|0:0|None assigned\n", ""])
def test_a_silent_controller_is_no_death(say, record):
    say("sacct", record)
    for silence in ({"err": DEAD, "code": 1}, {"seconds": 30}):
        say("squeue", **silence)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(cluster.run.__kwdefaults__, "timeout", 0.3)
            state = jobs.states(["5"])["5"]
        assert state == JobState("UNKNOWN", "SLURM does not answer")
    say("squeue")
    say("scontrol", err=DEAD, code=1)
    assert jobs.states(["5"])["5"] == JobState("UNKNOWN", "SLURM does not answer")


def test_a_record_that_is_final_needs_no_controller(say):
    say("squeue", err=DEAD, code=1)
    say("sacct", "5|FAILED|1:0|node3\n")
    assert jobs.states(["5"])["5"].dead


def test_nothing_asked_asks_nothing(say):
    assert jobs.states([]) == {}
    cluster.cancel([])
    assert say.calls() == []


def test_limits(say):
    with pytest.raises(BenchError, match="^scontrol: slurm_load_jobs error: Invalid job id specified$"):
        cluster.limits()
    config = CONFIG.format(accounting="accounting_storage/slurmdbd", more="")
    say("scontrol", config + PARTITIONS)
    found = cluster.limits()
    assert (found.max_array, found.accounting, found.max_jobs, found.min_job_age_s) == (
        1001,
        True,
        20000,
        300,
    )
    assert [(p.name, p.default_time_s, p.max_time_s, p.up) for p in found.partitions] == [
        ("bench", 600, 0, True),
        ("long", 0, 2 * 86400 + 3605, False),
    ]
    assert (found.partition().name, found.partition("long").name, found.partition("x")) == (
        "bench",
        "long",
        None,
    )
    say("scontrol", CONFIG.format(accounting="(null)", more=",max_array_tasks=200"))
    found = cluster.limits()
    assert (found.max_array, found.accounting) == (200, False)


def test_no_slurm_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="scontrol is not on this machine's PATH") as told:
        cluster.limits()
    assert "\n" not in str(told.value)
    assert jobs.states(["5"])["5"].word == "UNKNOWN"


def test_names_are_found_by_equality(say):
    odd = "a'; echo foo, ../x|y"
    say("squeue", f"12|{odd}\n12|{odd}\n9|{odd}\n13|a\n")
    say("sacct", f"8_3|{odd}\n8_[4-9]|{odd}\n7|b\n")
    assert cluster.find(odd) == ["8", "9", "12"]
    assert not any("echo foo" in line for line in say.calls())
    assert cluster.find("a") == ["13"]
    assert all("--name=a" in line for line in say.calls()[-2:])
    say("sacct", err=OFF, code=1)
    assert cluster.find("b") == []
    say("sacct", err="sacct: error: slurm_persist_conn_open: Connection refused", code=1)
    with pytest.raises(BenchError, match="sacct: error"):
        cluster.find("b")


def test_cancel_leaves_what_has_ended(say):
    cluster.cancel(["5", "6_1", "5"])
    assert say.calls() == ["scancel 5 6_1"]
    say("scancel", err="scancel: error: Kill job error on job id 5: Invalid job id specified", code=1)
    cluster.cancel(["5"])
    say("scancel", err=f"scancel: error: Kill job error on job id 5: {DEAD}", code=1)
    with pytest.raises(BenchError, match="Unable to contact"):
        cluster.cancel(["5"])


def test_settings_of_users_do_not_reshape_what_is_printed(say, tmp_path, monkeypatch):
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT", "SACCT_FORMAT"):
        monkeypatch.setenv(name, "odd")
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexec /usr/bin/env\n")
    printed = cluster.run("squeue")
    assert "odd" not in printed
    assert "SLURM_BITSTR_LEN=0" in printed


# ---- real --------------------------------------------------------------------------------------


def _reach(job, condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition(state := jobs.states([job])[job]):
        assert time.monotonic() < end, state
        time.sleep(0.2)
    return state


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("accounting", [True, False])
def test_states_of_real_jobs(slurm, accounting):
    live = slurm(accounting=accounting)
    limits = cluster.limits()
    assert (limits.max_array, limits.accounting) == (1001, accounting)
    assert limits.partition().name == "bench"
    assert limits.partition("urgent").default_time_s == 600
    good, bad = live.sbatch("true"), live.sbatch("exit 3")
    killed = live.sbatch("srun sleep 100", "--job-name=o'dd, name|x")
    oom = live.sbatch("srun python3 -c 'import time; x = bytearray(400 << 20); time.sleep(60)'", "--mem=100")
    array = live.sbatch("sleep 0.2", "--array=0-9,20-400:20%1")
    after = live.sbatch("true", f"--dependency=afterok:{bad}")
    _reach(killed, lambda state: state.word == "RUNNING")
    assert cluster.find("o'dd, name|x") == [killed]
    assert jobs.states([f"{array}_400"])[f"{array}_400"].word == "PENDING"
    assert _reach(good, lambda state: state.dead).word == "COMPLETED"
    assert _reach(bad, lambda state: state.dead).reason == "exit code 3"
    waits = _reach(after, lambda state: state.reason == "DependencyNeverSatisfied")
    assert waits.alive
    end = time.monotonic() + 20
    while not (pids := [p for p in live.tasks(killed) if Path(f"/proc/{p}/comm").read_text() == "sleep\n"]):
        assert time.monotonic() < end
    os.kill(pids[0], signal.SIGKILL)
    state = _reach(killed, lambda state: state.dead)
    assert (state.word, state.reason, state.exit_code) == ("FAILED", "signal 9", 137)
    # Without accounting only its .err tells; with it, ReqMem of a young cluster is "16?" for some seconds.
    _reach(oom, lambda state: state.dead and state.out_of_memory == accounting)
    cluster.cancel([array, after, good, "99999"])
    assert _reach(array, lambda state: state.dead).word in {"CANCELLED", "COMPLETED"}
    assert jobs.states(["99999"])["99999"].gone


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("accounting", [True, False])
def test_a_real_job_that_runs_again_is_alive_all_the_time(slurm, accounting):
    live = slurm(accounting=accounting)
    again, lost, shoved = (live.sbatch("sleep 60", "--requeue", f"--nodelist=node{n}") for n in (1, 2, 3))
    for job in (again, lost, shoved):
        live.wait_state(job, "RUNNING")
    live.preempt("node3", 1)
    live.requeue(again)
    live.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    seen: dict[str, set[str]] = {again: set(), lost: set(), shoved: set()}
    waited = {again, lost, *([shoved] if accounting else [])}  # preemption has its grace time: once is enough
    end = time.monotonic() + 30
    while not all("PENDING" in seen[job] for job in waited):
        found = jobs.states(seen)
        assert all(state.alive for state in found.values()), found
        for job, state in found.items():
            seen[job].add(state.word)
        assert time.monotonic() < end, seen
    if accounting:
        _reach(again, lambda state: state.restarts == 1)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("accounting", [True, False])
def test_a_real_controller_that_is_silent_makes_nothing_dead(slurm, accounting):
    live = slurm(accounting=accounting)
    job, done = live.sbatch("sleep 60"), live.sbatch("true")
    live.wait_state(job, "RUNNING")
    _reach(done, lambda state: state.dead)
    with live.frozen_controller(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(cluster.run.__kwdefaults__, "timeout", 1.0)
        found = jobs.states([job, done])
        assert (found[job].word, found[job].gone) == ("UNKNOWN", False)
        assert found[done].dead == accounting
        with pytest.raises(BenchError, match="did not answer within"):
            cluster.find("anything")
    live.stop_controller()  # killed hard it forgets what was submitted within the last seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cluster.run.__kwdefaults__, "timeout", 1.0)
        assert jobs.states([job])[job].word == "UNKNOWN"
    live.start_controller()
    assert _reach(job, lambda state: state.word != "UNKNOWN").alive


@pytest.mark.slow
@pytest.mark.slurm
def test_nodes_that_are_killed(slurm):
    live = slurm(accounting=False)
    orphan, victim = (live.sbatch("sleep 3", f"--nodelist=node{n}", "--no-requeue") for n in (1, 2))
    for job in (orphan, victim):
        live.wait_state(job, "RUNNING")
    end = time.monotonic() + 20
    while not (live.tasks(orphan) and live.tasks(victim)):
        assert time.monotonic() < end
    live.kill_slurmd("node1")
    live.kill_node("node2")
    assert live.tasks(orphan)
    assert live.steps("node1")
    assert not live.tasks(victim)
    assert not live.steps("node2")
    live.start_slurmd("node1")
    # A node that is back at once with a job of less than 10 s lost keeps it RUNNING for minutes.
    live.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    assert _reach(orphan, lambda state: state.dead).word == "COMPLETED"
    assert _reach(victim, lambda state: state.dead).word == "NODE_FAIL"


@pytest.mark.slow
@pytest.mark.slurm
def test_a_cluster_whose_tests_were_killed_is_swept_away(slurm):
    slurm(accounting=False)
    load = (
        "import importlib.util, os, sys\n"
        f"spec = importlib.util.spec_from_file_location('fixture', {str(Path(__file__).with_name('conftest.py'))!r})\n"
        "fixture = sys.modules['fixture'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(fixture)\n"
    )
    leave = "one = fixture.Cluster(fixture.Shape(accounting=False, nodes=1))\none.start()\none.sbatch('sleep 99')\n"
    tell = "print(one.dir, one.processes['slurmctld'].pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    left = subprocess.run(
        [sys.executable, "-c", load + leave + tell], capture_output=True, text=True, check=False
    )
    folder, pid = left.stdout.split()
    assert "slurmctld" in Path(f"/proc/{pid}/cmdline").read_text()
    subprocess.run([sys.executable, "-c", load + "fixture.sweep()"], check=True)
    assert not Path(folder).exists()
    with contextlib.suppress(FileNotFoundError):
        assert not Path(f"/proc/{pid}/cmdline").read_text()  # at most a zombie


@pytest.mark.slow
@pytest.mark.slurm
def test_a_new_cluster_leaves_the_tables_of_other_databases(slurm):
    with tempfile.NamedTemporaryFile(prefix="#sql-temptable-", suffix=".MAI") as table:
        slurm(nodes=1)  # a shape of its own: it is brought up here
        assert Path(table.name).exists()
