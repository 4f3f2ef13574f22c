"""Anybody's checkpoint: names by hand, files of every kind, networks of every make."""

from __future__ import annotations

import io
import pickle
import sys
import types

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from bench.contracts import DataShape
from bench.records import BenchError, Unit
from bench.registry import load
from methods.checkpoint import Checkpoint
from methods.parts import weights
from methods.parts.foreign import Foreign, Form

SHAPE = DataShape(10, 100, 64, color=True, flip=True)
WANTED = {
    "conv.weight": torch.zeros(2, 3),
    "norm.num_batches_tracked": torch.zeros(()),
    "fc.bias": torch.zeros(4),
}


def named(prefix, *, value=1.0, **more):
    return {
        f"{prefix}conv.weight": torch.full((2, 3), value),
        f"{prefix}fc.bias": torch.full((4,), value),
        **more,
    }


def generator():
    return torch.Generator().manual_seed(0)


def seeded(make, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "value"),
    [
        (named(""), 1),
        ({"state_dict": named("module."), "epoch": 3}, 1),
        ({"model": named("backbone.model.")}, 1),
        # MoCo: the key encoder and the queue are left alone.
        (
            {
                "state_dict": {
                    **named("module.encoder_k.", value=2.0),
                    **named("module.encoder_q."),
                    "module.queue": torch.ones(9),
                }
            },
            1,
        ),
        # DINO: both nets, a projection beside each; its evaluation takes the teacher.
        (
            {
                "student": {**named("module.backbone."), "module.head.mlp.0.weight": torch.ones(3)},
                "teacher": {**named("backbone.", value=2.0), "head.mlp.0.weight": torch.ones(3)},
                "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 3)}}},
            },
            2,
        ),
        # DataParallel inside (DeepCluster), torch.compile outside, and our own files.
        ({"_orig_mod.conv.module.weight": torch.ones(2, 3), "_orig_mod.fc.bias": torch.ones(4)}, 1),
        ({**named("encoder."), **named("variants.student.encoder.", value=3.0)}, 1),
    ],
)
def test_names_below_every_prefix(tmp_path, saved, value):
    torch.save(saved, tmp_path / "w.pt")
    found = weights.fit(weights.read(tmp_path / "w.pt"), WANTED, "w")
    assert set(found) == {"conv.weight", "fc.bias"}
    assert all((v == value).all() for v in found.values())


def test_a_prefix_that_is_named_is_taken(tmp_path):
    saved = {"student": named("backbone."), "teacher": named("backbone.", value=2.0)}
    torch.save(saved, tmp_path / "w.pt")
    found = weights.fit(weights.read(tmp_path / "w.pt"), WANTED, "w", prefix="student.backbone.")
    assert (found["fc.bias"] == 1).all()
    with pytest.raises(BenchError, match=r"no weight of the network is in the file below 'x\.'"):
        weights.fit(weights.read(tmp_path / "w.pt"), WANTED, "w", prefix="x.")


def test_several_networks_that_fit_are_not_chosen_from(tmp_path):
    saved = {**named("online_encoder."), **named("target_encoder.", value=2.0)}
    torch.save(saved, tmp_path / "w.pt")
    says = r"below 'online_encoder\.', 'target_encoder\.': write checkpoint\.prefix"
    with pytest.raises(BenchError, match=says):
        weights.fit(weights.read(tmp_path / "w.pt"), WANTED, "w")
    found = weights.fit(weights.read(tmp_path / "w.pt"), WANTED, "w", prefix="online_encoder.")
    assert (found["fc.bias"] == 1).all()
    twice = {**named("online_encoder."), **named("target_encoder.")}  # the same weights: nothing to choose
    assert set(weights.fit(twice, WANTED, "w")) == {"conv.weight", "fc.bias"}


