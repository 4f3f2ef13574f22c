"""The feature cache: bounded, forgiving, shared."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from bench.cache import FileCache
from bench.records import BenchError


@pytest.fixture
def cache(tmp_path):
    return FileCache(tmp_path / "features", limit_gb=1.0)


def ages(cache, *keys):
    """Makes the named entries old, the first the oldest."""
    now = time.time()
    for i, key in enumerate(keys):
        os.utime(cache._path(key), (now - 1000 + i,) * 2)


def test_what_was_put_is_got(cache):
    assert cache.get("a") is None
    value = torch.randn(5, 3)
    cache.put("a", value)
    assert torch.equal(cache.get("a"), value)
    assert cache.get("b") is None
    cache.put("a", value + 1)
    assert torch.equal(cache.get("a"), value + 1)


def test_keys_of_any_text_are_files_in_the_folder(cache):
    for key in ("../../x", "/etc/passwd", "", "k" * 5000, "é\n"):
        cache.put(key, torch.ones(1))
        assert cache.get(key) is not None
    assert len(list(cache.folder.iterdir())) == 5


def test_the_longest_unread_goes_when_it_is_full(tmp_path):
    cache = FileCache(tmp_path, limit_gb=3.5e-6)  # three tensors of 1,000 bytes with their headers
    value = torch.zeros(250)
    for key in ("a", "b", "c"):
        cache.put(key, value)
    ages(cache, "a", "b", "c")
    assert cache.get("a") is not None  # read now: b is the oldest
    cache.put("d", value)
    assert cache.get("b") is None
    assert all(cache.get(k) is not None for k in ("a", "c", "d"))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= cache.limit


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(cache):
    cache.put("a", torch.ones(3))
    left, new = (cache.folder / f".x.safetensors.{name}" for name in ("left", "new"))
    for path in (left, new):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * 3600,) * 2)
    cache.put("b", torch.ones(3))
    assert not left.exists()
    assert new.exists()
    assert cache.get("a") is not None


def test_the_bound_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE_GB", "0.5")
    assert FileCache(tmp_path).limit == 5e8


@pytest.mark.parametrize("damage", ["truncated", "garbage", "other", "empty"])
def test_a_damaged_file_is_dropped_and_made_again(cache, damage):
    cache.put("a", torch.ones(100))
    path = cache._path("a")
    if damage == "other":
        from bench import tensors

        tensors.save(path, {"something": torch.ones(1)})
    else:
        path.write_bytes({"truncated": path.read_bytes()[:-40], "garbage": b"x" * 300, "empty": b""}[damage])
    assert cache.get("a") is None
    assert not path.exists()
    cache.put("a", torch.ones(3))
    assert torch.equal(cache.get("a"), torch.ones(3))


def test_readers_and_writers_may_share_it(tmp_path):
    cache = FileCache(tmp_path, limit_gb=8e-6)  # small enough that files are deleted all the time
    wrong, stop = [], time.monotonic() + 1.5

    def work(number):
        generator = torch.Generator().manual_seed(number)
        while time.monotonic() < stop and not wrong:
            key = int(torch.randint(12, (1,), generator=generator))
            try:
                found = cache.get(str(key))
                if found is None:
                    cache.put(str(key), torch.full((250,), float(key)))
                elif not torch.equal(found, torch.full((250,), float(key))):
                    wrong.append(f"{key} came back as {found[0]}")
            except Exception as error:  # noqa: BLE001 - whatever is raised is the failure
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "gone", [FileNotFoundError, RuntimeError]
)  # which of them depends on safetensors' version
def test_a_file_that_goes_while_it_is_opened_is_computed_again(cache, monkeypatch, gone):
    from bench import tensors

    cache.put("a", torch.ones(3))

    def load(path):
        raise gone(f"unable to open file <{path}>")

    monkeypatch.setattr(tensors, "load_file", load)
    assert cache.get("a") is None


_JOB = """
import random, sys, time
from pathlib import Path
import torch
from bench.cache import FileCache
from bench.records import BenchError

cache, chance, stop = FileCache(Path(sys.argv[1]), limit_gb=2e-5), random.Random(int(sys.argv[2])), time.time() + 2
hits = 0
while time.time() < stop:
    key = chance.randrange(12)
    dtype = torch.float16 if key % 2 else torch.float32
    found, right = cache.get(str(key)), torch.full((500,), float(key), dtype=dtype)
    hits += found is not None
    if found is None:
        cache.put(str(key), right)
    elif found.dtype != dtype or not torch.equal(found, right):
        sys.exit(f"{key} came back as {found[:3]}")
