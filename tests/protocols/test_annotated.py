"""Pictures of boxes and masks: colors that every eye tells apart, names that can be read, everything in its place."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch

from protocols._annotated import COLORS, FONT, color, with_boxes, with_masks

TALL = FONT + 4  # of a text's ground

# Machado, Oliveira & Fernandes, IEEE TVCG 2009: what remains of linear RGB without one kind of cones.
EYES = {
    "all cones": np.eye(3),
    "without red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "without green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "without blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]


def lab(colors, eye):
    """CIE Lab (D65) of sRGB colors (N, 3) in 0..255, as an eye sees them."""
    rgb = np.asarray(colors) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.transpose(eye), 0, 1) @ np.transpose(XYZ) / np.sum(XYZ, 1)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def objects(*boxes, labels, scores=None):
    found = {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": torch.tensor(labels)}
    return found if scores is None else {**found, "scores": torch.tensor(scores)}


def shade(label):
    return torch.tensor(color(label)) / 255


def drawn(image, value):
    """Where a picture has a color."""
    return (image == value.view(3, 1, 1)).all(0)


@pytest.mark.parametrize("eye", EYES)
def test_twenty_classes_and_the_truth_are_told_apart_by_every_eye(eye):
    seen = lab([*COLORS, (255, 255, 255)], EYES[eye])
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1) + 1e9 * np.eye(len(seen))
    assert len(seen) == 21
    assert apart.min() > 15  # 2.3 is just noticed
    assert color(20) == color(0)


def test_boxes_lie_where_they_lie_in_the_enlarged_image():
    image = torch.full((3, 64, 100), 128, dtype=torch.uint8)
    made = with_boxes(
        image, objects((10, 20, 40, 56), labels=[3]), objects((50, 8, 90, 30), labels=[7], scores=[0.5])
    )
    assert made.shape == (3, 384, 600)  # six times as large
    white, black, ground = torch.ones(3), torch.zeros(3), torch.full((3,), 128 / 255)
    for (x, y), expected in {
        (150, 119): black,  # around the upper edge of the true one
        (150, 120): white,
        (150, 121): white,
        (150, 122): black,
        (150, 123): ground,
        (538, 100): shade(7),  # the right edge of the other: its last pixels
        (539, 100): shade(7),
        (540, 100): black,
        (541, 100): ground,
        (301, 48 - TALL): shade(7),  # its text has its color for a ground, above the box
        (61, 336): white,  # that of the true one below
    }.items():
        assert torch.equal(made[:, y, x], expected), (x, y)
    text = ~drawn(made[:, 48 - TALL : 47, 301:340], shade(7))
    assert 20 < text.sum() < 300


def test_names_are_written_where_they_are_known():
    image, names = torch.zeros(3, 64, 64), ("a", "a class of many letters")
    truth = objects((4, 4, 60, 50), labels=[1])
    wide, narrow = (
        drawn(with_boxes(image, truth, objects(labels=[], scores=[]), n), torch.ones(3)) for n in (names, ())
    )
    row = 50 * 6 + 1  # the first of the text's ground
    assert 4 * narrow[row].sum() < wide[row].sum()
    mask = torch.zeros(64, 64)
    mask[10:50, 5:60] = 2
    tiles = [with_masks(image, mask, names=n)[:, :, 388:] for n in (names, ())]
    wide, narrow = (drawn(tile, shade(1)).sum() for tile in tiles)
    assert 0 < 4 * narrow < wide


def test_no_text_hides_another_or_leaves_the_picture():
    image = torch.full((3, 300, 300), 0.5)
    three = objects(*[(270, 270, 330, 330)] * 3, labels=[1, 2, 3], scores=[0.9, 0.8, 0.7])
    made = with_boxes(image, objects((270, 270, 330, 330), labels=[4]), three, ("aa", "bb", "cc", "dd", "ee"))
    assert made.shape == (3, 600, 600)
    for label, width in ((1, 40), (2, 40), (3, 40), (None, 15)):
        ground = drawn(made, torch.ones(3) if label is None else shade(label))
        # Only letters are missing of a text's ground, nothing that others have covered: its first row is whole.
        rows = [len(list(run)) for on, run in groupby(ground.flatten().tolist()) if on]
        assert max(rows) > width
        assert ground.sum() > TALL * width / 2


def test_the_surest_box_is_on_top():
    twice = objects((20, 20, 60, 60), (20, 20, 60, 60), labels=[2, 1], scores=[0.8, 0.9])
    made = with_boxes(torch.full((3, 128, 128), 0.5), objects(labels=[]), twice)
    assert drawn(made, shade(1))[:, 60].sum() > 100  # the left edge
    assert not drawn(made, shade(2))[80:160, 60].any()


def test_masks_beside_their_image():
    image = torch.full((3, 128, 128), 100, dtype=torch.uint8)
    mask = torch.zeros(128, 128, dtype=torch.uint8)
    mask[:64], mask[100:], mask[80, 50] = 5, 255, 9
    made = with_masks(image, mask, torch.zeros(128, 128))
    assert made.shape == (3, 384, 3 * 384 + 2 * 4)
    assert torch.equal(made[:, :, 384:388], torch.ones(3, 384, 4))
    plain, truth, found = made[:, :, :384], made[:, :, 388:772], made[:, :, 776:]
    assert plain.unique().tolist() == pytest.approx([100 / 255])
    assert found.unique().tolist() == pytest.approx([50 / 255])
    for corner in ((0, 0), (191, 0)):
        expected = 0.75 * shade(4) + 0.25 * 50 / 255
        torch.testing.assert_close(truth[:, corner[0], corner[1]], expected, rtol=0, atol=0.5 / 255)
    torch.testing.assert_close(truth[:, 225, 0], torch.full((3,), 50 / 255))
    assert torch.equal(truth[:, 383, 0], torch.ones(3))
    # Written once, in the middle of the region, which is rows 0 to 191; one pixel of class 8 is not named.
    rows, columns = drawn(truth, shade(4)).nonzero().T
    assert rows.min() > 96 - TALL and rows.max() < 96 + TALL
    assert columns.max() - columns.min() < 30
    assert not drawn(truth, shade(8)).any()