def test_what_does_not_fit_is_told_by_name():
    found = {"m.conv.weight": torch.zeros(2, 3), "m.fc.bias": torch.zeros(5), "m.conv.bias": torch.zeros(2)}
    with pytest.raises(BenchError) as told:
        weights.fit(found, {**WANTED, "fc.weight": torch.zeros(1)}, "a.pt")
    assert str(told.value) == (
        "a.pt: does not fit the network: m.fc.bias has shape (5,) instead of (4,); m.fc.weight is missing; "
        "m.conv.bias is unknown"
    )
    weights.fit(found, {"conv.weight": torch.zeros(2, 3)}, "a.pt", dropped=["conv"])  # it was taken off


def test_ten_mismatches_are_told_and_the_rest_counted():
    wanted = {f"layer.{i}.weight": torch.zeros(1) for i in range(15)}
    with pytest.raises(BenchError) as told:
        weights.fit({"layer.0.weight": torch.zeros(1)}, wanted, "a.pt")
    assert "layer.10.weight is missing; and 4 more" in str(told.value)
    assert "\n" not in str(told.value)


def test_weights_of_something_else_are_no_weights():
    with pytest.raises(
        BenchError, match=r"no weight of the network.*the file has x\.weight; the network conv"
    ):
        weights.fit({"x.weight": torch.zeros(1)}, WANTED, "a.pt")


# ---- files ---------------------------------------------------------------------------------------


def test_safetensors_and_state_dicts_hold_the_same(tmp_path):
    value = named("")
    save_file(value, tmp_path / "w.safetensors")
    torch.save(value, tmp_path / "w.pth")
    one, other = weights.read(tmp_path / "w.safetensors"), weights.read(tmp_path / "w.pth")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_pickle_that_runs_code_is_refused_and_does_not(tmp_path):
    class Print:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"state_dict": named(""), "args": Print()}, tmp_path / "w.pt")
    with pytest.raises(BenchError, match="more than tensors and plain values.*print.*state dict alone"):
        weights.read(tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["garbage", "empty", "cut", "plain", "missing", "cut safetensors"])
def test_other_files_are_told_in_one_line(tmp_path, kind):
    path = tmp_path / ("w.safetensors" if "safetensors" in kind else "w.pt")
    whole = io.BytesIO()
    torch.save(named(""), whole)
    save_file(named(""), tmp_path / "whole")
    content = {
        "garbage": b"x" * 100,
        "empty": b"",
        "cut": whole.getvalue()[:-100],
        "plain": pickle.dumps({"epoch": 3}, protocol=2),
        "cut safetensors": (tmp_path / "whole").read_bytes()[:-8],
    }
    if kind != "missing":
        path.write_bytes(content[kind])
    with pytest.raises(BenchError) as told:
        weights.read(path)
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_no_state_dict_and_the_line_says_what_to_write(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with pytest.raises(BenchError, match='or an exported program, write network = "program"'):
        weights.read(tmp_path / "w.pt")


# ---- networks ------------------------------------------------------------------------------------


def read_onto(path, state, **settings):
    torch.save(state, path)
    method = Checkpoint(file=str(path), side=64, **settings)
    model = method.build(load("backbone", Unit("resnet18")), SHAPE, generator())
    method._load(model)
    return model.encoder.eval()


def pixels():
    return torch.randint(0, 256, (3, 3, 64, 64), generator=generator(), dtype=torch.uint8)


def normalized():
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels().float() / 255 - mean[:, None, None]) / std[:, None, None]


@torch.no_grad()
def stages(net, x):
    """A torchvision ResNet's maps and features, layer by layer."""
    found = {"relu": net.relu(net.bn1(net.conv1(x)))}
    x = net.maxpool(found["relu"])
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = found[name] = getattr(net, name)(x)
    return found, x.mean((2, 3))


