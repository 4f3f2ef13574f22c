"""Names that say what they are and stay in their folder; files that are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import artifacts
from bench.artifacts import (
    Done,
    cell_id,
    cell_name,
    cell_stem,
    folder,
    merge_json,
    outcomes,
    read_json,
    siblings,
    slug,
    training_id,
    training_settings,
    training_stem,
    write_json,
    written,
)
from bench.records import Aim, BenchError, Cell, Data, Training, Unit

DIGITS = Unit.of("digits", {"side": 16})
ROTATION = Training(
    method=Unit.of("rotation", {"lr": 0.1, "drops": [0.3, 0.6], "augment": "none"}),
    backbone=Unit.of("alexnet_small", {"widths": [8, 8, 8, 8, 8]}),
    data=Data(DIGITS, labels=0),
    budget=600,
    seed=3,
)
SUPERVISED = Training(
    method=Unit.of("supervised", {"lr": 0.05}),
    backbone=Unit.of("resnet18"),
    data=Data(DIGITS, labels=100, label_split=2, label_noise=0.2, labeled_classes=(1, 2), validation=50),
    budget="12 epochs",
    precision="bf16",
    snapshots=5,
    init=ROTATION,
)
PIXELS = Training(Unit.of("raw_pixels", {"side": 8}), Unit("none"), Data(DIGITS, labels=0))
KNN = Cell(PIXELS, Unit.of("knn", {"k": 10, "temperature": 0.07}), Aim(DIGITS, labels=200))


def test_ids_of_fixed_specs_are_pinned():
    # Names of finished results in people's folders hang on these. The digest of the code is left out: it moves.
    assert training_stem(ROTATION) == "rotation-alexnet_small-digits-s3-bb3b6113bf"
    assert training_stem(SUPERVISED) == "supervised-resnet18-digits-100labels-s0-41fb4d5a4f"
    assert training_stem(PIXELS) == "raw_pixels-none-digits-s0-9e1e212485"
    assert cell_stem(KNN) == "knn-digits-361bd03f78"


def test_an_id_is_the_stem_and_eight_digits_of_the_code(home):
    assert re.fullmatch(re.escape(training_stem(ROTATION)) + "-[0-9a-f]{8}", training_id(ROTATION))
    assert re.fullmatch(re.escape(cell_stem(KNN)) + "-[0-9a-f]{8}", cell_name(KNN))
    assert cell_id(KNN) == f"{training_id(PIXELS)}/{cell_name(KNN)}"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"budget": "13 epochs"},
        {"precision": "fp32"},
        {"threads": 2},
        {"snapshots": 6},
        {"init": None},
        {"method": Unit.of("supervised", {"lr": 0.06})},
        {"data": replace(SUPERVISED.data, label_split=3)},
        {"data": replace(SUPERVISED.data, label_noise=0.3)},
        {"data": replace(SUPERVISED.data, resample=1)},
        {"init": replace(ROTATION, seed=4)},
    ],
    ids=str,
)
def test_every_setting_of_a_training_is_part_of_its_id(change):
    assert training_settings(replace(SUPERVISED, **change)) != training_settings(SUPERVISED)


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": Unit.of("knn", {"k": 11, "temperature": 0.07})},
        {"aim": Aim(DIGITS, labels=201)},
        {"aim": Aim(DIGITS, labels=200, label_split=1)},
        {"aim": Aim(DIGITS, labels=200, validation=5)},
        {"variant": "student"},
        {"snapshots": "all"},
    ],
    ids=str,
)
def test_every_setting_of_a_cell_is_part_of_its_name(change):
    assert cell_stem(replace(KNN, **change)) != cell_stem(KNN)


def test_why_a_cell_is_skipped_is_no_part_of_what_it_is():
    assert cell_stem(replace(KNN, skip="needs color")) == cell_stem(KNN)
    assert replace(KNN, skip="needs color") == KNN


def test_code_is_part_of_the_id_of_those_who_use_it(toys, forgetting):
    data = Data(Unit.of("dots", {"side": 8, "count": 36}), labels=0)
    walker = Training(Unit.of("walker"), Unit.of("dot_net"), data)
    namer = Training(Unit.of("namer"), Unit.of("dot_net"), data)
    cell = Cell(walker, Unit.of("norms"), Aim(data.dataset))
    later = replace(namer, init=walker)

    def names():
        forgetting(files=True)
        return training_id(walker), training_id(namer), cell_name(cell), training_id(later)

    before = names()
    part = toys / "toy_units" / "part.py"
    part.write_text("# a comment alone\n" + part.read_text())
    assert names() == before
    part.write_text("STEP = 0.5\n")
    after = names()
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, False, False, True]
    assert after[0][:-8] == before[0][:-8]
    net = toys / "toy_units" / "dot_net.py"
    net.write_text(net.read_text().replace("3, 2, 1", "3, 1, 1"))
    assert [a != b for a, b in zip(names(), after, strict=True)] == [True, True, False, True]


# ---- names on disk -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["../../etc", "/root", "a/b", "..", "", "a\0b", "x" * 500, "é ß", "-rf", ".hidden"]
)
def test_no_name_leaves_its_folder(text, tmp_path):
    name = slug(text)
    assert re.fullmatch(r"[A-Za-z0-9_]{1,60}", name)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


def test_no_name_of_a_unit_leaves_the_runs_folder(tmp_path):
    nasty = replace(PIXELS, method=Unit.of("../../../tmp/x"), data=Data(Unit.of("/etc/../passwd"), labels=0))
    cell = Cell(nasty, Unit.of("../knn"), Aim(Unit.of("..")), variant="../student")
    for name in (training_stem(nasty), cell_stem(cell)):
        assert "/" not in name
        assert not name.startswith(".")


# ---- files ---------------------------------------------------------------------------------------


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), written(path) as temporary:
        temporary.write_text("half of")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(path, {"b": object()})
    assert read_json(path) == {"a": 1}
    write_json(path, {"c": 2})
    assert json.loads(path.read_text()) == {"c": 2}
    assert merge_json(path, {"d": 3}) is None
    assert read_json(path) == {"c": 2, "d": 3}


def test_nothing_is_left_behind_by_a_write_that_failed(tmp_path):
    with pytest.raises(RuntimeError), written(tmp_path / "file") as temporary:
        temporary.write_text("half of")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file/below", "/proc/nowhere/file"])
def test_a_place_that_cannot_be_written_is_told_with_the_remedy(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BenchError, match="cannot be written: .+; .*or choose another folder"):
        write_json(tmp_path / place, {})


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"v": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchError, match=r"a\.json: cannot be written: No space left on device"):
        write_json(tmp_path / "a.json", {"v": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "a.json") == {"v": 1}


def test_reading_what_is_missing_or_damaged(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path) is None
    for text in ("", '{"a": ', "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(BenchError, match="delete it and it is made again"):
            read_json(path)


def test_a_files_digest_is_its_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert artifacts.file_digest(tmp_path / "x") == wanted


def _hold(path, started, seconds):
    with artifacts.lock(Path(path)):
        started.set()
        time.sleep(seconds)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder for so many seconds."""
    context = multiprocessing.get_context("fork")
    processes = []

    def start(seconds):
        started = context.Event()
        process = context.Process(target=_hold, args=(str(tmp_path), started, seconds))
        process.start()
        assert started.wait(20)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_who_comes_second_waits(tmp_path, holder):
    holder(0.5)
    begun = time.monotonic()
    with artifacts.lock(tmp_path):
        assert time.monotonic() - begun > 0.3


