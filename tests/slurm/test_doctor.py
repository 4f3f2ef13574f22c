"""What bench doctor finds: without SLURM, with commands that print what real ones printed, on a real cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.slurm import doctor, probe, resources, site
from bench.slurm.cluster import Limits, Node, Partition
from bench.slurm.doctor import Finding
from bench.slurm.resources import Resources


def by_name(findings):
    return {one.name: one for one in findings}


def test_lines_are_plain_text():
    findings = [Finding("a", True, "well"), Finding("longer", False, "ill"), Finding("b", None, "")]
    assert doctor.lines(findings) == ["ok  a       well", "NO  longer  ill", "-   b"]
    assert doctor.lines([]) == []


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (only,) = doctor._slurm(tmp_path / "runs", Resources(), look=True)
    assert (only.name, only.ok) == ("SLURM", None)
    assert "bench run does not" in only.text
    assert not (tmp_path / "runs").exists()


def test_a_broken_slurm_is_a_finding(tmp_path, monkeypatch):
    for name in ("sbatch", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'error: no conf' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = by_name(doctor._slurm(tmp_path, Resources(), look=True))
    assert found["commands"].ok is False
    assert found["controller"] == Finding("controller", False, "scontrol: error: no conf")


def test_what_a_node_sees_of_the_folder(tmp_path):
    assert probe.on_node(tmp_path / "elsewhere")["word"] == ""
    (tmp_path / "here").write_text("word")
    said = probe.on_node(tmp_path)
    assert said["word"] == "word"
    assert len(said["milliseconds"]) == 5
    assert (tmp_path / "there").exists()


def test_the_folder_is_shared_slow_or_another_one(tmp_path):
    said = {"word": tmp_path.name, "node": "n1", "milliseconds": [1.0, 2.0, 900.0]}
    (tmp_path / "there").write_text("x")
    (well,) = probe._shared(tmp_path, tmp_path, said)
    assert well.ok
    assert "2.0 ms" in well.text
    (slow,) = probe._shared(tmp_path, tmp_path, {**said, "milliseconds": [80.0]})
    assert slow.ok is None
    assert "slow" in slow.text
    (other,) = probe._shared(tmp_path, tmp_path, {**said, "word": ""})
    assert other.ok is False
    assert "choose --runs on a shared disk" in other.text


def test_what_was_made_for_the_look_goes_again(tmp_path):
    with probe._meeting_point(tmp_path / "a" / "b") as place:
        assert (place / "here").read_text() == place.name
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_here_or_missing(home):
    assert doctor._dataset("digits", Path("data")) == Finding("data digits", True, "whole")
    assert doctor._dataset("cifar10", Path("data")) == Finding("data cifar10", None, "not in data")
    folder = home / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_text("no pickle")
    assert doctor._dataset("cifar10", Path("data")).ok is False


def test_two_builds_of_faiss_are_told(monkeypatch):
    owners = {"faiss": ["faiss-cpu", "faiss-gpu"]}
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: owners)
    monkeypatch.setattr(doctor, "_ask_python", lambda _: {"version": "1", "gpu": True, "gpus": 0})
    found = doctor._faiss_here()
    assert found.ok is False
    assert "keep one" in found.text


MAIN = Partition("main", default=True, max_time_s=86400, preempt="REQUEUE", accounts="staff")
LAB = Partition("lab", accounts="lab", preempt="OFF")
SITE = Limits(
    0, accounting=False, partitions=(MAIN, LAB), nodes=(Node("n1", frozenset({"main", "lab"}), 3000, "idle"),),
    requeue=False, preempt="REQUEUE",
)  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "name", "ok", "text"),
    [
        ({}, "arrays", None, "jobs are sent one by one"),
        ({}, "requeue", None, "JobRequeue=0: jobs ask for it themselves"),
        ({}, "preemption", None, "saves, if it is told in time, and runs again by itself"),
        ({"partition": "lab"}, "preemption", True, "a job that runs is left alone"),
        ({}, "time", True, "jobs ask for 60 minutes"),
        ({"time": 2000}, "time", False, "never start: write time = 1440"),
        ({"time": 0}, "time", False, "ask for unlimited minutes and never start: write time = 1440"),
        (
            {},
            "memory",
            False,
            "jobs ask for 4096 MB and are refused: no node has it, write mem = 3000 or less",
        ),
        ({"mem": 2000}, "memory", True, "up to the 3000 MB of the largest node"),
        ({"partition": "benhc"}, "partition", False, "there is no 'benhc', every sbatch will be refused"),
        (
            {"account": "lab"},
            "account",
            False,
            "does not admit 'lab': write partition = 'lab', or account = one of staff",
        ),
    ],
)
def test_each_setting_of_a_site_says_what_it_does_and_what_to_write(asked, name, ok, text):
    found = by_name(site.findings(SITE, Resources(**asked)))[name]
    assert (found.ok, text in found.text) == (ok, True), found


def test_limits_of_associations_are_told(monkeypatch):
    printed = "staff||3|2||1-00:00:00|\nlab|lab||||||\n"
    monkeypatch.setattr(site.cluster, "run", lambda *_, **__: printed)
    found = by_name(site._associations(Resources(), "associations,limits"))
    assert found["account staff"].text == (
        "3 jobs at a time: larger arrays are sent in parts, the rest as places come free (--wait); "
        "2 of them run at once; at most 1-00:00:00 each: write no longer time"
    )
    (other,) = site._associations(Resources(account="foreign"), "associations")
    assert (other.ok, "write account = one of staff, lab" in other.text) == (False, True)


@pytest.mark.parametrize(("apart", "ok"), [(-3, True), (0, True), (4, True), (60, False), (-60, False)])
def test_a_clock_that_goes_wrong_is_told(apart, ok):
    found = probe._clocks({"node": "n1", "time": 1000.0 + apart}, 1000.0, 1001.0)
    assert found.ok == ok


def test_locks_that_do_not_reach_a_node_are_told(tmp_path):
    assert probe._locked(tmp_path) == "free"
    with probe.artifacts.lock(tmp_path):
        assert probe._locked(tmp_path) == "held"
    assert probe._locks({"locked": "held", "node": "n1"}).ok
    assert "do not reach the nodes" in probe._locks({"locked": "free", "node": "n1"}).text
    assert "(No locks available)" in probe._locks({"locked": "No locks available", "node": "n1"}).text


def test_what_jobs_ask_for_is_what_submit_asks_for(suite, home, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SBATCH_PARTITION", "slow")
    machine = home / "machine.toml"
    machine.write_text('partition = "lab"\nsetup = ["module load x"]')
    path = suite("[methods]\nwalker = {}\n[slurm]\npartition = 'suite'\ncpus = 7")
    found = resources.of_site(str(path), machine)
    assert (found.account, found.partition, found.cpus, found.setup) == ("mine", "lab", 7, ("module load x",))
    assert resources.of_site(str(path)).partition == "suite"
    assert resources.of_site(None).partition == "slow"


@pytest.mark.slow
def test_a_login_node_without_torch_is_told_and_the_look_goes_on(home, bench_process, monkeypatch):
    (home / "bare" / "torch").mkdir(parents=True)
    (home / "bare" / "torch" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\")"
    )
    path = f"{home / 'bare'}{os.pathsep}{os.environ['PYTHONPATH']}"
    done = bench_process("doctor", PYTHONPATH=path, PATH=str(home))
    assert "Traceback" not in done.err + done.out
    assert "No module named 'torch': jobs need it, planning only to read units that changed" in done.out
    assert "faiss" in done.out


@pytest.mark.slow
@pytest.mark.slurm
def test_a_real_cluster(slurm, home, monkeypatch):
    slurm(accounting=False)
    digits = doctor._dataset("digits", home / "data")
    monkeypatch.setattr(doctor, "_data", lambda _: [digits])  # others are drawn first, which takes long
    found = by_name(doctor.examine(home / "runs", home / "data", Resources(mem=2000, cpus=1)))
    for name in (
        "commands",
        "controller",
        "arrays",
        "partition bench",
        "nodes",
        "Python on nodes",
        "runs folder",
        "file locks",
        "clocks",
        "requeue",
        "time",
        "memory",
    ):
        assert found[name].ok, found[name]
    assert found["accounting"].ok is None
    assert "gpu:2" in found["GPUs on nodes"].text
    assert found["torch on a GPU node"].ok is False or "sees" in found["torch on a GPU node"].text
    assert {"GPUs here", "faiss", "data digits"} <= set(found)
    assert not (home / "runs").exists()
    monkeypatch.setattr(sys, "executable", "/no such/python")
    missing = by_name(probe.nodes(home / "runs", Resources(), gpus=False))
    assert missing["Python on nodes"].ok is False
    assert "/no such/python" in missing["Python on nodes"].text
    assert not (home / "runs").exists()