print(hits)
"""


@pytest.mark.slow
def test_jobs_at_once_share_it_and_keep_to_its_bound(tmp_path):
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", _JOB, str(tmp_path), str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    for job in jobs:
        out, err = job.communicate(timeout=60)
        assert job.returncode == 0, err
        assert int(out) > 0
    left = list(tmp_path.iterdir())
    assert all(path.suffix == ".safetensors" for path in left)  # no half-written file stays
    assert (
        sum(p.stat().st_size for p in left) <= 2e4 + 3 * 2500
    )  # each may add one that the others have not seen


def test_half_precision_takes_half_the_room(cache):
    value = torch.randn(1000)
    cache.put("whole", value)
    cache.put("half", value.half())
    assert torch.equal(cache.get("half"), value.half())
    sizes = [cache._path(k).stat().st_size for k in ("whole", "half")]
    assert sizes[0] - sizes[1] == 2000


# ---- a limit is a limit --------------------------------------------------------------------------


def matrix(cache, key, count=100, width=5):
    writer = cache.writer(key, count, width, "float32")
    writer.write(torch.arange(count * width).view(count, width).float())
    return writer.close()


def used(cache):
    return sum(path.stat().st_size for path in cache.folder.iterdir())


def test_what_is_larger_than_the_limit_is_not_kept_and_costs_the_others_nothing(tmp_path):
    cache = FileCache(tmp_path, limit_gb=3e-6)
    cache.put("small", torch.zeros(250))
    cache.put("large", torch.zeros(1000))
    assert cache.get("large") is None
    assert cache.get("small") is not None
    with pytest.raises(BenchError, match="features of 100 images x 1 layer x 10 float32 need 4 kB in"):
        cache.writer("matrix", 100, 10, "float32")
    assert used(cache) <= cache.limit


def test_a_matrix_that_is_read_stays_and_one_that_nobody_reads_goes(tmp_path):
    cache, other = FileCache(tmp_path, limit_gb=5e-6), FileCache(tmp_path, limit_gb=5e-6)
    rows = matrix(cache, "read")
    assert matrix(cache, "unread") is not None
    assert other.room().limit < 5e3 - 2000  # the one in use is not to be had
    matrix(other, "new")
    assert other.rows("unread") is None
    assert torch.equal(rows[torch.tensor([99, 0])], torch.arange(500.0).view(100, 5)[[99, 0]])
    assert used(cache) <= cache.limit
    del rows
    matrix(other, "newer", count=200)
    assert cache.rows("read") is None
    assert used(cache) <= cache.limit


def test_a_matrix_is_a_file_that_numpy_opens(tmp_path):
    matrix(FileCache(tmp_path), "a")
    (path,) = tmp_path.glob("*.npy")
    assert np.array_equal(np.load(path, mmap_mode="r"), np.arange(500, dtype="f4").reshape(100, 5))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_matrix_is_dropped(tmp_path, damage):
    cache = FileCache(tmp_path)
    matrix(cache, "a")
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes({"truncated": path.read_bytes()[:-4], "garbage": b"x" * 300, "empty": b""}[damage])
    assert cache.rows("a") is None
    assert not path.exists()
    assert torch.equal(matrix(cache, "a")[:], torch.arange(500.0).view(100, 5))


def test_half_a_matrix_is_none_and_its_writer_goes_on_behind_what_is_safe(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.cache.SYNC_BYTES", 1.0)
    cache = FileCache(tmp_path)
    values = torch.randn(100, 5)
    writer = cache.writer("a", 100, 5, "float32")
    writer.write(values[:40])
    monkeypatch.setattr("bench.cache.SYNC_BYTES", 1e9)
    writer.write(values[40:60])  # never reached the disk
    del writer
    assert cache.rows("a") is None
    again = cache.writer("a", 100, 5, "float32")
    assert again.done == 40
    again.write(values[40:])
    assert torch.equal(again.close()[:], values)
    assert cache.writer("b", 100, 5, "float32").done == 0


def test_a_full_disk_is_told_with_the_remedy(tmp_path, monkeypatch):
    writer = FileCache(tmp_path).writer("a", 10, 5, "float32")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("bench.cache.SYNC_BYTES", 1.0)
    with pytest.raises(BenchError, match=r"cannot be written: No space left.*BENCH_CACHE"):
        writer.write(torch.zeros(10, 5))