def test_a_dead_holder_lets_go(tmp_path, holder):
    process = holder(60)
    process.kill()
    process.join()
    begun = time.monotonic()
    with artifacts.lock(tmp_path):
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_disk_without_locks_is_told_with_its_remedy(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    says = rf"{re.escape(str(tmp_path))}.*no file locks \({re.escape(os.strerror(code))}\).*--runs"
    for hold in (artifacts.lock, artifacts.free):
        with pytest.raises(BenchError, match=says), hold(tmp_path):
            pass


def test_a_lock_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(BenchError, match="cannot be written: .*; choose another folder with --runs"),
        artifacts.lock(tmp_path / "file"),
    ):
        pass


# ---- outcomes ------------------------------------------------------------------------------------


def test_what_is_done_is_what_lies_there_whole(home):
    files = folder(home, PIXELS)
    assert outcomes(home, PIXELS) == set()
    write_json(files.failed(cell_name(KNN)), {"status": "failed"})
    assert not Done(home)(KNN)
    (files.path / "cells" / f".{cell_name(KNN)}.json.77").write_text("half of")
    assert not Done(home)(KNN)
    write_json(files.cell(cell_name(KNN)), {"status": "ok"})
    assert not Done(home)(KNN)  # the record of its training is lost, and made again
    write_json(files.status, {"status": "ok"})
    assert Done(home)(KNN)
    assert not Done(home)(replace(KNN, variant="other"))


def test_siblings_are_the_same_settings_of_other_code_newest_first(home):
    for age, mark in ((20, "11111111"), (10, "22222222")):
        path = home / f"{training_stem(PIXELS)}-{mark}"
        path.mkdir()
        os.utime(path, (time.time() - age,) * 2)
    (home / training_id(PIXELS)).mkdir()
    (home / f"{training_stem(ROTATION)}-33333333").mkdir()
    assert [p.name[-8:] for p in siblings(home, PIXELS)] == ["22222222", "11111111"]
