"""The commands around jobs: status, logs, cancel, retry, and that help stays fast."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest


def test_help_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, time; t = time.perf_counter(); import bench.cli; "
        "heavy = [m for m in ('torch', 'submitit', 'numpy', 'pandas', 'rich') if m in sys.modules]; "
        "print(time.perf_counter() - t, *heavy)"
    )
    seconds, *heavy = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert heavy == []
    assert float(seconds) < 0.3


def test_status_without_any_job_says_what_is_pending(suite, bench):
    path = suite(top="seeds = 2")
    assert bench("status", path).out == "toy: 2 pending\n"
    found = json.loads(bench("status", path, "--json").out)
    assert (found["suite"], found["counts"], found["running"]) == ("toy", {"pending": 2}, [])
    assert len(found["cells"]) == 2
    assert bench("status", path, "--watch").out == "toy: 2 pending\n"


def test_logs_of_an_unknown_cell_are_told(home, bench):
    for cell in ("nothing/here", "../../etc/passwd", ".."):
        done = bench("logs", cell)
        assert done.code == 2
        assert "nothing was logged for" in done.err


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.alone
def test_status_logs_cancel_and_retry_on_a_real_cluster(slurm, home, suite, bench_process):
    cluster = slurm()
    path = suite(
        "[methods.napper]\nnap = 0.5\n[methods.walker]\ntrouble = 'raise'\ntrouble_file = 'struck'\n"
        "[slurm]\nmem = '2G'\ncpus = 1\npack = 0",
        top='seeds = 2\nbudget = "40 epochs"',
    )
    assert "submitted 4 as 4 jobs in 1 arrays" in bench_process("submit", path).err
    end = time.monotonic() + 180
    while True:
        found = json.loads(bench_process("status", path, "--json").out)
        if len(found["running"]) >= 2 and "failed" in found["counts"] and found["running"][0].get("done"):
            break
        assert time.monotonic() < end, found
        time.sleep(1)
    assert found["running"][0]["heartbeat_age"] < 15
    assert found["running"][0]["node"] in cluster.nodes
    cell = next(name for name, one in found["cells"].items() if one["status"] == "failed")
    logs = bench_process("logs", cell)
    assert "RuntimeError: told to go wrong" in logs.out
    assert "_log.out" in logs.out
    assert "canceled" in bench_process("cancel", path).out
    cluster.wait_idle(30)
    assert list(home.glob("runs/napper*/checkpoint.safetensors"))
    counts = json.loads(bench_process("status", path, "--json").out)["counts"]
    assert counts["pending"] == 2
    path.write_text(path.read_text().replace("nap = 0.5", "nap = 0.0"))
    again = bench_process("retry", path, "--wait")
    assert again.code == 0, again.err
    assert json.loads(bench_process("status", path, "--json").out)["counts"] == {"ok": 4}
