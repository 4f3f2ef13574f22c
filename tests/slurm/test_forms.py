"""What a user can say of a site: every form that sbatch reads, and the blocks of the documentation as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import bench
from bench.planning import plan
from bench.planning.suite import load
from bench.slurm import resources, sbatch, values
from bench.slurm.resources import Resources

PAGE = (Path(bench.__file__).parent / "slurm" / "README.md").read_text("utf-8")
BLOCKS = {
    b.partition("\n")[0].removeprefix("# "): b for b in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
}


@pytest.mark.parametrize(
    ("written", "minutes"),
    [
        ("90", 90), ("30:00", 30), ("2:00", 2), ("0:30", 1), ("2:00:00", 120), ("1-0", 1440), ("1-00", 1440),
        ("1-12:30", 2190), ("1-02:03:04", 1564), ("1d", 1440), ("2 days", 2880), ("20 min", 20), ("2 h", 120),
        ("90 s", 2), (45, 45), ("unlimited", 0), ("INFINITE", 0),
    ],
)  # fmt: skip
def test_times(written, minutes):
    assert values.limit(written, "time") == minutes


@pytest.mark.parametrize(
    ("written", "megabytes"),
    [("4g", 4096), ("4G", 4096), ("4GB", 4096), ("500M", 500), ("500m", 500), ("4096", 4096), ("2048K", 2), ("2048k", 2),
     ("1T", 1024**2), ("1t", 1024**2), (700, 700), (0, 0), ("0", 0), ("none", None)],
)  # fmt: skip
def test_memory(written, megabytes):
    assert values.memory(written, "mem") == megabytes


@pytest.fixture
def asked(suite, home, monkeypatch):
    """What a suite's training asks for, with these lines of [slurm] in the suite and in the machine's file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))

    def ask(table="[slurm]", machine=""):
        loaded = load(str(suite("[methods]\nwalker = {}\n" + table)))
        (home / "machine.toml").write_text(machine)
        return resources.rules(loaded, home / "machine.toml").training(plan.cells(loaded)[0])

    return ask


def memory_of(found):
    return [w for w in sbatch.options(found, "x", "") if w.startswith("--mem")]


@pytest.mark.parametrize(
    ("table", "machine", "told"),
    [
        ("", "", ["--mem=4096M"]),
        ("mem = 0", "", ["--mem=0"]),
        ("mem = 'none'", "", []),
        ("mem_per_cpu = '2G'", "", ["--mem-per-cpu=2048M"]),
        ("mem-per-gpu = '2G'\ngpus = 1", "", ["--mem-per-gpu=2048M"]),
        ("mem = '8G'", "mem_per_cpu = 100", ["--mem-per-cpu=100M"]),
        ("mem_per_cpu = 100", "mem = '8G'", ["--mem=8192M"]),
        ("mem = '8G'", "mem = 'none'", []),
    ],
)
def test_memory_is_asked_for_in_one_way(asked, table, machine, told):
    assert memory_of(asked("[slurm]\n" + table, machine)) == told


def test_what_runs_out_of_memory_gets_more_in_the_same_way():
    shares = (
        Resources(mem=None, mem_per_cpu=1000, cpus=4),
        Resources(mem=None, mem_per_gpu=4000, gpus="a100:1"),
    )
    assert [one.memory for one in shares] == [4000, 4000]
    assert shares[0].with_memory(8000).mem_per_cpu == 2000
    assert shares[1].with_memory(8000).mem_per_gpu == 8000
    assert Resources(mem=0).with_memory(8000).mem == 0


def test_the_users_own_variables_count_below_suite_and_machine(asked, monkeypatch):
    for name, value in {
        "PARTITION": "a",
        "ACCOUNT": "b",
        "TIMELIMIT": "1-0",
        "MEM_PER_CPU": "3G",
        "QOS": "q",
    }.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    found = asked("[slurm]\npartition = 'suite'", "qos = 'machine'")
    assert (found.partition, found.account, found.time, found.qos) == ("suite", "b", 1440, "machine")
    assert memory_of(found) == ["--mem-per-cpu=3072M"]
    assert not [name for name in sbatch.environment() if name in resources.VARIABLES]
    monkeypatch.setenv("SBATCH_RESERVATION", "course")
    monkeypatch.setenv("SBATCH_WAIT", "1")
    assert sbatch.environment()["SBATCH_RESERVATION"] == "course"  # what no key of ours means reaches sbatch
    assert "SBATCH_WAIT" not in sbatch.environment()
    monkeypatch.setenv("SBATCH_TIMELIMIT", "soon")
    with pytest.raises(resources.BenchError, match="SBATCH_TIMELIMIT must be minutes"):
        asked()


