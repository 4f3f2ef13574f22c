"""Files of proposals, written by others' tools as they publish them."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from scipy.io import savemat

from bench.data import proposals
from bench.records import BenchError

# Inclusive corners: two boxes of the first image, one of the second.
BOXES = {"000005": [[2, 3, 10, 12], [0, 0, 5, 5]], "000007": [[1, 1, 1, 4]]}
EDGES = {"000005": [[2, 3, 11, 13], [0, 0, 6, 6]], "000007": [[1, 1, 2, 5]]}


def cells(values):
    out = np.empty((1, len(values)), object)
    out[0] = values
    return out


def as_mat(path):
    """Girshick's selective search: 1-based (y1, x1, y2, x2)."""
    boxes = [np.array(b, float)[:, [1, 0, 3, 2]] + 1 for b in BOXES.values()]
    savemat(path, {"boxes": cells(boxes), "images": cells(list(BOXES))})
    return ("--order", "yxyx", "--base", 1)


def as_npz(path):
    np.savez(path, **{i: np.array(b) for i, b in BOXES.items()})
    return ()


def as_json(path):
    path.write_text(json.dumps(BOXES))
    return ()


def as_pickle(path):
    boxes = [np.array(b, np.uint16) for b in BOXES.values()]
    path.write_bytes(pickle.dumps({"boxes": boxes, "indexes": list(BOXES)}, 2))
    return ()


WRITERS = {"a.mat": as_mat, "a.npz": as_npz, "a.json": as_json, "a.pkl": as_pickle}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_converts_to_the_same_edges(bench, home, name):
    options = WRITERS[name](home / name)
    found = bench("data", "convert", home / name, home / "out.npz", *options)
    assert found.code == 0, found.err
    assert "2 images, 3 boxes, 1 to 2 an image" in found.out
    assert {i: b.tolist() for i, b in proposals.read(home / "out.npz").items()} == EDGES
    again = bench("data", "convert", home / "out.npz", home / "again.npz")  # ours is taken as it is
    assert again.code == 0
    assert {i: b.tolist() for i, b in proposals.read(home / "again.npz").items()} == EDGES


def test_ids_may_come_from_a_list(tmp_path):
    boxes = [np.array(b) for b in BOXES.values()]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"boxes": boxes}))
    with pytest.raises(BenchError, match="no ids for the boxes of 2 images; name a list with --ids"):
        proposals.convert(tmp_path / "a.pkl")
    (tmp_path / "ids.txt").write_text("000005\n000007\n")
    found = proposals.convert(tmp_path / "a.pkl", ids=tmp_path / "ids.txt")
    assert {i: b.tolist() for i, b in found.items()} == EDGES


class Code:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('ran').touch()",))


@pytest.mark.parametrize("name", ["a.pkl", "a.npz"])
def test_nothing_in_a_file_is_run(bench, home, name):
    if name == "a.pkl":
        (home / name).write_bytes(pickle.dumps({"boxes": Code(), "ids": ["000005"]}))
    else:
        poison = np.empty(1, object)
        poison[0] = Code()
        np.savez(home / name, ids=poison, counts=poison, boxes=poison)
    found = bench("data", "convert", home / name, home / "out.npz")
    assert found.code == 2
    assert found.err.count("\n") == 1 and "refused" in found.err
    assert not (home / "ran").exists() and not (home / "out.npz").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected {id: boxes}, not a list"),
        ("{", "not JSON"),
        ('{"a": [[1, 2, 3]]}', r"not \(k, 4\)"),
        ('{"a": [[5, 5, 1, 1]]}', "ends before it begins"),
        ('{"a": [["x", 5, 1, 1]]}', r"not \(k, 4\)"),
    ],
)
def test_bad_boxes_are_one_clear_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BenchError, match=message):
        proposals.convert(tmp_path / "a.json")


def test_boxes_come_with_their_image(tmp_path):
    proposals.write(tmp_path / "p.npz", {i: np.array(b, np.float32) for i, b in EDGES.items()})
    found = proposals.attach([{"labels": torch.tensor([3])}], ["000007"], tmp_path / "p.npz")
    assert found[0]["proposals"].tolist() == EDGES["000007"] and found[0]["labels"].tolist() == [3]
    with pytest.raises(BenchError, match="no proposals for image '000009'"):
        proposals.attach([{}], ["000009"], tmp_path / "p.npz")
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:80])
    with pytest.raises(BenchError, match="corrupt or truncated"):
        proposals.read(tmp_path / "p.npz")
