"""Average precision of detections: by hand, and against COCO's evaluation where the definitions agree."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from protocols._detections import average_precisions


def truth(*boxes, labels=None, difficult=None):
    count = len(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [0] * count, dtype=torch.int64),
        "difficult": torch.tensor(difficult or [False] * count, dtype=torch.bool),
    }


def found(*boxes, scores=(), labels=None):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)


def aps(detections, objects, classes=1):
    return {k: v.tolist() for k, v in average_precisions(detections, objects, classes).items()}


def test_a_second_claim_is_wrong():
    # By score: right, again on A (wrong), right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    result = aps([found(A, A, B, scores=[0.9, 0.8, 0.7])], [truth(A, B)])
    assert result["ap_envelope"] == [pytest.approx(0.5 + 0.5 * 2 / 3)]
    assert result["ap_11pt"] == [pytest.approx((6 + 5 * 2 / 3) / 11)]


def test_difficult_objects_are_neither_right_nor_wrong():
    # B is difficult: what finds it, even twice, is not counted, and to miss it costs nothing.
    objects = truth(A, B, difficult=[False, True])
    perfect = {"ap_11pt": [1.0], "ap_envelope": [1.0]}
    assert aps([found(B, B, A, scores=[0.9, 0.8, 0.7])], [objects]) == perfect
    assert aps([found(A, scores=[0.7])], [objects]) == perfect
    # But it claims nothing of another class, nor below the overlap.
    worse = aps([found(FAR, B, A, scores=[0.9, 0.8, 0.7])], [objects])
    assert worse["ap_envelope"] == [0.5]
    # A class whose objects are all difficult has no average precision.
    assert math.isnan(aps([found(A, scores=[1.0])], [truth(A, difficult=[True])])["ap_11pt"][0])


def test_an_overlap_of_exactly_one_half_counts():
    half = (0, 0, 10, 20)  # IoU with A: 100 / 200
    assert aps([found(half, scores=[1.0])], [truth(A)])["ap_envelope"] == [1.0]
    less = (0, 0, 10, 20.1)
    assert aps([found(less, scores=[1.0])], [truth(A)])["ap_envelope"] == [0.0]


def test_a_detection_claims_the_object_that_it_overlaps_most():
    # Both detections overlap A most; COCO would let the second have C, VOC calls it wrong.
    near = (2, 0, 12, 10)
    c = (3, 0, 13, 10)
    objects = truth(near, c)
    result = aps([found((1, 0, 11, 10), (1, 0, 11, 10), scores=[0.9, 0.8])], [objects])
    assert result["ap_envelope"] == [pytest.approx(0.5)]
    assert result["ap_11pt"] == [pytest.approx(6 / 11)]


def test_ties_keep_the_order_of_the_images():
    objects = [truth(A), truth(A)]
    right_first = [found(A, scores=[0.5]), found(FAR, scores=[0.5])]
    assert aps(right_first, objects)["ap_envelope"] == [0.5]
    assert aps(right_first[::-1], objects)["ap_envelope"] == [0.25]


def test_nothing_found_is_zero_and_no_object_is_undefined():
    result = aps([found(scores=[])], [truth(A)], classes=2)
    assert result["ap_11pt"][0] == 0.0 and result["ap_envelope"][0] == 0.0
    assert math.isnan(result["ap_11pt"][1]) and math.isnan(result["ap_envelope"][1])


def random_case(seed):
    """Objects on a grid, so that a detection can claim one of them alone; scores without ties."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for _ in range(4):
        cells = rng.permutation(9)[: rng.integers(1, 6)]
        corners = np.stack([cells % 3 * 40, cells // 3 * 40], 1).astype(float)
        boxes = np.concatenate([corners, corners + rng.uniform(12, 30, (len(cells), 2))], 1)
        objects.append(truth(*boxes.tolist(), labels=rng.integers(0, 3, len(cells)).tolist()))
        tried = boxes[rng.integers(0, len(cells), 8)] + rng.normal(0, 2.5, (8, 4))
        tried[:, 2:] = np.maximum(tried[:, 2:], tried[:, :2] + 2)
        labels = rng.integers(0, 3, 8).tolist()
        detections.append(
            found(*tried.tolist(), scores=rng.permutation(8) / 8 + rng.random() / 9, labels=labels)
        )
    return detections, objects


def coco(detections, objects, label, thresholds):
    """COCO's average of the precision envelope over recall thresholds, at IoU 0.5, for one class."""
    images = [{"id": i} for i in range(len(objects))]
    annotations = [
        {
            "image_id": i,
            "category_id": 1,
            "bbox": [x, y, r - x, b - y],
            "area": (r - x) * (b - y),
            "iscrowd": 0,
        }
        for i, t in enumerate(objects)
        for (x, y, r, b), c in zip(t["boxes"].double().tolist(), t["labels"].tolist(), strict=True)
        if c == label
    ]
    for number, one in enumerate(annotations, 1):
        one["id"] = number
    results = [
        {"image_id": i, "category_id": 1, "bbox": [x, y, r - x, b - y], "score": s}
        for i, f in enumerate(detections)
        for (x, y, r, b), s, c in zip(
            f["boxes"].double().tolist(), f["scores"].tolist(), f["labels"].tolist(), strict=True
        )
        if c == label
    ]
    if not annotations:
        return math.nan
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
        known.createIndex()
        judge = COCOeval(known, known.loadRes(results), "bbox")
        judge.params.iouThrs = np.array([0.5])
        judge.params.recThrs = thresholds(len(annotations))
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    return float(judge.eval["precision"][0, :, 0, 0, -1].mean())


@pytest.mark.parametrize("seeds", [range(100), range(100, 200)])
def test_two_hundred_random_cases_agree_with_coco(seeds):
    definitions = {
        "ap_11pt": lambda _: np.linspace(0, 1, 11) - 1e-12,  # a hair lower: 0.1 * 3 > 3 / 10
        "ap_envelope": lambda n: (np.arange(n) + 0.5) / n,  # one in each step of the recall: the area
    }
    for seed in seeds:
        detections, objects = random_case(seed)
        ours = average_precisions(detections, objects, 3)
        for name, thresholds in definitions.items():
            theirs = [coco(detections, objects, label, thresholds) for label in range(3)]
            np.testing.assert_allclose(ours[name], theirs, atol=1e-12, err_msg=f"{name} {seed}")
