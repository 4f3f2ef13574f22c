"""One answer whatever is read together: networks of others whose layers are tokens, or channels last."""

from __future__ import annotations

import pytest
import torch

from bench.cache import FileCache
from bench.contracts import BenchError, Model, Samples, Tap
from bench.data.sources import Resident
from bench.session import Session
from methods.parts.foreign import Foreign, network
from protocols._features import features

NETWORKS = {
    "torchvision:swin_t": ("features.1", "features.3"),
    "torchvision:vit_b_32": ("encoder.layers.encoder_layer_2", "encoder.layers.encoder_layer_7"),
    "torchvision:resnet18": ("layer1", "layer3"),
}
SIDE = 224


@pytest.fixture
def run(tmp_path):
    """Keeps nothing: every call reads the encoder."""
    return Session(tmp_path, seed=0, device=torch.device("cpu"), cache=FileCache(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_features_do_not_depend_on_who_else_reads(name, run):
    net, dropped = network(name, torch.Generator().manual_seed(0))
    encoder = Foreign(net, (0.5,) * 3, (0.25,) * 3, NETWORKS[name], SIDE, dropped)
    pixels = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    samples = Samples("x", Resident(pixels))
    taps = [Tap(layer, "dims_avg", 4096) for layer in encoder.layers]
    asked = [*taps, Tap("output")]
    together = features(Model(encoder), samples, asked, run)
    for tap in asked:
        (alone,) = features(Model(encoder), samples, [tap], run).values()
        assert torch.equal(alone, together[tap]), tap
    with torch.no_grad():
        encoder.eval()
        assert torch.equal(together[asked[-1]], encoder(pixels))
    maps = encoder.activations(pixels, encoder.layers)
    assert [m.shape[1] for m in maps.values()] == [encoder.channels[layer] for layer in encoder.layers]


class Overwriting(torch.nn.Module):
    """The second part writes into what the first one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.one(x)
        x += self.two(x).relu()
        return x


def test_a_map_is_what_it_was_when_it_was_made():
    encoder = Foreign(Overwriting(), (0.5,) * 3, (0.25,) * 3, ("one", "two"), 16)
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = encoder.trunk.one(encoder.input(pixels))
        for layers in (["one"], ["one", "two"], ["one", "output"]):
            assert torch.equal(encoder.read(pixels, layers)["one"], expected)
    with pytest.raises(BenchError, match="layer 'three' does not exist here"):
        encoder.read(pixels, ["three", "output"])
