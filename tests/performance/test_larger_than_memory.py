"""A cached probe of ImageNet's size, at least its first 2%: in a process of its own, whose peak is its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_cached_probe_of_1_280_000_images_takes_less_than_6_gb(tmp_path):
    script = Path(__file__).with_name("_larger_than_memory.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    print(f"\n{done.stdout}")
    assert int(told["peak"]) < 6e9
    steps = 1_280_000 // 192
    assert re.fullmatch(
        rf"linear_probe, [\d.]+ (h|min) left: {steps // 50 + 1} of {35 * steps}", told["progress"]
    )
    gigabytes = (1_280_000 + 50_000) * 5 * 9600 * 4 / 1e9
    assert f"need {gigabytes:.0f} GB in CACHE, where 80 GB are free" in told["forecast"]
    assert f'features = "float16" ({gigabytes / 2:.0f} GB)' in told["forecast"]