@pytest.mark.parametrize(
    ("found", "processes", "workers"),
    [
        (Resources(gpus="a100:4"), 1, 4),
        (Resources(gpus="a100:4"), 2, 2),
        (Resources(gpus=1, cpus=8), 2, 1),  # none shares a GPU with another model
        (Resources(gpus=3, cpus=8), 2, 1),
        (Resources(cpus=8), 1, 8),
    ],
)
def test_workers_are_counted_by_gpus(found, processes, workers):
    assert found.workers(1, processes) == workers


def test_workers_are_no_more_than_the_gpus_that_a_job_has(monkeypatch):
    from bench.slurm.supervisor import workers_here

    pack = {"workers": 8, "processes": 1}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers_here(pack) == 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")  # asked for by extra = {gres = ...}
    assert workers_here(pack) == 2
    assert workers_here({**pack, "processes": 4}) == 1


# ---- the documentation ---------------------------------------------------------------------------

SAID = {
    "typed GPUs": (
        {"--gpus-per-node=a100:4", "--mem-per-gpu=61440M", "--cpus-per-task=16", "--partition=gpu"},
        "",
    ),
    "no --mem": ({"--exclusive", "--cpus-per-task=8"}, ""),
    "Apptainer": (
        set(),
        "apptainer exec --nv --bind /scratch image.sif python -u -P -m bench.slurm.supervisor",
    ),
    "Pyxis": (set(), "--container-mounts=/scratch:/scratch python3 -u -P -m bench.slurm.supervisor"),
    "preemptible": ({"--partition=scavenge", "--time=1440", "--requeue"}, ""),
    "arrays off": (set(), ""),
}


def test_every_block_is_tested():
    assert set(BLOCKS) == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_the_blocks_of_the_page_ask_for_what_they_say(asked, name):
    options, command = SAID[name]
    found = asked(BLOCKS[name])
    told = sbatch.options(found, "x", "")
    assert options <= set(told)
    assert memory_of(found) != [] or name == "no --mem"
    text = sbatch.script(found, Path("/runs"), 0)
    assert command in text
    assert all(line in text.splitlines() for line in tomllib.loads(BLOCKS[name])["slurm"].get("setup", []))


# ---- on a real SLURM -----------------------------------------------------------------------------

# What a container changes: the interpreter, and (where this user may) the root: /media has another content inside.
APPTAINER = """#!/bin/bash
[ "$1" = exec ] && [ "$2" = image.sif ] && [ "$3" = python ] || exit 3
shift 3
if unshare --mount true 2>/dev/null; then
  exec unshare --mount bash -c '
    mount --rbind / {home}/image && mount --bind {home}/inside {home}/image/media && cd "$OLDPWD" 2>/dev/null
    exec chroot {home}/image /bin/bash -c "cd {home} && exec {home}/inside/bin/python \\"\\$@\\"" bash "$@"' bash "$@"
fi
exec {home}/inside/bin/python "$@"
"""
WITNESS = """
import os, sys
with open({path!r}, "a") as file:
    file.write(repr((sys.orig_argv, sys.executable, os.path.exists("/media/pyvenv.cfg"))) + "\\n")
"""


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.sites
def test_a_container_is_where_jobs_run(slurm, home, suite, monkeypatch):
    slurm(accounting=False)
    inside = home / "inside"
    for folder in (
        inside / "bin",
        inside / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}",
        home / "image",
        home / "bin",
    ):
        folder.mkdir(parents=True)
    (inside / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (inside / "pyvenv.cfg").write_text(f"home = {Path(os.path.realpath(sys.executable)).parent}\n")
    purelib = Path(sysconfig.get_paths()["purelib"])
    (inside / "lib" / purelib.parent.name / "site-packages").symlink_to(purelib)
    stand_in = home / "bin" / "apptainer"
    stand_in.write_text(APPTAINER.format(home=home))
    stand_in.chmod(0o755)
    (home / "witness").mkdir()
    (home / "witness" / "sitecustomize.py").write_text(WITNESS.format(path=str(home / "seen")))
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{home / 'witness'}{os.pathsep}{os.environ['PYTHONPATH']}")
    asks = "[slurm]\nmem = '2500M'\ncpus = 1\npython = 'apptainer exec image.sif python'\nsrun = ['--label']"
    path = suite("[methods]\nwalker = {}\n" + asks, top="seeds = 2")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "submit", path, "--wait"], check=False, capture_output=True, text=True
    )
    logs = "".join(p.read_text() for p in home.glob("runs/.slurm/*/logs/*"))
    assert done.returncode == 0, done.stderr + logs
    seen = [eval(line) for line in (home / "seen").read_text().splitlines()]
    jobs = [one for one in seen if {"bench.serve", "bench.slurm.supervisor"} & set(one[0])]
    assert {Path(one[1]).parent for one in jobs} == {inside / "bin"}
    here = [one for one in seen if "submit" in one[0]]
    assert here
    assert not any(one[2] for one in here)
    may = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0
    assert {one[2] for one in jobs} == {may}
    assert all(json.loads(p.read_text())["status"] == "ok" for p in home.glob("runs/*/status.json"))
