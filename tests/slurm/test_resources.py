"""[slurm] is data: what it may hold, who wins, what is told about a mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.planning import plan
from bench.planning.suite import load
from bench.records import BenchError
from bench.slurm import resources


@pytest.fixture
def rules(home, suite, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.delenv("BENCH_SLURM", raising=False)

    def make(table="", machine=None, **more):
        path = suite("[methods]\nwalker = {}\nslow = {use = 'walker', lr = 0.5}\n" + table, **more)
        loaded = load(str(path))
        config = None
        if machine is not None:
            config = home / "machine.toml"
            config.write_text(machine)
        return resources.rules(loaded, config), plan.cells(loaded)

    return make


def test_a_suite_without_slurm_asks_for_little(rules):
    found, cells = rules()
    assert found.training(cells[0]) == resources.Resources()
    assert (found.policy.pack, found.policy.stall, found.policy.retries) == (20, 60, 2)


TABLE = """
[slurm]
partition = "long"
time = "1-02:00:00"
mem = "8G"
cpus = 4
exclude = "node7"
setup = ["module load python"]
extra = {mail_type = "END", exclusive = true}
pack = "1 h"
retries = 5
[slurm.methods.walker]
gpus = 1
[slurm.methods.slow]
gpus = 2
[slurm.protocols.norms]
cpus = 1
"""


def test_a_suite_says_what_all_jobs_and_what_a_method_and_a_protocol_ask_for(rules):
    found, cells = rules(TABLE)
    fast, slow = (found.training(next(c for c in cells if c.label == label)) for label in ("walker", "slow"))
    assert (fast.partition, fast.time, fast.mem, fast.cpus, fast.gpus) == ("long", 26 * 60, 8192, 4, 1)
    assert (fast.exclude, fast.setup) == (("node7",), ("module load python",))
    assert fast.extra == (("exclusive", True), ("mail-type", "END"))
    assert slow.gpus == 2  # a label is nearer than the method's name
    assert [found.evaluation(c).cpus for c in cells] == [1, 1]
    assert (found.policy.pack, found.policy.retries) == (60, 5)


def test_a_protocol_may_be_named_by_its_label(rules):
    found, cells = rules(
        "[slurm.protocols.large]\nmem = 9000",
        protocols="norms = {}\nlarge = {use = 'norms', factor = [2, 3]}",
    )
    asked = {(c.cell.protocol.get("factor"), found.evaluation(c).mem) for c in cells}
    assert asked == {(1.0, 4096), (2.0, 9000), (3.0, 9000)}


def test_a_machines_own_file_wins(rules):
    found, cells = rules(TABLE, 'partition = "gpu"\ngpus = 3\nretries = 0\n[methods.walker]\nmem = "1T"')
    asked = found.training(cells[0])
    assert (asked.partition, asked.gpus, asked.mem, asked.cpus) == ("gpu", 3, 1024**2, 4)
    assert found.policy.retries == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[slurm]\npartitoin = 'x'", "slurm: unknown key 'partitoin'; did you mean 'partition'?"),
        ("[slurm]\ncpus = '4'", "slurm: cpus must be a whole number from 1 up, not '4'"),
        ("[slurm]\ncpus = true", "slurm: cpus must be a whole number"),
        (
            "[slurm]\ngpus = 'a100'",
            "slurm: gpus must be a whole number, or a type with one as \"a100:4\", not 'a100'",
        ),
        ("[slurm]\nmem = 1\nmem_per_cpu = 2", "slurm: mem and mem_per_cpu exclude each other"),
        ("[slurm]\npython = 'a \"b'", "slurm: python: 'a \"b' cannot be read as a command"),
        ("[slurm]\nmem_per_gpu = 0", "slurm: mem_per_gpu must be like"),
        ("[slurm]\ngpus = -1", "slurm: gpus must be a whole number from 0 up, not -1"),
        (
            "[slurm]\nmem = '8 Gigs'",
            'slurm: mem must be like "8G", a number of MB, 0 (a whole node) or "none", not \'8 Gigs\'',
        ),
        ("[slurm]\ntime = 'soon'", 'slurm: time must be minutes, or like "02:00:00"'),
        ("[slurm]\ntime = 0", "slurm: time must be a minute or more, not 0"),
        ("[slurm]\nsetup = 3", "slurm: setup must be a list of texts, not 3"),
        ('[slurm]\npartition = "a\\nrm -rf x"', "slurm: partition must be text in one line"),
        ("[slurm.extra]\n'a b' = 1", "slurm: extra: 'a b' is no parameter of sbatch"),
        ("[slurm.extra]\noutput = 'x'", "slurm: extra: 'output' is decided by bench; leave it out"),
        ("[slurm.extra]\nmem = 'x'", "slurm: extra: 'mem' has a key of its own"),
        ("[slurm.extra]\nx = [1]", "slurm: extra: x must be text, a number or true, not [1]"),
        ("[slurm.methods.wolker]\ncpus = 1", "slurm.methods: this suite has no 'wolker'; did you mean"),
        ("[slurm.methods.walker]\npack = 1", "methods.walker: unknown key 'pack'"),
        ("[slurm]\nmethods = 3", "slurm: methods must be a table, not 3"),
    ],
)
def test_a_mistake_is_told_in_one_line(rules, table, message):
    with pytest.raises(BenchError) as told:
        rules(table)
    assert message in str(told.value)
    assert "toy.toml" in str(told.value)
    assert "\n" not in str(told.value)


def test_slurm_must_be_a_table(suite):
    with pytest.raises(BenchError, match="slurm must be a table"):
        load(str(suite(top="slurm = 3")))


def test_a_mistake_in_the_machines_file_names_that_file(rules, home):
    with pytest.raises(BenchError, match=r"machine.toml: unknown key 'cpu'; did you mean 'cpus'"):
        rules("", "cpu = 3")
    with pytest.raises(BenchError, match=r"machine.toml: not valid TOML"):
        rules("", "cpus = ")
    with pytest.raises(BenchError, match="there is no such file"):
        resources.rules(load(str(home / "toy.toml")), home / "nowhere.toml")


def test_reading_loads_no_torch():
    code = "import sys, bench.cli, bench.slurm.resources, bench.slurm.submission; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
