"""What bench doctor finds: without SLURM, with commands that print what real ones printed, on a real cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.slurm import doctor
from bench.slurm.doctor import Finding


def by_name(findings):
    return {one.name: one for one in findings}


def test_lines_are_plain_text():
    findings = [Finding("a", True, "well"), Finding("longer", False, "ill"), Finding("b", None, "")]
    assert doctor.lines(findings) == ["ok  a       well", "NO  longer  ill", "-   b"]
    assert doctor.lines([]) == []


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (only,) = doctor._slurm(tmp_path / "runs", probe=True)
    assert (only.name, only.ok) == ("SLURM", None)
    assert "bench run does not" in only.text
    assert not (tmp_path / "runs").exists()


def test_a_broken_slurm_is_a_finding(tmp_path, monkeypatch):
    for name in ("sbatch", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'error: no conf' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = by_name(doctor._slurm(tmp_path, probe=True))
    assert found["commands"].ok is False
    assert found["controller"] == Finding("controller", False, "scontrol: error: no conf")


def test_what_a_node_sees_of_the_folder(tmp_path):
    assert doctor.on_node(tmp_path / "elsewhere")["word"] == ""
    (tmp_path / "here").write_text("word")
    said = doctor.on_node(tmp_path)
    assert said["word"] == "word"
    assert len(said["milliseconds"]) == 5
    assert (tmp_path / "there").exists()


def test_the_folder_is_shared_slow_or_another_one(tmp_path):
    said = {"word": tmp_path.name, "node": "n1", "milliseconds": [1.0, 2.0, 900.0]}
    (tmp_path / "there").write_text("x")
    (well,) = doctor._shared(tmp_path, tmp_path, said)
    assert well.ok
    assert "2.0 ms" in well.text
    (slow,) = doctor._shared(tmp_path, tmp_path, {**said, "milliseconds": [80.0]})
    assert slow.ok is None
    assert "slow" in slow.text
    (other,) = doctor._shared(tmp_path, tmp_path, {**said, "word": ""})
    assert other.ok is False
    assert "choose --runs on a shared disk" in other.text


def test_what_was_made_for_the_look_goes_again(tmp_path):
    with doctor._meeting_point(tmp_path / "a" / "b") as place:
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


@pytest.mark.slow
@pytest.mark.slurm
def test_a_real_cluster(slurm, home, monkeypatch):
    slurm(accounting=False)
    digits = doctor._dataset("digits", home / "data")
    monkeypatch.setattr(doctor, "_data", lambda _: [digits])  # others are drawn first, which takes long
    found = by_name(doctor.examine(home / "runs", home / "data"))
    for name in (
        "commands",
        "controller",
        "arrays",
        "partition bench",
        "nodes",
        "Python on nodes",
        "runs folder",
    ):
        assert found[name].ok, found[name]
    assert found["accounting"].ok is None
    assert "gpu:2" in found["GPUs on nodes"].text
    assert found["torch on a GPU node"].ok is False or "sees" in found["torch on a GPU node"].text
    assert {"GPUs here", "faiss", "data digits"} <= set(found)
    assert not (home / "runs").exists()
    monkeypatch.setattr(sys, "executable", "/no such/python")
    missing = by_name(doctor._nodes(home / "runs", gpus=False))
    assert missing["Python on nodes"].ok is False
    assert "/no such/python" in missing["Python on nodes"].text
    assert not (home / "runs").exists()
