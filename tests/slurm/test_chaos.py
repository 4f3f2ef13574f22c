"""Whatever clusters do, at random, many times: at the end every cell has one row, that of an undisturbed run.

``BENCH_CHAOS_SEED`` chooses another chaos, ``BENCH_CHAOS_ROUNDS`` a longer one.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.records import EQUAL_COLUMNS

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

SEED = int(os.environ.get("BENCH_CHAOS_SEED", "0"))
ROUNDS = int(os.environ.get("BENCH_CHAOS_ROUNDS", "1"))  # faults of each kind
SEEDS = 9 * ROUNDS
SUITE = """
[methods.napper]
nap = 0.4
[slurm]
time = 2
mem = "3G"
cpus = 2
pack = "1 min"
{retries}
"""
# Friendly sites, and others, on which what befell a job may not count as a try: there the default must do.
FORMS = {
    "friendly": ({}, "retries = 20"),
    "no requeue": ({"requeue": False}, ""),
    "preemption cancels": ({"preempt": "CANCEL", "grace": 0}, ""),
    "arrays of 10": ({"max_array": 10}, ""),
}
DYING = """
import os, signal, sys
from bench.slurm import submission
real = submission.sbatch
def die(*args):
    if MOMENT == "after":
        real(*args)
    os.kill(os.getpid(), signal.SIGKILL)
