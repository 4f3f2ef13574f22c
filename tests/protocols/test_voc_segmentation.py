"""The fully convolutional network's geometry and loss against independent ones; that it learns and resumes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.backbones.alexnet import AlexNet
from bench.contracts import BenchError, Measurement, Picture, Samples, Target
from bench.data.sources import Streamed
from protocols import voc_segmentation
from protocols._dense import Below
from protocols._fcn import convolutional, interpolation
from protocols.voc_segmentation import VocSegmentation, _crop, _per_image


class Listed:
    """Images of any size, in memory: read one by one, as files are."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def read(self, i):
        return self.images[i]


def squares(name, count, seed, sizes=((8, 8),)):
    """A bright square of class 1 or 2, red or green, on dark noise; its upper row is not judged."""
    generator = torch.Generator().manual_seed(seed)
    images, masks = [], []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        image = torch.randint(0, 60, (3, height, width), generator=generator)
        mask = torch.zeros(height, width, dtype=torch.uint8)
        top, left = (int(torch.randint(0, side - 4, (), generator=generator)) for side in (height, width))
        image[i % 2, top : top + 5, left : left + 5] += 190
        mask[top : top + 5, left : left + 5] = 1 + i % 2
        mask[0] = 255
        images.append(image.to(torch.uint8))
        masks.append(mask)
    side = sizes[0][0] if len(set(sizes)) == 1 else None
    return Samples(name, Streamed(Listed(images), workers=0, side=side), masks=masks)


SMALL = VocSegmentation(head="conv", width=16, pad=0, steps=60, images=8, lr=0.02, pictures=1, mirror=True)


def target(sizes=((8, 8),)):
    return Target(squares("a", 24, 1, sizes), squares("b", 0, 2), squares("c", 12, 3, sizes), 2)


def values(found):
    return {(m.metric, m.split): m.value for m in found if isinstance(m, Measurement)}


def test_upsampling_is_the_bilinear_deconvolution():
    stride, scores = 32, torch.randn(1, 1, 5, 1, generator=torch.Generator().manual_seed(0))
    tent = 1 - (torch.arange(63) - 31).abs() / 32  # Caffe's bilinear filler, in one dimension
    full = F.conv_transpose2d(scores, tent.view(1, 1, 63, 1), stride=(stride, 1)).flatten()
    crop = 18  # of the reference's crop layer: the first cell lies at pixel 31 - 18
    ours = interpolation(100, 5, stride, 31 - crop) @ scores.flatten()
    torch.testing.assert_close(ours[13:], full[crop + 13 : crop + 100])
    assert torch.equal(ours[:13], scores[0, 0, 0].expand(13))  # before the first cell: its own value


def test_the_reference_net_is_cropped_where_the_reference_crops():
    encoder = AlexNet().build(generator=torch.Generator().manual_seed(0))
    below = Below(encoder, "", "", settled=True, rest=True)
    _, _, grid = convolutional(encoder.top)
    # conv1 begins at 5; pools add 4, 8 and 16; fc6 2.5 x 32: 113, of which 100 are padding.
    assert below.stride == 32
    assert below.first + (grid - 1) / 2 * below.stride - 100 == 31 - 18


def test_fully_connected_layers_become_convolutions():
    generator = torch.Generator().manual_seed(0)
    for variant in ("caffenet", "rotnet"):
        top = AlexNet(variant=variant).build(generator=generator, width=0.03125).top.eval()
        width = next(m for m in top.modules() if isinstance(m, nn.Linear)).in_features // 36
        layers, dim, grid = convolutional(top)
        maps = torch.randn(2, width, 7, 6, generator=generator)
        out = layers.eval()(maps)
        assert (grid, out.shape) == (6, (2, dim, 2, 1))
        for row in (0, 1):
            window = maps[:, :, row : row + 6]
            torch.testing.assert_close(out[:, :, row, 0], top(window), rtol=1e-4, atol=1e-5)


