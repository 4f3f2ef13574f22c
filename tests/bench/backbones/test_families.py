"""What single families promise: published map sizes, noise, weight norm, torchvision's function."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from bench.backbones._noise import GaussianNoise
from bench.backbones.alexnet import AlexNet
from bench.backbones.alexnet_small import AlexNetSmall
from bench.backbones.conv_large import ConvLarge, MeanOnlyNorm, UnitConv
from bench.backbones.infomax import InfoMax
from bench.backbones.nin import NIN
from bench.backbones.resnet import ResNet18, ResNet50
from bench.backbones.wide_resnet import WideResNet
from bench.contracts import BenchError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def shapes(backbone, side: int, **options) -> list[tuple[int, ...]]:
    """(maps, side) of every tap, without computing anything."""
    with torch.device("meta"):
        encoder = backbone.build(generator=seeded(), **options).eval()
        found = encoder.trunk(encoder.input(torch.zeros(1, 3, side, side)))
        taps = encoder.activations(torch.zeros(1, 3, side, side), encoder.layers)
    return [tuple(maps.shape[1:3]) for maps in [*taps.values(), found]]


def test_alexnets_have_the_published_map_sizes():
    caffe = [(96, 55), (256, 27), (384, 13), (384, 13), (256, 13), (256, 6)]
    assert shapes(AlexNet(), 227) == caffe
    assert shapes(AlexNet(variant="deepcluster"), 224) == caffe
    assert shapes(AlexNet(variant="rotnet"), 224) == [
        (64, 55), (192, 27), (384, 13), (256, 13), (256, 13), (256, 6)
    ]  # fmt: skip
    # Noise As Targets pools before the ReLU that a tap ends with.
    assert shapes(AlexNet(variant="noise_as_targets"), 224) == [
        (96, 27), (256, 13), (384, 13), (384, 13), (256, 6), (256, 6)
    ]  # fmt: skip
    assert shapes(AlexNet(variant="jigsaw"), 227)[0] == (96, 109)
    assert shapes(AlexNet(variant="jigsaw"), 227, stem_stride=4) == caffe


def test_small_nets_have_the_documented_map_sizes():
    assert [s for _, s in shapes(AlexNetSmall(), 48)] == [24, 12, 6, 6, 6, 3]
    assert shapes(NIN(), 32)[:4] == [(96, 16), (192, 8), (192, 8), (192, 8)]
    assert len(shapes(NIN(blocks=5), 32)) == 6
    assert shapes(ConvLarge(), 32)[:3] == [(128, 32), (256, 16), (128, 6)]
    assert shapes(WideResNet(), 32)[:3] == [(32, 32), (64, 16), (128, 8)]
    assert shapes(InfoMax(), 32)[:3] == [(64, 16), (128, 8), (256, 4)]
    assert shapes(ResNet50(), 224)[:5] == [(64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)]
    assert shapes(ResNet18(stem="3x3"), 32)[:5] == [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)]


def test_fc6_reads_pool5_as_it_is_at_the_published_size():
    encoder = AlexNet().build(generator=seeded(), width=0.0625)
    maps = torch.rand(1, 16, 6, 6)
    assert torch.equal(encoder.top.grid(maps), maps)


def test_alexnet_variants_differ_as_their_table_says():
    def kinds(variant: str) -> list[str]:
        encoder = AlexNet(variant=variant).build(generator=seeded(), width=0.0625)
        return [type(m).__name__ for m in encoder.trunk.modules() if not isinstance(m, nn.Sequential)]

    assert kinds("caffenet")[:4] == ["Conv2d", "ReLU", "MaxPool", "LocalResponseNorm"]
    assert kinds("caffenet").count("LocalResponseNorm") == 2
    assert kinds("bigan")[:4] == ["Conv2d", "BatchNorm2d", "LeakyReLU", "MaxPool"]
    assert kinds("noise_as_targets")[:4] == ["Conv2d", "BatchNorm2d", "MaxPool", "ReLU"]
    assert "BatchNorm2d" not in kinds("jigsaw")
    assert kinds("doersch").count("BatchNorm2d") == 3


def test_batch_norm_is_said_for_the_settings():
    said = {
        v: AlexNet(variant=v).batch_norm for v in ("caffenet", "jigsaw", "split_brain", "rotnet", "doersch")
    }
    assert said == {"caffenet": False, "jigsaw": False, "split_brain": True, "rotnet": True, "doersch": True}


@pytest.mark.parametrize(("ours", "theirs"), [(ResNet18, "resnet18"), (ResNet50, "resnet50")])
@torch.no_grad()
def test_resnets_compute_what_torchvisions_do(ours, theirs):
    encoder = ours().build(generator=seeded()).eval()
    reference = torchvision.models.get_model(theirs).eval()
    names = {"conv1.0.": "conv1.", "conv1.1.": "bn1."}
    state = {}
    for key, value in encoder.trunk.state_dict().items():
        prefix = next((p for p in names if key.startswith(p)), "")
        state[names.get(prefix, "") + key[len(prefix) :]] = value
    reference.load_state_dict(state, strict=False)
    reference.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64, generator=seeded(1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(encoder(images), reference((images - mean) / std), rtol=1e-4, atol=1e-4)


def test_noise_is_there_in_training_only_and_has_its_deviation():
    noise, x = GaussianNoise(0.15), torch.zeros(4, 3, 64, 64)
    assert abs(noise.train()(x).std().item() - 0.15) < 0.005
    assert noise.eval()(x) is x


def test_unit_filters_do_not_depend_on_the_length_of_their_vectors():
    conv, x = UnitConv(3, 5, 3, 1, 1, bias=False), torch.randn(2, 3, 8, 8, generator=seeded())
    before = conv(x)
    with torch.no_grad():
        conv.weight *= torch.tensor([0.1, 1.0, 2.0, 30.0, 5.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(conv(x), before)


def test_mean_only_norm_by_hand():
    norm = MeanOnlyNorm(2, momentum=0.25)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([1.0, -1.0]))
    x = torch.tensor([[[[1.0, 3.0]], [[4.0, 8.0]]]])  # means 2 and 6
    assert norm.train()(x).flatten().tolist() == [-1.0, 3.0, -7.0, 5.0]
    assert norm.running_mean.tolist() == [0.5, 1.5]
    np.testing.assert_allclose(norm.eval()(x).detach().flatten(), [2.0, 6.0, 6.5, 18.5])
    norm.momentum = None
    norm.reset_running_stats()
    for value in (1.0, 3.0, 5.0):
        norm.train()(torch.full((1, 2, 2, 2), value))
    np.testing.assert_allclose(norm.running_mean, [3.0, 3.0], rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "patch"), [("jigsaw", 64), ("doersch", 96), ("caffenet", 114), ("bigan", 112)]
)
def test_without_its_top_alexnet_ends_in_the_pool5_of_a_patch(variant, patch):
    encoder = AlexNet(variant=variant, top=False, grid=3).build(generator=seeded(), width=0.0625).eval()
    images = torch.rand(2, 3, patch, patch, generator=seeded(1))
    maps = encoder.trunk(encoder.input(images))
    assert maps.shape == (2, 16, 3, 3)
    torch.testing.assert_close(encoder(images), maps.reshape(2, -1))
    assert encoder.dim == 16 * 9


@torch.no_grad()
def test_wide_resnets_first_shortcut_starts_after_the_activation():
    block = WideResNet(depth=10).build(generator=seeded()).trunk.group1[0].eval()
    block.conv2.weight.zero_()
    x = torch.randn(1, 16, 4, 4, generator=seeded(1))
    inner = torch.nn.functional.leaky_relu(x / (1 + 1e-5) ** 0.5, 0.1)
    torch.testing.assert_close(block(x), torch.nn.functional.conv2d(inner, block.shortcut.weight))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: AlexNet(variant="vgg"), "no variant 'vgg'"),
        (lambda: AlexNet(grid=3), "alexnet.grid must be 1 or more, with top = false, not 3"),
        (lambda: AlexNet(top=False, grid=0), "alexnet.grid must be 1 or more"),
        (lambda: AlexNetSmall(widths=(1, 2)), "five widths"),
        (lambda: NIN(blocks=1), "2 blocks or more"),
        (lambda: ConvLarge(normalization="layer"), "'batch' or 'weight'"),
        (lambda: WideResNet(depth=27), "6n \\+ 4"),
        (lambda: ResNet18(stem="5x5"), "resnet18.stem"),
        (lambda: InfoMax(widths=()), "one width"),
    ],
)
def test_bad_settings_are_told_in_one_line(make, line):
    with pytest.raises(BenchError, match=line):
        make()
