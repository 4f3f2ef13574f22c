"""Detection and segmentation on networks of any make: where their cells lie, what is trained, that both run."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from bench.backbones.alexnet import AlexNet
from bench.backbones.alexnet_small import AlexNetSmall
from bench.contracts import Measurement, Model, Samples, Target
from bench.data.sources import Resident
from methods.parts.foreign import Foreign
from methods.parts.joined import join
from protocols._dense import Below
from protocols._rcnn import Rcnn, region_head
from protocols.voc_detection import VocDetection
from protocols.voc_segmentation import VocSegmentation

SIDE = 64


def generator():
    return torch.Generator().manual_seed(0)


def timm_model(name):
    return pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=0)


def alexnet():
    net = torchvision.models.alexnet(weights=None)
    net.classifier = nn.Identity()  # sixty million weights that nothing here reads
    return net


MAKERS = {
    "alexnet": alexnet,
    "resnet50": lambda: torchvision.models.resnet50(weights=None),
    "convnext": lambda: timm_model("test_convnext"),
}


def foreign(name, *layers):
    return Foreign(MAKERS[name](), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), layers, SIDE)


# ---- where cells lie -----------------------------------------------------------------------------


def middles(below, height, width):
    """{cell: the middle of the pixels that it sees}, of the cells that see none beyond the border.

    Weights are positive and biases zero: a cell moves if, and only if, a bright column lies in what it sees.
    """
    for name, weight in below.named_parameters():
        weight.data = torch.zeros_like(weight) if name.endswith("bias") else weight.data.abs()
    columns = torch.eye(width)[:, None, None].expand(width, 3, height, width)
    with torch.no_grad():
        moved = below.eval()(columns).amax((1, 2)) > 0  # (pixel, cell)
    seen = [column.nonzero().flatten() for column in moved.T]
    return {c: float(s[[0, -1]].float().mean()) for c, s in enumerate(seen) if s[0] > 0 and s[-1] < width - 1}


@pytest.mark.parametrize(
    ("name", "layer", "width"),
    [("alexnet", "features.4", 128), ("resnet50", "layer1", 96), ("resnet50", "layer2.0", 112)],
)
def test_cells_lie_in_the_middle_of_what_they_see(name, layer, width):
    below = Below(foreign(name, layer), "", "", settled=True)
    found = middles(below, SIDE, width)
    assert len(found) > 3
    assert found == {cell: below.first + below.stride * cell for cell in found}


def test_strides_are_the_nets_not_what_a_borders_loss_makes_of_them():
    encoder = foreign("alexnet")
    assert encoder.strides["features.11"] != 16  # 64 pixels over three cells
    below = Below(encoder, "features.11", "", settled=True)
    # conv1 begins at 5 - 2; pools of three add 4 and 8.
    assert (below.stride, below.first) == (16, 15)
    below = Below(foreign("resnet50", "layer4"), "", "", settled=True)
    assert (below.stride, below.first) == (32, 0)  # a kernel of 7 with a padding of 3, then of 3 with 1
    below = Below(foreign("convnext"), "", "", settled=True)
    assert (below.stride, below.first) == (32, 15.5)  # windows side by side


def test_towers_side_by_side_lie_as_one_does():
    one, other = (AlexNetSmall().build(generator=generator(), width=0.125) for _ in range(2))
    pair = join(one, other, nn.Identity(), 3)
    pair.input = Doubled()
    for rest, place in ((False, (8, 3.0)), (True, (16, 7.0))):  # pools of two add 1, 2 and 4
        for encoder in (one, pair):
            below = Below(encoder, "", "", settled=True, rest=rest)
            assert (below.stride, below.first) == place


class Doubled(nn.Module):
    def forward(self, images):
        return torch.cat([images, images], 1).float()


# ---- what is trained -----------------------------------------------------------------------------


def trained(below):
    return {name for name, weight in below.net.trunk.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("name", "layers", "freeze", "layer", "expected"),
    [
        (
            "resnet50",
            ("layer1", "layer3.1", "layer4"),
            "layer1",
            "layer3.1",
            ("layer2.", "layer3.0.", "layer3.1."),
        ),
        ("resnet50", ("layer2", "layer4"), "", "layer2", ("conv1", "bn1", "layer1.", "layer2.")),
        ("alexnet", (), "features.4", "features.9", ("features.6.", "features.8.")),
        ("alexnet", (), "features.9", "features.4", ()),
    ],
)
def test_what_runs_between_two_layers_is_trained(name, layers, freeze, layer, expected):
    below = Below(foreign(name, *layers), layer, freeze, settled=True)
    names = {n for n, _ in below.net.trunk.named_parameters() if n.startswith(expected or "-")}
    assert trained(below) == names


def test_a_blocks_own_weights_count_once_it_has_run():
    """A layer scale belongs to no layer but to the block, which ends after all of its layers."""
    encoder = foreign("convnext", "stages.0.blocks.0", "stages.1.blocks.0", "stages.3")
    below = Below(encoder, "stages.1.blocks.0", "stages.0.blocks.0", settled=True)
    names = trained(below)
    assert "stages.1.blocks.0.gamma" in names
    assert not {n for n in names if n.startswith(("stem", "stages.0.blocks.0", "stages.2", "stages.3"))}


def test_built_in_nets_are_what_they_were():
    """Stage by stage, to the bit; and the weights between two of them."""
    for encoder in (
        AlexNetSmall().build(generator=generator()),
        AlexNet(top=False).build(generator=generator(), width=0.125),
    ):
        stages = dict(encoder.eval().trunk.named_children())
        names = list(stages)
        images = torch.randint(0, 256, (2, 3, 96, 96), generator=generator(), dtype=torch.uint8)
        for layer, rest in (("conv3", False), ("conv5", False), ("", True)):
            upper = names[: names.index(layer) + 1] if layer else names
            below = Below(encoder, layer, "conv1", settled=True, rest=rest)
            with torch.no_grad():
                maps = below(below.input(images))
                assert torch.equal(maps, nn.Sequential(*(stages[n] for n in upper))(encoder.input(images)))
            weights = [w for n in upper[1:] for w in stages[n].parameters()]
            found = [w for w in below.parameters() if w.requires_grad]
            assert [w.tolist() for w in found] == [w.tolist() for w in weights]
            assert all(w.requires_grad for w in encoder.parameters())  # a copy's were turned off


# ---- that both run -------------------------------------------------------------------------------


def samples(name, count, seed):
    """A bright square an image, of class 0 or 1."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 60, (count, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    boxes = []
    for i in range(count):
        left, top = torch.randint(0, 24, (2,), generator=draw).tolist()
        pixels[i, i % 2, top : top + 40, left : left + 40] += 190
        masks[i, top : top + 40, left : left + 40] = 1 + i % 2
        box = torch.tensor([[left, top, left + 40, top + 40]], dtype=torch.float32)
        boxes.append({"boxes": box, "labels": torch.tensor([i % 2]), "difficult": torch.tensor([False])})
    return Samples(name, Resident(pixels), boxes=boxes, masks=list(masks))