@pytest.mark.parametrize("network", ["torchvision:resnet18", "timm:resnet18", ""])
@torch.no_grad()
def test_a_torchvision_file_on_the_same_net_of_three_makes(tmp_path, network):
    if "timm" in network:
        pytest.importorskip("timm")
    net = seeded(lambda: torchvision.models.resnet18(weights=None)).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator())
    encoder = read_onto(tmp_path / "w.pt", {"state_dict": net.state_dict()}, network=network)
    maps, features = stages(net, normalized())
    first = {"torchvision:resnet18": "relu", "timm:resnet18": "act1", "": "conv1"}[network]
    assert encoder.layers == (first, "layer1", "layer2", "layer3", "layer4")
    assert [encoder.strides[n] for n in encoder.layers] == [2, 4, 8, 16, 32]
    assert [encoder.channels[n] for n in encoder.layers] == [64, 64, 128, 256, 512]
    assert encoder.dim == 512
    torch.testing.assert_close(encoder(pixels()), features)
    taps = encoder.activations(pixels(), [first, "layer3"])
    torch.testing.assert_close(taps[first], maps["relu"])
    torch.testing.assert_close(taps["layer3"], maps["layer3"])


@torch.no_grad()
def test_alexnet_is_tapped_after_every_relu_and_gives_fc7(tmp_path):
    net = seeded(lambda: torchvision.models.alexnet(weights=None)).eval()
    encoder = read_onto(tmp_path / "w.pt", net.state_dict(), network="torchvision:alexnet")
    assert encoder.layers == ("features.1", "features.4", "features.7", "features.9", "features.11")
    x = net.avgpool(net.features(normalized())).flatten(1)
    torch.testing.assert_close(encoder(pixels()), net.classifier[:6](x))
    third = encoder.activations(pixels(), ["features.7"])["features.7"]
    torch.testing.assert_close(third, net.features[:8](normalized()))
    assert third.min() == 0


def test_layers_may_be_named_and_wrong_ones_are_told():
    method = Checkpoint(network="torchvision:resnet18", layers=("layer1.0", "layer4"), side=64)
    encoder = method.build(None, SHAPE, generator()).encoder
    assert encoder.activations(pixels(), ["layer1.0"])["layer1.0"].shape == (3, 64, 16, 16)
    with pytest.raises(BenchError, match=r"checkpoint\.layers: 'layer9' .*maps come from: conv1, bn1"):
        Checkpoint(network="torchvision:resnet18", layers=("layer9",), side=64).build(
            None, SHAPE, generator()
        )
    with pytest.raises(BenchError, match="is used more than once"):  # a block's own ReLU runs twice
        Checkpoint(network="torchvision:resnet18", layers=("layer1.0.relu",), side=64).build(
            None, SHAPE, generator()
        )


def test_a_deeper_nets_file_does_not_pass_for_a_shallower_ones(tmp_path):
    deep = torchvision.models.resnet34(weights=None).state_dict()
    with pytest.raises(BenchError, match=r"layer1\.2\.conv1\.weight is unknown.*and \d+ more"):
        read_onto(tmp_path / "w.pt", deep, network="torchvision:resnet18")


def test_the_dry_run_leaves_statistics_and_the_global_generator_alone():
    state = torch.get_rng_state()
    encoder = Checkpoint(network="torchvision:resnet18", side=64).build(None, SHAPE, generator()).encoder
    assert torch.equal(torch.get_rng_state(), state)
    assert (encoder.trunk.bn1.running_mean == 0).all()
    assert encoder.training
    assert not any(getattr(m, "inplace", False) for m in encoder.modules())


def test_what_lies_above_is_not_known():
    encoder = Checkpoint(network="torchvision:resnet18", side=64).build(None, SHAPE, generator()).encoder
    with pytest.raises(BenchError, match="from_layer"):
        encoder.above("layer1", generator())


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ("resnet18", 'write "torchvision:NAME"'),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'"),
        ("nowhere.at_all:net", "cannot be had: No module named 'nowhere'"),
        ("math:net", "cannot be had"),
        ("time:time", "returned a float, no nn.Module"),
        ("somebodys:net", "refuses images of 64 pixels"),
        ("somebodys:text", "neither features (N, d) nor maps"),
    ],
)
def test_wrong_networks_are_told(network, told, monkeypatch):
    module = types.ModuleType("somebodys")
    module.net, module.text = lambda: nn.Linear(3, 1), lambda: nn.Flatten(0)
    monkeypatch.setitem(sys.modules, "somebodys", module)
    with pytest.raises(BenchError) as error:
        Checkpoint(network=network, side=64).build(None, SHAPE, generator())
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_without_timm_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BenchError, match="needs timm: pip install timm"):
        Checkpoint(network="timm:resnet18", side=64).build(None, SHAPE, generator())


