"""What every backbone owes: true strides and channels, its own randomness, any input, any layout."""

import pytest
import torch
from torch import nn

from bench.backbones.alexnet import _VARIANTS, AlexNet
from bench.backbones.alexnet_small import AlexNetSmall
from bench.backbones.conv_large import ConvLarge
from bench.backbones.infomax import InfoMax
from bench.backbones.nin import NIN
from bench.backbones.resnet import ResNet18, ResNet50
from bench.backbones.wide_resnet import WideResNet
from bench.contracts import Backbone, BenchError, Encoder

ALEXNETS = [AlexNet(variant=v) for v in _VARIANTS]
OTHERS = [
    AlexNet(variant="rotnet", top=False),
    AlexNet(variant="jigsaw", top=False, grid=3),
    AlexNetSmall(),
    AlexNetSmall(batch_norm=False, stem_stride=1),
    NIN(),
    NIN(blocks=2),
    ConvLarge(),
    ConvLarge(normalization="weight"),
    WideResNet(),
    WideResNet(depth=10, widen=1),
    ResNet18(),
    ResNet18(stem="3x3"),
    ResNet50(),
    InfoMax(),
]
ALL = ALEXNETS + OTHERS
every = pytest.mark.parametrize("backbone", ALL, ids=repr)


def make(backbone: Backbone, seed: int = 0, **options) -> Encoder:
    generator = torch.Generator().manual_seed(seed)
    return backbone.build(generator=generator, width=0.0625, **options).eval()


def pixels(side: int, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)).byte()


@every
@torch.no_grad()
def test_channels_and_strides_are_those_of_real_maps(backbone):
    encoder = make(backbone)
    # 64 more pixels a side add exactly 64 / stride to a map, whatever padding and rounding do.
    small, large = (encoder.activations(pixels(side, 1), encoder.layers) for side in (64, 128))
    assert list(small) == list(encoder.layers)
    for layer in encoder.layers:
        assert small[layer].shape[1] == encoder.channels[layer]
        assert (large[layer].shape[2] - small[layer].shape[2]) * encoder.strides[layer] == 64


@every
@torch.no_grad()
def test_features_have_the_stated_width_for_bytes_and_floats_alike(backbone):
    encoder, images = make(backbone), pixels(64)
    features = encoder(images)
    assert features.shape == (2, encoder.dim)
    assert features.isfinite().all()
    assert features.std() > 0
    torch.testing.assert_close(encoder(images.float() / 255), features)


@every
def test_weights_come_from_the_generator_alone(backbone):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = make(backbone, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two, three = make(backbone, seed=3).state_dict(), make(backbone, seed=4).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], three[key]) for key in one)
    assert all(value.isfinite().all() for value in one.values())


@every
def test_trains_in_bfloat16_and_channels_last(backbone):
    encoder = make(backbone).to(memory_format=torch.channels_last).train()
    images = pixels(64).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = encoder(images).float().square().mean()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every
@torch.no_grad()
def test_tiny_images_pass(backbone):
    encoder = make(backbone)
    assert encoder(pixels(24)).shape == (2, encoder.dim)


@pytest.mark.parametrize("backbone", OTHERS + ALEXNETS[:2], ids=repr)
@torch.no_grad()
def test_another_input_module_may_yield_other_channels(backbone):
    class Gray(nn.Module):
        def forward(self, images):
            return images.float().mean(1, keepdim=True) / 255

    encoder = make(backbone, in_channels=1, input=Gray())
    assert encoder(pixels(64)).shape == (2, encoder.dim)
    with pytest.raises(BenchError, match="needs an input module that yields 1"):
        make(backbone, in_channels=1)


@pytest.mark.parametrize("backbone", OTHERS + ALEXNETS[:2], ids=repr)
def test_stem_stride_overrides_conv1s(backbone):
    one, two = make(backbone, stem_stride=1), make(backbone, stem_stride=2)
    assert {layer: 2 * s for layer, s in one.strides.items()} == two.strides
    images = pixels(64, 1)
    with torch.no_grad():
        sides = [e.activations(images, e.layers[:1])[e.layers[0]].shape[2] for e in (one, two)]
    assert abs(sides[0] / 2 - sides[1]) <= 1.5


@every
@torch.no_grad()
def test_the_part_above_a_tap_is_anew_and_fits(backbone):
    encoder = make(backbone)
    for layer in encoder.layers:
        maps = encoder.activations(pixels(64), [layer])[layer]
        above = encoder.above(layer, torch.Generator().manual_seed(9)).eval()
        assert above(maps).shape == (2, encoder.dim)


@every
@torch.no_grad()
def test_taps_do_not_change_after_they_were_read(backbone):
    encoder, images = make(backbone), pixels(64)
    together = encoder.activations(images, encoder.layers)
    for layer in encoder.layers:
        assert torch.equal(together[layer], encoder.activations(images, [layer])[layer])


@every
def test_settings_are_plain_and_the_paper_is_cited(backbone):
    assert backbone.kind == "backbone"
    assert len(backbone.paper) > 10
    has_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in make(backbone).modules())
    assert backbone.batch_norm is has_norm


@every
@torch.no_grad()
def test_the_maps_keep_their_scale_through_depth(backbone):
    # Dead or exploding maps at the start would make every frozen random encoder useless.
    encoder = make(backbone)
    for layer, maps in encoder.activations(pixels(64, 4), encoder.layers).items():
        assert 0.02 < maps.std() < 50, layer
