"""Whatever is wrong with files, folders, words and disks: one line, exit code 2, nothing measured is lost."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry, tensors

JUNK = np.random.default_rng(0).integers(0, 256, 700, np.uint8).tobytes()


class Poison:
    def __reduce__(self):
        return Path.touch, (Path("poisoned"),)


def told(done, *parts):
    """Exit code 2, no traceback, and the one line that says all of this."""
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if all(part in line for part in parts)]
    assert len(lines) == 1, done.err
    return lines[0]


def rows(home, name="toy"):
    with (home / "results" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def statuses(home, key="seed"):
    return {row[key]: row["status"] for row in rows(home)}


def values(home):
    return [(row["seed"], row["protocol"], row["split"], row["value"]) for row in rows(home)]


def one(home, pattern):
    (path,) = (home / "runs").glob(pattern)
    return path


def attempts(home):
    return sorted(json.loads(p.read_text())["attempt"] for p in (home / "runs").glob("*/status.json"))


@pytest.fixture
def calm(suite, bench, home):
    """A suite of two seeds, its numbers, and a folder without any."""

    def run(tables="[methods]\nwalker = {}", **how):
        path = suite(tables, **{"top": "seeds = 2", **how})
        assert bench("run", path, "--jobs", 0).code == 0
        numbers = values(home)
        shutil.rmtree(home / "runs")
        shutil.rmtree(home / "results")
        return path, numbers

    return run


@pytest.fixture
def here(monkeypatch):
    """Units are described in this process: a child takes seconds to start."""
    monkeypatch.setattr(
        registry, "_describe_in_child", lambda names: {name: registry.describe(name) for name in names}
    )


# ---- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("budget", "bugdet", ["unknown key 'bugdet'", "did you mean 'budget'?"]),
        ("walker", "walkre", ["methods.walkre", "no method 'walkre'", "did you mean 'walker'?"]),
        ("lr = 1", "rl = 1", ["methods.walker", "no field 'rl'", "known are: batch_size, groups, lr"]),
        ('"dots"', '"dost"', ["data.dataset", "no dataset 'dost'", "did you mean 'dots'?"]),
        ("lr = 1", 'lr = "one"', ["walker.lr", "must be float", "'one'"]),
    ],
)
def test_a_wrong_word_stops_the_run_before_anything_is_made(suite, bench, home, old, new, parts):
    path = suite("[methods]\nwalker = {lr = 1}")
    path.write_text(path.read_text().replace(old, new))
    done = bench("run", path)
    assert told(done, "toy.toml", *parts) == done.err.strip()
    assert not (home / "runs").exists()


def test_an_unknown_layer_costs_its_own_cell(suite, bench, home):
    done = bench("run", suite(protocols='norms = {}\nknn = {k = 3, layer = "conv9"}'), "--jobs", 0)
    told(done, "failed: ", "/knn-dots-", "'conv9' does not exist", "layers are: conv1")
    assert statuses(home, "protocol") == {"norms": "ok", "knn": "failed"}


def test_a_gray_set_is_a_skipped_cell_with_its_reason(suite, bench, home):
    path = home / "cache" / "units.json"
    units = json.loads(path.read_text())
    units["toy_units.walker"]["units"][0]["traits"]["needs"]["color"] = True
    path.write_text(json.dumps(units))
    done = bench("run", suite())
    assert done.code == 0
    assert {(r["status"], r["reason"]) for r in rows(home)} == {
        ("skipped", "walker needs color; dots is gray")
    }
    assert "needs color" in done.out


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "mps"])
def test_a_device_that_is_not_there_stops_the_run(suite, bench, monkeypatch, home, name):
    monkeypatch.setenv("BENCH_DEVICE", name)
    done = bench("run", suite(), "--jobs", 0)
    assert told(done, "BENCH_DEVICE", repr(name), 'write "cpu"') == done.err.strip().splitlines()[-1]
    assert statuses(home) == {"0": "pending"}


def test_a_cache_bound_that_is_no_number_is_told(suite, bench, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE_GB", "much")
    told(bench("run", suite(), "--jobs", 0), "BENCH_CACHE_GB", "'much'", "write e.g. 8")


# ---- data ----------------------------------------------------------------------------------------


def _batches(folder, count=12):
    folder.mkdir(parents=True)
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ):
        pixels = np.zeros((count, 3072), np.uint8)
        (folder / name).write_bytes(
            pickle.dumps({b"data": pixels, b"labels": [i % 10 for i in range(count)]})
        )


@pytest.mark.parametrize("harm", ["missing", "empty", "file missing", "truncated", "poison"])
def test_a_damaged_data_folder_costs_its_own_cells(suite, bench, home, harm):
    folder = home / "data" / "cifar-10-batches-py"
    if harm == "empty":
        folder.mkdir(parents=True)
    elif harm != "missing":
        _batches(folder)
        file, whole = folder / "data_batch_2", (folder / "data_batch_2").read_bytes()
        file.unlink()
        if harm != "file missing":
            file.write_bytes(whole[:900] if harm == "truncated" else pickle.dumps(Poison()))
    path = suite(data='dataset = ["dots", "cifar10"]')
    done = bench("run", path, "--jobs", 0)
    bad = "data_batch_1" if harm in {"missing", "empty"} else "data_batch_2"
    told(done, "failed: ", str(folder / bad), "bench data get cifar10")
    assert statuses(home, "train_dataset") == {"dots": "ok", "cifar10": "failed"}
    assert "bench data get cifar10" in (home / "results" / "toy.md").read_text()
    assert not Path("poisoned").exists()
    if harm != "missing":
        shutil.rmtree(folder)
    _batches(folder)
    assert bench("run", path, "--jobs", 0).code == 0
    assert attempts(home) == [1, 2]


def test_a_corrupt_image_costs_its_own_cells(suite, bench, home, monkeypatch):
    from bench.data.folders import ImageNet

    monkeypatch.setattr(ImageNet, "classes", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for split, label, i in np.ndindex(2, 2, 12):
        folder = home / "data" / "imagenet" / ("train", "val")[split] / f"n{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02d}.JPEG")
    bad = home / "data" / "imagenet" / "val" / "n1" / "07.JPEG"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    path = suite(
        "[methods]\nrandom = {}", data='dataset = ["dots", "imagenet"]', protocols="knn = {k = 3, side = 8}"
    )
    done = bench("run", path, "--jobs", 0)
    told(done, "failed: ", f"{bad}: not a readable image", "replace the file")
    assert statuses(home, "train_dataset") == {"dots": "ok", "imagenet": "failed"}
    bad.write_bytes(whole)
    assert bench("run", path, "--jobs", 0).code == 0


# ---- checkpoints and models ------------------------------------------------------------------------


@pytest.fixture
def broken_off(suite, bench, home, monkeypatch):
    """Seed 0 has ended with a checkpoint, seed 1 is done; returns the suite and what all should come to."""
    monkeypatch.setenv("BENCH_CHECKPOINT", "0")
    trouble = f'batch_size = 36, trouble = "raise", trouble_file = "{home}/struck"'
    path = suite(f"[methods]\nwalker = {{{trouble}}}", top='seeds = 2\nbudget = "4 epochs"')
    (home / "struck").touch()
    assert bench("run", path, "--jobs", 0).code == 0
    numbers = values(home)
    shutil.rmtree(home / "runs")
    (home / "struck").unlink()
    told(bench("run", path, "--jobs", 0), "failed: ", "RuntimeError: told to go wrong")
    return path, numbers


def _foreign(file):
    kept, header = tensors.read(file), tensors.read_header(file)
    tensors.save(file, kept, {**header, "stamp": "another training's"})


def _without_facts(file):
    kept, header = tensors.read(file), tensors.read_header(file)
    tensors.save(file, kept, {**header, "facts": "{}"})


HARM = {
    "another training's": _foreign,
    "without facts": _without_facts,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "random bytes": lambda file: file.write_bytes(JUNK),
    "pickle": lambda file: file.write_bytes(pickle.dumps(Poison())),
    "empty": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_or_foreign_checkpoint_costs_its_own_cells(broken_off, bench, home, harm):
    path, numbers = broken_off
    file = one(home, "*/checkpoint.safetensors")
    HARM[harm](file)
    done = bench("run", path, "--jobs", 0)
    told(done, "failed: ", str(file), "delete it")
    assert statuses(home) == {"0": "failed", "1": "ok"}
    assert not Path("poisoned").exists()
    file.unlink()
    assert bench("run", path, "--jobs", 0).code == 0
    assert values(home) == numbers
    assert attempts(home) == [1, 3]


@pytest.mark.parametrize("harm", ["another training's", "truncated", "random bytes", "pickle", "missing"])
def test_a_damaged_or_foreign_model_costs_its_open_cells(suite, bench, home, harm):
    both = "norms = {factor = [1, 2]}"
    assert bench("run", suite(top="seeds = 2", protocols=both), "--jobs", 0).code == 0
    numbers = values(home)
    for path in (home / "runs").glob("*/cells/*.json"):
        if json.loads(path.read_text())["cell"]["protocol"]["settings"]["factor"] == 2:
            path.unlink()
    file, other = one(home, "*-s0-*/model.safetensors"), one(home, "*-s1-*/model.safetensors")
    if harm == "another training's":
        shutil.copy(other, file)
    elif harm == "missing":
        file.unlink()
    else:
        HARM[harm](file)
    done = bench("run", home / "toy.toml", "--jobs", 0)
    if harm != "missing":
        told(done, "failed: ", str(file), "delete it and it is made again")
        assert sorted(r["status"] for r in rows(home)) == ["failed"] + ["ok"] * 6
        assert not Path("poisoned").exists()
        file.unlink()
        done = bench("run", home / "toy.toml", "--jobs", 0)
    assert done.code == 0
    assert values(home) == numbers


# ---- records -------------------------------------------------------------------------------------

TEXTS = {"truncated": b'{"status": "o', "random bytes": JUNK, "a list": b"[1, 2]"}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["status.json", "cells/*.json"])
def test_a_damaged_record_costs_its_own_cells(suite, bench, home, name, text):
    path = suite(top="seeds = 2")
    assert bench("run", path, "--jobs", 0).code == 0
    numbers = values(home)
    file = one(home, f"*-s0-*/{name}")
    file.write_bytes(TEXTS[text])
    more = suite(top="seeds = 3")
    done = bench("run", more, "--jobs", 0)
    told(done, "failed: ", str(file), "delete it and it is made again")
    assert statuses(home) == {"0": "failed", "1": "ok", "2": "ok"}
    for command in (["status"], ["table"], ["table", "--format", "csv"]):
        done = bench(command[0], more, *command[1:])
        assert told(done, "bench: ", str(file), "delete it") == done.err.strip()
        assert done.out
    file.unlink()
    assert bench("run", more, "--jobs", 0).code == 0
    assert values(home)[:4] == numbers


def test_a_damaged_record_of_a_failure_is_tried_again_all_the_same(suite, bench, home):
    path = suite(protocols='norms = {trouble = "raise"}')
    assert bench("run", path, "--jobs", 0).code == 2
    one(home, "*/cells/*.failed.json").write_bytes(JUNK)
    told(bench("run", path, "--jobs", 0), "failed: ", "cannot judge")


@pytest.mark.parametrize("text", [*TEXTS.values(), b"{}"], ids=[*TEXTS, "nothing in it"])
def test_a_damaged_spec_is_told_by_why_and_nothing_else_minds(suite, bench, home, text):
    path = suite()
    assert bench("run", path, "--jobs", 0).code == 0
    file = one(home, "*/spec.json")
    file.write_bytes(text)
    done = bench("why", file.parent.name)
    assert told(done, str(file), "delete the training's folder") == done.err.strip()
    assert "nothing to do" in bench("run", path).out


@pytest.mark.parametrize("harm", ["random bytes", "a list", "strange entries", "folder"])
def test_a_damaged_description_of_the_units_is_made_again(suite, bench, home, here, harm):
    path = home / "cache" / "units.json"
    strange = {name: {"digest": 3, "units": [{"kind": "method"}]} for name in json.loads(path.read_text())}
    path.unlink()
    if harm == "folder":
        path.mkdir()
    else:
        path.write_bytes(TEXTS.get(harm, json.dumps(strange).encode()))
    assert bench("run", suite(), "--jobs", 0).code == 0
    assert sorted(p.name for p in (home / "cache").iterdir()) == ["units.json"]


@pytest.mark.parametrize("harm", ["random bytes", "truncated", "pickle", "empty"])
def test_a_damaged_feature_cache_is_computed_again(suite, bench, home, harm):
    path = suite(protocols="knn = {k = 3}")
    assert bench("run", path, "--jobs", 0).code == 0
    numbers = values(home)
    kept = list((home / "cache" / "features").glob("*.safetensors"))
    assert kept
    for file in kept:
        HARM[harm](file)
    one(home, "*/cells/*.json").unlink()
    assert bench("run", path, "--jobs", 0).code == 0
    assert values(home) == numbers
    assert not Path("poisoned").exists()


def test_damaged_scenes_are_rendered_again(suite, bench, home):
    path = suite(data='dataset = {name = "scenes", side = 8, train = 24, test = 12}')
    assert bench("run", path, "--jobs", 0).code == 0
    numbers = values(home)
    for file in (home / "cache" / "scenes").iterdir():
        file.write_bytes(JUNK)
    shutil.rmtree(home / "runs")
    assert bench("run", path, "--jobs", 0).code == 0
    assert values(home) == numbers


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(calm, bench, home, here, monkeypatch):
    path, numbers = calm(protocols="knn = {k = 3}")
    (home / "file").write_text("in the way")
    monkeypatch.setenv("BENCH_CACHE", str(home / "file" / "cache"))
    registry.units.cache_clear()
    assert bench("run", path, "--jobs", 0).code == 0
    assert values(home) == numbers


@pytest.mark.parametrize("harm", [*TEXTS, "zero bytes", "cut in a row", "folder"])
def test_a_damaged_result_table_is_told(suite, bench, home, harm):
    path = suite(top="seeds = 2")
    assert bench("run", path, "--jobs", 0).code == 0
    shutil.rmtree(home / "runs")
    file = home / "results" / "toy.csv"
    lines = file.read_bytes().splitlines(keepends=True)
    file.unlink()
    texts = {"zero bytes": bytes(300), "cut in a row": lines[0] + lines[1] + lines[2][:90]}
    if harm == "folder":
        file.mkdir()
    else:
        file.write_bytes({**TEXTS, **texts}[harm])
    for command in ("table", "plot"):
        done = bench(command, path)
        assert told(done, str(file)) == done.err.strip()


# ---- places and disks ------------------------------------------------------------------------------


def test_runs_that_are_a_file_stop_the_run(suite, bench, home):
    (home / "runs").write_text("in the way")
    done = bench("run", suite(), "--jobs", 0)
    assert told(done, str(home / "runs"), "cannot be written", "choose another folder with --runs")
    assert (home / "runs").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
@pytest.mark.parametrize("name", ["runs", "results"])
def test_a_read_only_folder_is_told(suite, bench, home, name):
    (home / name).mkdir(mode=0o555)
    told(bench("run", suite(), "--jobs", 0), str(home / name), "cannot be written", "choose another folder")


@pytest.mark.parametrize("where", ["below a file", "table is a folder", "markdown is a folder"])
def test_results_that_cannot_be_written_lose_nothing(calm, bench, home, where):
    path, numbers = calm()
    if where == "below a file":
        (home / "results").write_text("in the way")
    else:
        (home / "results" / ("toy.csv" if "table" in where else "toy.md") / "in the way").mkdir(parents=True)
    done = bench("run", path, "--jobs", 0)
    told(done, "bench: ", str(home / "results"), "cannot be written", "choose another folder")
    (home / "results").rename(home / "aside")
    done = bench("run", path, "--jobs", 0)
    assert done.code == 0
    assert "0 of 2 cells to do" in done.err
    assert values(home) == numbers


def test_a_figure_that_cannot_be_written_is_told(suite, bench, home):
    figure = '[[figure]]\nname = "bars"\nkind = "bars"\nmetric = "norm"\n'
    path = suite(f"[methods]\nwalker = {{}}\n{figure}")
    (home / "results" / "toy-bars.png" / "in the way").mkdir(parents=True)
    told(bench("run", path, "--jobs", 0), "bench: ", "toy-bars.png", "cannot be written")
    assert statuses(home) == {"0": "ok"}
    assert (home / "results" / "toy.md").exists()


@pytest.fixture
def full(monkeypatch):
    """The disk is full for files of this name (as their last bytes are written)."""
    real = os.fsync

    def use(*names):
        def fsync(fd):
            path = str(Path(f"/proc/self/fd/{fd}").readlink())
            if any(name in path for name in names):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)

    return use


@pytest.mark.parametrize(
    ("name", "done_before"),
    [("spec.json", 0), ("status.json", 0), ("/cells/", 0), ("toy.csv", 2), ("toy.md", 2)],
)
def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(calm, bench, home, full, name, done_before):
    path, numbers = calm()
    full(name)
    done = bench("run", path, "--jobs", 0)
    told(done, "bench: ", name, "cannot be written: No space left on device; free some space")
    assert "Traceback" not in done.err
    assert not list(home.rglob(".*.json.*"))  # nothing is left behind
    assert len(list((home / "runs").glob("*/cells/*.json"))) == done_before
    full()
    assert bench("run", path, "--jobs", 0).code == 0
    assert values(home) == numbers
    assert attempts(home) == [1, 1]


@pytest.fixture
def small_files():
    """The system refuses files of more than this: what really happens in a write, for root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_stops_the_run_and_the_next_one_goes_on(
    calm, suite, bench, home, small_files
):
    path, numbers = calm(top='seeds = 2\nbackbone = {name = "dot_net", width = 900}\nbudget = "2 epochs"')
    first = suite(name="first")
    assert bench("run", first, "--jobs", 0).code == 0
    small_files(60_000)
    done = bench("run", path, "--jobs", 0)
    small_files(resource.RLIM_INFINITY)
    told(done, "bench: ", "checkpoint.safetensors", "cannot be written", "free some space")
    assert not list(home.rglob(".checkpoint*"))
    assert {r["status"] for r in rows(home)} == {"pending"}
    assert "nothing to do" in bench("run", first).out
    assert bench("run", path, "--jobs", 0).code == 0
    assert values(home) == numbers