def test_the_loss_is_each_images_mean_over_what_is_not_ignored():
    generator = torch.Generator().manual_seed(0)
    scores, masks = (
        torch.randn(3, 4, 5, 6, generator=generator),
        torch.randint(0, 4, (3, 5, 6), generator=generator),
    )
    masks[0, :3] = 255
    masks[2] = 255  # nothing to learn from
    expected = []
    for image, mask in zip(scores.double(), masks, strict=True):
        terms = [
            -image[:, y, x].log_softmax(0)[mask[y, x]] for y in range(5) for x in range(6) if mask[y, x] < 255
        ]
        expected.append(sum(terms) / max(len(terms), 1))
    found = _per_image(scores, masks.to(torch.uint8))
    torch.testing.assert_close(
        found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


def test_crops_keep_image_and_mask_together_and_ignore_what_lies_beyond():
    mask = torch.arange(12, dtype=torch.uint8).view(3, 4)
    image = mask.float().expand(3, 3, 4) / 255
    cut, truth = _crop(image, mask, 2, [0.99, 0.5])
    assert truth.tolist() == [[5, 6], [9, 10]]
    assert torch.equal((cut[0] * 255).round().to(torch.uint8), truth)
    cut, truth = _crop(image, mask, 5, [0.0, 0.0])
    assert truth[:3, :4].equal(mask) and (truth[3:] == 255).all() and (truth[:, 4:] == 255).all()


@pytest.mark.parametrize("head", ["conv", "fcn32"])
@pytest.mark.parametrize("sizes", [((8, 8),), ((8, 9), (12, 8), (8, 8))])
def test_it_learns_on_images_of_one_or_of_many_sizes(model, make_run, head, sizes):
    protocol = replace(SMALL, head=head, pad=2, steps=120)
    found = list(protocol.evaluate(model, target(sizes), make_run()))
    result = values(found)
    assert set(result) == {(name, "test") for name in ("mIoU", "pixel_accuracy", "cross_entropy")}
    assert result["mIoU", "test"] > 55  # background everywhere is below 25
    assert [p.image.shape[0] for p in found if isinstance(p, Picture)] == [3]


def test_pictures_name_the_classes(model, make_run):
    named = replace(target(), class_names=("red", "green"))
    made = []
    for one in (target(), named):
        found = replace(SMALL, steps=1).evaluate(model, one, make_run())
        made += [p.image for p in found if isinstance(p, Picture)]
    assert (made[0] != made[1]).any()


def test_an_interrupted_run_ends_with_the_same_numbers(model, make_run, killed):
    undisturbed = values(SMALL.evaluate(model, target(), make_run()))
    run = make_run(kill_at=25)
    with pytest.raises(killed):
        list(SMALL.evaluate(model, target(), run))
    assert values(SMALL.evaluate(model, target(), run)) == undisturbed


def test_frozen_layers_and_statistics_stay(model, make_run, monkeypatch):
    nets = []
    real = voc_segmentation.Segmenter
    monkeypatch.setattr(voc_segmentation, "Segmenter", lambda *a: nets.append(real(*a)) or nets[-1])
    before = copy.deepcopy(model.encoder.trunk.state_dict())
    list(replace(SMALL, freeze="conv1", steps=5).evaluate(model, target(), make_run()))
    after = dict(zip(before, nets[0].below.net.trunk.state_dict().values(), strict=True))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"conv2.0.weight", "conv2.0.bias", "conv2.1.weight", "conv2.1.bias"}
    assert model.encoder.trunk.state_dict().keys() == before.keys()


def test_bad_settings_and_targets_are_one_line(model, make_run):
    with pytest.raises(BenchError, match=r"voc_segmentation\.head is 'fcn8'; write fcn32 or conv"):
        VocSegmentation(head="fcn8")
    with pytest.raises(
        BenchError, match="'conv9' does not exist here; layers are: conv1, conv2; write one of them as freeze"
    ):
        list(VocSegmentation(freeze="conv9").evaluate(model, target(), make_run()))
    bare = target()
    bare = Target(Samples("a", bare.train.images), bare.validation, bare.test, 2)
    with pytest.raises(BenchError, match='a has no masks; name a segmentation list: task = "segmentation"'):
        list(SMALL.evaluate(model, bare, make_run()))
