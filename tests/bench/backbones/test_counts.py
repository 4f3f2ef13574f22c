"""Parameter counts: published ones, torchvision's, and sums by hand. Nothing is allocated."""

import pytest
import torch
import torchvision

from bench.backbones.alexnet import AlexNet
from bench.backbones.alexnet_small import AlexNetSmall
from bench.backbones.conv_large import ConvLarge
from bench.backbones.infomax import InfoMax
from bench.backbones.nin import NIN
from bench.backbones.resnet import ResNet18, ResNet50
from bench.backbones.wide_resnet import WideResNet


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def built(backbone, **options):
    with torch.device("meta"):
        return backbone.build(generator=torch.Generator(), **options)


def with_head(backbone, classes: int) -> int:
    encoder = built(backbone)
    return count(encoder) + (encoder.dim + 1) * classes


def test_published_counts_with_their_heads():
    assert with_head(ConvLarge(), 10) == 3_123_850
    assert with_head(WideResNet(), 10) == 1_467_610
    assert with_head(NIN(), 4) == 1_411_140
    assert with_head(AlexNet(), 1000) == 60_965_224


def test_conv_large_without_biases_loses_2048_of_them():
    # Weight norm's gains and biases stand where batch norm's do; the convolutions' own 2048 biases go.
    assert with_head(ConvLarge(normalization="weight"), 10) == 3_123_850 - 2048


@pytest.mark.parametrize(("ours", "theirs"), [(ResNet18(), "resnet18"), (ResNet50(), "resnet50")])
def test_resnets_are_torchvisions_without_fc(ours, theirs):
    with torch.device("meta"):
        reference = torchvision.models.get_model(theirs)
    assert count(built(ours)) == count(reference) - count(reference.fc)


def test_resnet_stem_3x3_has_a_smaller_first_filter():
    assert count(built(ResNet18())) - count(built(ResNet18(stem="3x3"))) == 64 * 3 * (49 - 9)


def test_rotnet_is_torchvisions_alexnet_with_norms_for_biases():
    with torch.device("meta"):
        reference = torchvision.models.alexnet()
    widths = [m.out_channels for m in reference.features if isinstance(m, torch.nn.Conv2d)]
    weights = sum(m.weight.numel() for m in reference.features if isinstance(m, torch.nn.Conv2d))
    encoder = built(AlexNet(variant="rotnet"))
    assert [encoder.channels[layer] for layer in encoder.layers] == widths == [64, 192, 384, 256, 256]
    assert count(encoder.trunk) == weights + 2 * sum(widths)
    fully = [m for m in reference.classifier if isinstance(m, torch.nn.Linear)][:2]
    assert count(encoder.top) == sum(m.weight.numel() for m in fully) + 2 * 2 * 4096


# Weights of CaffeNet's convolutions after the first: grouped in 2, 4 and 5, or not.
GROUPED = 256 * 48 * 25 + 384 * 256 * 9 + 384 * 192 * 9 + 256 * 192 * 9
ONE_TOWER = 256 * 96 * 25 + 384 * 256 * 9 + 384 * 384 * 9 + 256 * 384 * 9
WIDE = 96 + 256 + 384 + 384 + 256
FIRST = 96 * 121  # per input channel


@pytest.mark.parametrize(
    ("variant", "trunk"),
    [
        ("caffenet", 3 * FIRST + GROUPED + WIDE),
        ("jigsaw", 3 * FIRST + GROUPED + WIDE),
        ("split_brain", 3 * FIRST + GROUPED + 2 * WIDE),
        ("zhang", 1 * FIRST + GROUPED + 2 * WIDE),
        ("bigan", 3 * FIRST + GROUPED + 2 * WIDE),
        ("context_encoder", 3 * FIRST + GROUPED + 2 * WIDE),
        ("doersch", 3 * FIRST + ONE_TOWER + 96 + 256),
        ("noise_as_targets", 2 * FIRST + ONE_TOWER + 2 * WIDE),
        ("deepcluster", 2 * FIRST + ONE_TOWER + 2 * WIDE),
        ("instance_discrimination", 3 * FIRST + ONE_TOWER + 2 * WIDE),
    ],
)
def test_alexnet_trunks_by_hand(variant, trunk):
    assert count(built(AlexNet(variant=variant)).trunk) == trunk


def test_small_nets_by_hand():
    small = 3 * 32 * 25 + (32 * 64 + 64 * 96 + 96 * 96 + 96 * 64) * 9
    assert count(built(AlexNetSmall())) == small + 2 * 352
    assert count(built(AlexNetSmall(batch_norm=False))) == small + 352
    infomax = (3 * 64 + 64 * 128 + 128 * 256) * 16 + 2 * 448 + 4096 * 1024 + 2 * 1024
    assert count(built(InfoMax())) == infomax


def test_width_halves_the_channels():
    encoder = built(AlexNet(), width=0.5)
    assert list(encoder.channels.values()) == [48, 128, 192, 192, 128]
    assert encoder.dim == 2048
    assert list(built(ResNet50(), width=0.25).channels.values()) == [16, 64, 128, 256, 512]