# ---- processes -------------------------------------------------------------------------------------


def _command(*words):
    return [sys.executable, "-m", "bench", *map(str, words)]


def test_a_reader_that_leaves_early_sees_no_traceback_and_loses_nothing(suite, home):
    path = suite("[methods]\nwalker = {}", protocols="votes = {}")  # skipped: it needs a classifier
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        _command("run", path),
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode == 1
    assert {r["status"] for r in rows(home)} == {"skipped"}
    assert (home / "results" / "toy.md").exists()


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_next_run_goes_on_without_a_stdin(suite, home):
    slow = f'trouble = "slow", trouble_seed = 1, trouble_file = "{home}/begun"'
    path = suite(f"[methods]\nwalker = {{{slow}}}", top="seeds = 2")
    begun = time.monotonic()
    run = subprocess.Popen(
        # What a shell starts in the background ignores Ctrl-C, these tests perhaps among it.
        ["env", "--default-signal=INT", *_command("run", path, "--jobs", 1)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not (home / "begun").exists():
            assert run.poll() is None
            assert time.monotonic() - begun < 60
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)
        _, err = run.communicate(timeout=30)
    finally:
        run.kill()
    assert run.returncode == 130
    said = [line for line in err.splitlines() if line and not line.startswith(("toy: ", "[1/2]"))]
    assert said == ["bench: interrupted; what is done is kept, run the same command to go on"]
    assert statuses(home) == {"0": "ok", "1": "pending"}
    again = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *_command("run", path, "--jobs", 1)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "1 of 2 cells to do" in again.stderr
    assert statuses(home) == {"0": "ok", "1": "ok"}


@pytest.mark.slow
def test_a_worker_tells_of_a_device_that_is_not_there(suite, bench_process):
    done = bench_process("run", suite(top="seeds = 2"), "--jobs", 2, BENCH_DEVICE="cuda:99")
    assert told(done, "BENCH_DEVICE", "'cuda:99'", 'write "cpu"') == done.err.strip().splitlines()[-1]