@pytest.mark.parametrize(
    ("name", "layers", "layer", "freeze"),
    [
        ("alexnet", (), "", "features.1"),
        ("resnet50", ("relu", "layer2.3", "layer3"), "layer2.3", "relu"),
        ("convnext", ("stages.0.blocks.0", "stages.2"), "", "stages.0.blocks.0"),
    ],
)
def test_both_run_on_networks_of_others(name, layers, layer, freeze, make_run):
    model = Model(foreign(name, *layers))
    target = Target(samples("a", 4, 1), samples("b", 0, 2), samples("c", 2, 3), 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    few = {"layer": layer, "freeze": freeze, "steps": 2, "images": 2, "pictures": 0}
    for protocol in (
        VocDetection(
            proposals="windows", hidden=8, roi_size=2, rois=16, most=40, sides=(0,), test_side=0, **few
        ),
        VocDetection(
            proposals="rpn", hidden=8, roi_size=2, rois=16, anchors=(32,), sides=(0,), test_side=0, **few
        ),
        VocSegmentation(head="conv", width=8, pad=0, **few),
        VocSegmentation(head="fcn32", pad=8, **few),
    ):
        found = [m for m in protocol.evaluate(model, target, make_run()) if isinstance(m, Measurement)]
        assert found
        assert all(0 <= m.value < 1000 for m in found)
    after = model.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []


def test_who_does_not_say_what_lies_above_gets_new_layers():
    encoder = foreign("resnet50", "layer3", "layer4")
    below = Below(encoder, "layer3", "", settled=True)
    head, width = region_head(encoder, below, Rcnn(hidden=8, roi_size=2), generator())
    assert [type(part) for part in head] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert head(torch.rand(3, 1024, 2, 2)).shape == (3, width) == (3, 8)
