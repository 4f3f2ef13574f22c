"""The published grids on the true map sizes, and what is computed in them, by loops."""

import numpy as np
import pytest
import torch

from bench.backbones.alexnet import AlexNet
from bench.contracts import BenchError
from bench.pooling import NAMES, grid_for, pool

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")


@torch.no_grad()
def dims(variant: str, side: int, name: str, size: int = 0) -> list[int]:
    """Numbers per layer of the real network, computed without storage."""
    with torch.device("meta"):
        encoder = AlexNet(variant=variant).build(generator=torch.Generator()).eval()
        maps = encoder.activations(torch.zeros(1, 3, side, side), LAYERS)
    return [pool(torch.zeros(maps[layer].shape), name, size, layer).numel() for layer in LAYERS]


@pytest.mark.parametrize(
    ("variant", "side", "name", "expected"),
    [
        ("caffenet", 227, "zhang_resize", [9600, 9216, 9600, 9600, 9216]),
        ("caffenet", 227, "goyal_avg", [9600, 9216, 9600, 9600, 9216]),
        ("jigsaw", 227, "goyal_jigsaw_avg", [9600, 9216, 9600, 9600, 9216]),
        ("rotnet", 224, "rotnet_max", [9216, 9408, 9600, 9216, 9216]),
        ("deepcluster", 224, "deepcluster_avg", [9600, 9216, 9600, 9600, 9216]),
        ("deepcluster", 224, "asano_max", [9600, 9216, 9600, 9600, 9216]),
        # floor(sqrt(9000 / C)): 9, 5, 4, 4, 5.
        ("caffenet", 227, "kolesnikov_max", [7776, 6400, 6144, 6144, 6400]),
    ],
)
def test_published_grids(variant, side, name, expected):
    assert dims(variant, side, name) == expected


def test_pool_layers_have_their_published_grids():
    for layer, channels, side in (("pool1", 96, 27), ("pool2", 256, 13), ("pool5", 256, 6)):
        found = pool(torch.zeros(1, channels, side, side), "zhang_resize", layer=layer)
        assert found.numel() == {"pool1": 9600, "pool2": 9216, "pool5": 9216}[layer]
    for layer, channels, side in (("pool1", 96, 54), ("pool2", 256, 27), ("pool5", 256, 13)):
        found = pool(torch.zeros(1, channels, side, side), "goyal_jigsaw_avg", layer=layer)
        assert found.numel() == {"pool1": 9600, "pool2": 9216, "pool5": 9216}[layer]


def windows(maps: np.ndarray, kernel: int, stride: int, padding: int, reduce) -> np.ndarray:
    """Pooling in plain loops."""
    fill = 0.0 if reduce is np.mean else -np.inf
    padded = np.pad(maps, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2), constant_values=fill)
    count = (padded.shape[2] - kernel) // stride + 1
    rows = []
    for i in range(count):
        cells = [padded[:, :, i * stride :, j * stride :][:, :, :kernel, :kernel] for j in range(count)]
        rows.append(np.stack([reduce(cell, axis=(2, 3)) for cell in cells], -1))
    return np.stack(rows, -2)


@pytest.mark.parametrize(
    ("name", "layer", "side", "window", "reduce"),
    [
        ("deepcluster_avg", "conv1", 55, (6, 6, 3), np.mean),
        ("deepcluster_avg", "conv3", 13, (3, 3, 1), np.mean),
        ("asano_max", "conv1", 55, (6, 6, 3), np.max),
        ("asano_max", "conv5", 13, (2, 2, 0), np.max),
        ("goyal_avg", "conv2", 27, (12, 3, 0), np.mean),
        ("goyal_jigsaw_avg", "pool1", 54, (6, 6, 3), np.mean),
    ],
)
def test_windows_by_loops(name, layer, side, window, reduce):
    maps = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = windows(maps.numpy(), *window, reduce)
    np.testing.assert_allclose(pool(maps, name, layer=layer), expected, rtol=1e-5)


def test_adaptive_grids_by_hand():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert pool(maps, "adaptive_avg", 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool(maps, "adaptive_max", 2).flatten().tolist() == [5.0, 7.0, 13.0, 15.0]
    assert pool(maps, "cpc_mean").flatten().tolist() == [7.5]
    assert pool(maps, "dims_max", 4).flatten().tolist() == [5.0, 7.0, 13.0, 15.0]
    assert pool(maps, "dims_avg", 8).shape == (1, 1, 2, 2)
    assert pool(maps, "kolesnikov_max", 1).flatten().tolist() == [15.0]
    assert pool(maps, "none") is maps


def test_resize_is_bilinear_between_pixel_centers():
    maps = torch.arange(13.0).expand(1, 1, 13, 13)
    # Centers of 5 cells of 2.6 pixels: 0.8, 3.4, 6, 8.6, 11.2 on a ramp that is its own coordinate.
    found = pool(maps, "zhang_resize", layer="conv3")
    np.testing.assert_allclose(found[0, 0, 0], [0.8, 3.4, 6.0, 8.6, 11.2], rtol=1e-5)


def test_size_stands_in_for_the_tables_side():
    maps = torch.rand(1, 4, 16, 16)
    assert pool(maps, "rotnet_max", 3, "conv1").shape == (1, 4, 3, 3)
    assert pool(maps, "zhang_resize", 8, "block1").shape == (1, 4, 8, 8)


@pytest.mark.parametrize("name", NAMES)
def test_no_map_is_ever_enlarged(name):
    maps = torch.rand(2, 4, 2, 3)
    size = 10_000 if name.startswith("dims") else 5 if name.startswith("adaptive") else 0
    found = pool(maps, name, size, "conv1")
    assert found.shape[:2] == (2, 4)
    assert found.shape[2] <= 2
    assert found.shape[3] <= 3
    if name in {"adaptive_avg", "adaptive_max", "zhang_resize", "rotnet_max", "kolesnikov_max", "dims_avg"}:
        assert torch.equal(found, maps)


def test_a_map_below_the_window_becomes_one_number():
    maps = torch.arange(9.0).view(1, 1, 3, 3)
    assert pool(maps, "goyal_avg", layer="conv3").flatten().tolist() == [4.0]
    assert pool(maps, "asano_max", layer="conv2").flatten().tolist() == [8.0]


def test_grid_is_the_largest_that_fits():
    assert [grid_for(c, 9600) for c in (96, 256, 384, 9600, 20_000)] == [10, 6, 5, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_layout_pass(dtype):
    maps = torch.rand(2, 8, 14, 14).to(dtype).contiguous(memory_format=torch.channels_last)
    for name in NAMES:
        found = pool(maps, name, 4, "conv3")
        assert found.dtype == dtype
        reference = pool(maps.contiguous().double(), name, 4, "conv3")
        torch.testing.assert_close(found.double(), reference, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("average",), "no pooling 'average'; known are: none, adaptive_avg"),
        (("adaptive_avg",), "needs a size"),
        (("dims_avg",), "needs a size"),
        (("zhang_resize", 0, "block1"), "no entry for layer 'block1'"),
        (("goyal_avg", 0, "pool1"), "no entry for layer 'pool1'"),
    ],
)
def test_mistakes_are_told(arguments, line):
    with pytest.raises(BenchError, match=line):
        pool(torch.zeros(1, 2, 4, 4), *arguments)


def test_features_have_no_grid():
    assert pool(torch.zeros(2, 5), "none").shape == (2, 5)
    with pytest.raises(BenchError, match="needs maps"):
        pool(torch.zeros(2, 5), "cpc_mean")