submission.sbatch = die
MOMENT = sys.argv[3] if len(sys.argv) > 3 else sys.argv[-1]
from bench.cli import cli
cli.main(["submit", sys.argv[2]], standalone_mode=False)
"""


def numbers(folder):
    with (folder / "toy.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [(r["training"], r["cell"], r["split"], *(r[c] for c in EQUAL_COLUMNS)) for r in found]


class Chaos:
    """Injects faults and counts them."""

    def __init__(self, cluster, path, home, seed):
        self.cluster, self.path = cluster, path
        self.moments = random.Random(seed)
        self.counts = Counter()
        self.down = {}
        self.submitters = []
        self.log = home / "submitters.log"
        self.log.touch()

    def submitter(self):
        words = ["submit", self.path, "--wait", "--results", f"results{len(self.submitters)}"]
        command = [sys.executable, "-m", "bench", *map(str, words)]
        with self.log.open("a") as log:
            one = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        self.submitters.append(one)
        return one

    def dying_submitter(self, moment):
        """Killed between its manifest and sbatch, or between sbatch and writing down the job ids."""
        command = [sys.executable, "-c", DYING, "submit", str(self.path), moment]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        self.counts[f"submitter killed {moment} sbatch"] += 1

    def running(self):
        return [(job, node) for job, word, node in self.cluster.squeue() if word == "RUNNING" and node]

    def worker(self):
        def serves(pid):
            try:
                return b"bench.serve" in Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                return False

        pids = [pid for pid in self.cluster.tasks() if serves(pid)]
        if not pids:
            return False
        os.kill(self.moments.choice(pids), signal.SIGKILL)
        return True

    def node(self):
        return self._node(self.cluster.kill_node, 4)

    def slurmd(self):
        return self._node(
            self.cluster.kill_slurmd, 14
        )  # longer than SlurmdTimeout: the job runs elsewhere too

    def _node(self, blow, seconds):
        nodes = [node for _, node in self.running() if node not in self.down]
        if not nodes or len(self.down) > 1:
            return False
        node = self.moments.choice(nodes)
        blow(node)
        self.down[node] = time.monotonic() + seconds
        return True

    def requeue(self):
        jobs = [job for job, _ in self.running()]
        if not jobs:
            return False
        return self.cluster.run("scontrol", "requeue", self.moments.choice(jobs), check=False).returncode == 0

    def preempt(self):
        nodes = [node for _, node in self.running() if node not in self.down]
        if not nodes:
            return False
        self.cluster.preempt(self.moments.choice(nodes), 2)
        return True

    def controller(self):
        self.cluster.restart_controller(hard=self.moments.random() < 0.5, pause=self.moments.uniform(0, 3))
        return True

    def submitter_killed(self):
        alive = [one for one in self.submitters if one.poll() is None]
        if not alive:
            return False
        one = self.moments.choice(alive)
        one.kill()
        one.wait()
        self.submitter()
        return True

    def restore(self, *, everything=False):
        for node, until in list(self.down.items()):
            if everything or time.monotonic() > until:
                self.cluster.start_slurmd(node)
                del self.down[node]
        # An orphan of a job drains the node that is to run the job again ("Duplicate jobid"): a person resumes it.
        if not self.down:
            self.counts["node resumed"] += self.cluster.resume_nodes()

    def rage(self, seconds):
        """Faults of every kind in random order, until each struck ``ROUNDS`` times or all is done."""
        kinds = {
            "worker SIGKILL": self.worker,
            "slurmd with its step SIGKILL": self.node,
            "slurmd alone SIGKILL": self.slurmd,
            "scontrol requeue": self.requeue,
            "preemption": self.preempt,
            "slurmctld restart": self.controller,
            "submitter SIGKILL while waiting": self.submitter_killed,
        }
        todo = [*kinds] * ROUNDS
        self.moments.shuffle(todo)
        end = time.monotonic() + seconds
        while todo and time.monotonic() < end:
            time.sleep(self.moments.uniform(1, 3))
            self.restore()
            if all(one.poll() is not None for one in self.submitters):
                break
            if kinds[todo[0]]():
                self.counts[todo.pop(0)] += 1
            else:
                todo.append(todo.pop(0))
        self.restore(everything=True)


@pytest.mark.parametrize("accounting", [True, False], ids=["accounting", "no accounting"])
@pytest.mark.parametrize(
    "form", ["friendly", *(pytest.param(f, marks=pytest.mark.sites) for f in FORMS if f != "friendly")]
)
def test_every_cell_ends_with_the_row_of_an_undisturbed_run(slurm, home, suite, capsys, form, accounting):
    shape, retries = FORMS[form]
    path = suite(
        SUITE.format(retries=retries),
        top=f'seeds = {SEEDS}\nminutes = {2 * ROUNDS}\nbudget = "16 epochs"',
        protocols="norms = {factor = [1, 2, 3]}",
    )
    undisturbed = ["run", path, "--jobs", "6", "--runs", "calm", "--results", "calm"]
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *undisturbed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as calm:
        try:
            cluster = slurm(accounting=accounting, **shape)  # comes up meanwhile
            assert calm.wait(300) == 0
        finally:
            calm.kill()  # of no effect on one that ended
    expected = numbers(home / "calm")
    assert len({row[:2] for row in expected}) == 3 * SEEDS
    begun = time.monotonic()
    chaos = Chaos(cluster, path, home, SEED)
    try:
        chaos.dying_submitter("before")
        chaos.dying_submitter("after")
        chaos.submitter()
        chaos.submitter()
        chaos.counts["two submitters at once"] += 1
        chaos.rage(120 * ROUNDS)
        end = time.monotonic() + 600  # against a hang
        while any(one.poll() is None for one in chaos.submitters):
            assert time.monotonic() < end, "a submitter hangs"
            time.sleep(2)
            chaos.restore()
        last = subprocess.run(
            [sys.executable, "-m", "bench", "submit", path, "--wait"],
            check=False,
            capture_output=True,
            text=True,
        )
    finally:
        for one in chaos.submitters:
            one.kill()
            one.wait()
        sys.stderr.write(chaos.log.read_text())
        for what in ("job", "node"):
            sys.stderr.write(cluster.run("scontrol", "--all", "--oneliner", "show", what, check=False).stdout)
    assert last.returncode == 0, last.stderr
    cluster.wait_idle()
    logs = "".join(p.read_text(errors="replace") for p in (home / "runs" / ".slurm").glob("*/logs/*.out"))
    chaos.counts["time-out"] = logs.count("DUE TO TIME LIMIT")
    attempts = [json.loads(p.read_text())["attempt"] for p in (home / "runs").glob("*/status.json")]
    with capsys.disabled():
        faults = ", ".join(f"{n} x {kind}" for kind, n in sorted(chaos.counts.items()))
        print(f"\nchaos {SEED}, {form}, accounting {accounting}: {faults}")
        print(
            f"{3 * SEEDS} cells in {time.monotonic() - begun:.0f} s; attempts of trainings: {sorted(Counter(attempts).items())}"
        )
    assert numbers(home / "results") == expected
    subprocess.run([sys.executable, "-m", "bench", "table", path], check=True, capture_output=True)
    assert (
        len(list((home / "runs").glob("*/cells/*.json"))) == 3 * SEEDS
    )  # orphans and second runs left nothing twice
    assert {one.returncode for one in chaos.submitters} <= {0, -9}
