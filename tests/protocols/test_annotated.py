"""Pictures of boxes and masks: colors that can be told apart, and everything where it belongs."""

from __future__ import annotations

import pytest
import torch

from protocols._annotated import color, with_boxes, with_masks


def objects(*boxes, labels, scores=None):
    found = {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": torch.tensor(labels)}
    return found if scores is None else {**found, "scores": torch.tensor(scores)}


def shade(label):
    return torch.tensor(color(label)) / 255


def test_twenty_classes_are_told_apart():
    every = torch.tensor([color(c) for c in range(20)], dtype=torch.float64)
    apart = torch.cdist(every, every) + 1e9 * torch.eye(20)
    assert apart.min() > 60  # of 441
    assert every.amax(1).min() > 150


def test_boxes_lie_where_they_lie_in_the_enlarged_image():
    image = torch.zeros(3, 64, 100, dtype=torch.uint8)
    made = with_boxes(
        image, objects((10, 20, 40, 60), labels=[3]), objects((50, 8, 90, 30), labels=[7], scores=[0.5])
    )
    assert made.shape == (3, 256, 400)  # four times as large
    assert torch.equal(made[:, 81, 100], torch.ones(3))  # the upper edge of the true one
    assert torch.equal(made[:, 100, 359], shade(7))  # the right edge of the other: its last pixel
    assert torch.equal(made[:, 100, 360], torch.zeros(3))
    assert torch.equal(made[:, 33, 201], shade(7))  # its text has its color for a ground
    assert torch.equal(made[:, 238, 41], torch.ones(3))
    texts = made[:, 34:42, 202:240] - shade(7)[:, None, None]
    assert 20 < (texts.abs().amax(0) > 0.2).sum() < 200


def test_the_surest_is_on_top_and_text_stays_inside():
    image = torch.full((3, 300, 300), 0.5)
    twice = objects((290, 290, 330, 330), (290, 290, 330, 330), labels=[1, 2], scores=[0.9, 0.8])
    made = with_boxes(image, objects(labels=[]), twice)
    assert made.shape == (3, 300, 300)
    same = (made == shade(1)[:, None, None]).all(0)
    assert same[285:, 240:].sum() > 100
    assert not (made == shade(2)[:, None, None]).all(0).any()


def test_masks_beside_their_image():
    image = torch.full((3, 128, 128), 100, dtype=torch.uint8)
    mask = torch.zeros(128, 128, dtype=torch.uint8)
    mask[:64], mask[100:] = 5, 255
    made = with_masks(image, mask, torch.zeros(128, 128))
    assert made.shape == (3, 256, 3 * 256 + 2 * 4)
    assert torch.equal(made[:, :, 256:260], torch.ones(3, 256, 4))
    plain, truth, found = made[:, :, :256], made[:, :, 260:516], made[:, :, 520:]
    assert plain.unique().tolist() == pytest.approx([100 / 255])
    assert found.unique().tolist() == pytest.approx([50 / 255])
    torch.testing.assert_close(truth[:, 0, 0], 0.75 * shade(4) + 0.25 * 50 / 255)
    torch.testing.assert_close(truth[:, 127, 0], 0.75 * shade(4) + 0.25 * 50 / 255)
    torch.testing.assert_close(truth[:, 150, 0], torch.full((3,), 50 / 255))
    assert torch.equal(truth[:, 255, 0], torch.ones(3))
