"""Tensors on disk: what was written is read back to the bit, and nothing else is read at all."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from bench import tensors
from bench.records import BenchError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def optimizer(name, net):
    groups = [{"params": net[0].parameters(), "scale": 0.1}, {"params": net[3].parameters()}]
    if name == "sgd":
        return torch.optim.SGD(groups, 0.05, 0.9, nesterov=True)
    return torch.optim.Adam(groups, 0.01, (0.5, 0.9))


def step(net, descent, seed):
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    descent.zero_grad()
    net(images).square().mean().backward()
    descent.step()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_training_goes_on_from_disk_as_if_nothing_had_happened(tmp_path, name):
    net = network().to(memory_format=torch.channels_last)
    descent = optimizer(name, net)
    memory = torch.arange(6.0).view(2, 3)
    for seed in range(3):
        step(net, descent, seed)
    state = {
        "net": net,
        "optimizer": descent,
        "memory": memory,
        "table": {"a": [1, 2.5, None], "b": memory * 2},
        "list": [True, "x"],
    }
    packed, text = tensors.pack(state)
    tensors.save(tmp_path / "state.safetensors", packed, {"state": text})
    again = network().to(memory_format=torch.channels_last)
    other = {
        "net": again,
        "optimizer": optimizer(name, again),
        "memory": torch.zeros(2, 3),
        "table": {},
        "list": [],
    }
    text = tensors.read_header(tmp_path / "state.safetensors")["state"]
    tensors.unpack(other, tensors.read(tmp_path / "state.safetensors"), text)
    assert torch.equal(other["memory"], memory)
    assert other["table"]["a"] == [1, 2.5, None]
    assert torch.equal(other["table"]["b"], memory * 2)
    assert other["list"] == [True, "x"]
    for seed in range(3, 6):
        step(net, descent, seed)
        step(again, other["optimizer"], seed)
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert other["optimizer"].param_groups[0]["scale"] == 0.1
    assert other["optimizer"].param_groups[0].get("betas") == descent.param_groups[0].get("betas")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_every_kind_of_tensor_comes_back(tmp_path, dtype):
    value = (torch.arange(12) % 2).to(dtype).view(3, 4)
    shared = {"a": value, "b": value.t(), "c": value[1:], "empty": value[:0], "one": value[0, 0]}
    tensors.save(tmp_path / "x", shared)
    for key, found in tensors.read(tmp_path / "x").items():
        assert found.dtype == dtype
        assert torch.equal(found, shared[key])


def test_a_model_without_weights_comes_back(tmp_path):
    tensors.save_model(tmp_path / "x", nn.Identity())
    tensors.load_model(tmp_path / "x", nn.Identity())
    assert tensors.read(tmp_path / "x") == {}


def test_weights_of_another_model_are_told_by_name(tmp_path):
    tensors.save_model(tmp_path / "x", nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    with pytest.raises(
        BenchError, match=r"x: weights of another model: 0\.weight has shape \(3, 2\) instead of \(4, 2\); "
    ):
        tensors.load_model(tmp_path / "x", nn.Sequential(nn.Linear(2, 4), nn.Linear(3, 1)))
    with pytest.raises(BenchError, match="2.weight is missing"):
        tensors.load_model(tmp_path / "x", nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1)))
    with pytest.raises(BenchError, match="1.weight is unknown"):
        tensors.load_model(tmp_path / "x", nn.Sequential(nn.Linear(2, 3)))


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "pickle", "torch", "truncated", "folder", "long header"]
)
def test_a_file_of_another_kind_is_one_line(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "torch":
        torch.save({"a": Bomb()}, path)
    elif kind == "truncated":
        tensors.save(path, {"a": torch.randn(100)})
        path.write_bytes(path.read_bytes()[:-50])
    elif kind != "missing":
        data = {
            "empty": b"",
            "text": b"hello" * 30,
            "pickle": pickle.dumps(Bomb()),
            "long header": b"\xff" * 64,
        }[kind]
        path.write_bytes(data)
    for read in (tensors.read, tensors.read_header):
        with pytest.raises(BenchError, match=r"x\.safetensors: not a readable safetensors file") as told:
            read(path)
        assert "\n" not in str(told.value)


def test_state_that_cannot_be_kept_is_told_by_name():
    with pytest.raises(TypeError, match="state '/table/bad' holds a set"):
        tensors.pack({"table": {"bad": {1, 2}}})
    with pytest.raises(TypeError, match="state 'count' is a int and cannot be restored in place"):
        tensors.unpack({"count": 3}, {}, tensors.pack({"count": 3})[1])


def test_keys_keep_their_types():
    packed, text = tensors.pack({"table": {1: "a", "1": "b", "deep": {0: torch.ones(1)}}})
    table: dict = {}
    tensors.unpack({"table": table}, packed, text)
    assert table[1] == "a"
    assert table["1"] == "b"
    assert torch.equal(table["deep"][0], torch.ones(1))


def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BenchError, match="cannot be written"):
        tensors.save(tmp_path / "file" / "x", {"a": torch.ones(1)})