def test_a_factory_is_run_and_told(monkeypatch, caplog):
    module = types.ModuleType("somebodys")
    module.net = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2))
    monkeypatch.setitem(sys.modules, "somebodys", module)
    encoder = Checkpoint(network="somebodys:net", side=16).build(None, SHAPE, generator()).encoder
    assert isinstance(encoder, Foreign)
    assert "running somebodys:net" in caplog.text
    assert encoder.layers == ("1",)
    assert encoder(pixels()).shape == (3, 4)


def test_a_vision_transformer_has_features_and_by_itself_no_maps():
    pytest.importorskip("timm")
    encoder = Checkpoint(network="timm:vit_tiny_patch16_224").build(None, SHAPE, generator()).encoder
    assert encoder.layers == ()
    assert encoder.dim == 192
    with pytest.raises(BenchError, match="write layers"):
        encoder.maps(pixels())


class Tokens(nn.Module):
    """Each patch of 16 pixels as a token: its mean, and ``before`` others in front of them."""

    def __init__(self, before):
        super().__init__()
        self.grid, self.before = nn.AvgPool2d(16), before
        self.block, self.weight = nn.Identity(), nn.Parameter(torch.ones(1))

    def forward(self, x):
        tokens = self.grid(x).flatten(2).transpose(1, 2)
        return self.block(torch.cat([tokens.new_zeros(len(x), self.before, 3), tokens], 1)).mean(1)


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 160)])
def test_tokens_are_laid_back_onto_their_grid(before, height, width):
    encoder = Foreign(Tokens(before), (0.0,) * 3, (1.0,) * 3, ("block",), 224)
    assert (encoder.channels["block"], encoder.strides["block"]) == (3, 16)
    image = torch.rand(2, 3, height, width, generator=generator())
    maps = encoder.activations(image, ["block"])["block"]
    torch.testing.assert_close(maps, nn.functional.avg_pool2d(image, 16))


@pytest.mark.parametrize("count", [12, 197])  # 3 x 4 is a grid, but not that of a square
def test_tokens_that_are_no_grid_are_told(count):
    form = Form.seen(torch.Size([1, 197, 192]))
    with pytest.raises(BenchError, match=f"{count} tokens are no grid over an image of 64 x 64"):
        form.maps(torch.zeros(1, count + 1, 192), (64, 64))


def test_maps_whose_channels_come_last_are_turned():
    encoder = Checkpoint(network="torchvision:swin_t", side=64).build(None, SHAPE, generator()).encoder.eval()
    assert encoder.layers == tuple(f"features.{n}" for n in range(8))
    assert [encoder.channels[n] for n in encoder.layers] == [96, 96, 192, 192, 384, 384, 768, 768]
    assert [encoder.strides[n] for n in encoder.layers] == [4, 4, 8, 8, 16, 16, 32, 32]
    with torch.no_grad():
        maps = encoder.activations(pixels(), ["features.3"])["features.3"]
        expected = encoder.trunk.features[:4](normalized())
    torch.testing.assert_close(maps, expected.permute(0, 3, 1, 2))


def test_a_row_of_stages_is_tapped_after_each():
    pytest.importorskip("timm")
    encoder = Checkpoint(network="timm:convnext_atto", side=64).build(None, SHAPE, generator()).encoder
    assert encoder.layers == ("stem", "stages.0", "stages.1", "stages.2", "stages.3")
    assert [encoder.strides[n] for n in encoder.layers] == [4, 4, 8, 16, 32]
