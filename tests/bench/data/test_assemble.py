from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from bench.contracts import Dataset, Samples
from bench.data import assemble, splits
from bench.data.sources import Resident
from bench.records import Aim, BenchError, Data, Unit

CPU = torch.device("cpu")
HERE = Path()


@dataclass(frozen=True)
class Numbered(Dataset):
    """Image i carries i in its first two pixels; extra images start at 10,000."""

    name: ClassVar[str] = "numbered"
    classes: ClassVar[int] = 5
    splits: ClassVar[tuple[str, ...]] = ("train", "extra", "test")

    def load(self, split, root):
        start, count = {"train": (0, 1000), "extra": (10_000, 300), "test": (20_000, 100)}[split]
        index = torch.arange(start, start + count)
        pixels = torch.zeros(count, 3, 1, 2, dtype=torch.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = (index // 256).to(torch.uint8), (index % 256).to(torch.uint8)
        boxes = [{"boxes": torch.full((1, 4), float(i))} for i in index]
        return Samples(f"numbered-{split}", Resident(pixels), index % 5, boxes=boxes)


def ids(images):
    pixels = images.pixels[:, 0, 0].long()
    return pixels[:, 0] * 256 + pixels[:, 1]


def train(sees_labels=True, **data):
    return assemble.training_set(Data(Unit.of("numbered"), **data), Numbered(), HERE, sees_labels, CPU)


def target(**aim):
    return assemble.target(Aim(Unit.of("numbered"), **aim), Numbered(), HERE, CPU)


def test_all_labels_are_shown_to_those_who_may_see():
    data, info = train()
    assert torch.equal(data.labels, ids(data.images) % 5)
    assert info["labeled"] == len(data) == 1000
    assert train(sees_labels=False)[0].labels is None


def test_few_labels_hide_the_rest():
    data, info = train(labels=50, label_split=2)
    shown = data.labels >= 0
    assert len(data) == 1000
    assert torch.equal(data.labels[shown], ids(data.images)[shown] % 5)
    assert torch.bincount(data.labels[shown]).tolist() == [10] * 5
    assert info["split_digest"] == splits.split_digest(ids(data.images)[shown].numpy())
    more, _ = train(labels=100, label_split=2)
    assert (more.labels[shown] >= 0).all()


def test_held_out_images_are_those_of_the_target():
    data, info = train(labels=50, validation=100)
    aim, aim_info = target()
    assert info["validation_digest"] == aim_info["validation_digest"]
    held = set(ids(aim.validation.images).tolist())
    assert len(held) == 100
    assert not held & set(ids(data.images).tolist())
    assert train(validation=100, resample=1)[1]["validation_digest"] != info["validation_digest"]


def test_target_parts_are_disjoint_and_the_test_set_is_whole():
    aim, info = target(labels=60)
    parts = [set(ids(s.images).tolist()) for s in (aim.train, aim.validation, aim.test)]
    assert [len(p) for p in parts] == [60, 60, 100]
    assert len(set.union(*parts)) == 220
    assert info["labeled"] == 60
    assert parts[1] <= set(ids(target()[0].validation.images).tolist())
    assert torch.equal(aim.train.labels, ids(aim.train.images) % 5)
    assert [int(b["boxes"][0, 0]) for b in aim.train.boxes] == ids(aim.train.images).tolist()
    assert len({s.name for s in (aim.train, aim.validation, aim.test)}) == 3


def test_validation_is_a_tenth_or_as_asked():
    assert len(target()[0].validation) == 100
    assert len(target()[0].train) == 900
    assert len(target(validation=33)[0].validation) == 33
    assert len(target(labels=2)[0].validation) == 5  # at least one a class
    assert len(target(labels=900)[0].validation) == 100


def test_classes_of_labeled_and_unlabeled_images():
    data, info = train(labels=20, labeled_classes=(0, 1), unlabeled=100, unlabeled_classes=(1, 4))
    shown = data.labels >= 0
    assert set((ids(data.images)[shown] % 5).tolist()) == {0, 1}
    assert set((ids(data.images)[~shown] % 5).tolist()) == {1, 4}
    assert (info["labeled"], info["unlabeled"], len(data)) == (20, 100, 120)
    only, _ = train(labeled_classes=(3,), unlabeled=0)
    assert len(only) == 200
    assert (only.labels == 3).all()


def test_unlabeled_is_nested_and_blind_to_labels():
    some, more = (set(ids(train(labels=0, unlabeled=n)[0].images).tolist()) for n in (100, 300))
    assert some < more
    assert len(some) == 100


def test_extra_images_come_without_labels_unless_all_are_shown():
    data, _ = train(labels=50, extra=True)
    assert len(data) == 1300
    assert (data.labels[ids(data.images) >= 10_000] == -1).all()
    full, _ = train(extra=True)
    assert (full.labels >= 0).all()
    with pytest.raises(BenchError, match="no extra images"):
        assemble.training_set(Data(Unit.of("x"), extra=True), NoExtra(), HERE, True, CPU)


class NoExtra(Numbered):
    splits = ("train", "test")


def test_noise_touches_shown_labels_only():
    clean, _ = train(labels=500)
    noisy, _ = train(labels=500, label_noise=0.5)
    assert torch.equal(noisy.labels == -1, clean.labels == -1)
    differ = (noisy.labels != clean.labels).sum().item()
    assert 160 < differ < 240  # 250 replaced, a fifth of them by the true class


@pytest.mark.parametrize(
    "wrong", [{"labels": 1001}, {"labels": "some"}, {"validation": 5000}, {"unlabeled": 2000}]
)
def test_impossible_wishes_are_told_in_a_line(wrong):
    with pytest.raises(BenchError) as caught:
        train(**wrong)
    assert "\n" not in str(caught.value)


def test_trained_labels_are_those_of_the_images_trained_on_in_their_order():
    choices = {"labels": 20, "unlabeled": 300, "validation": 100, "extra": True}
    data, _ = train(**choices)
    truth = assemble.trained_labels(Data(Unit.of("numbered"), **choices), Numbered(), HERE)
    assert torch.equal(truth, ids(data.images) % 5)
    assert (data.labels >= 0).sum() < len(truth)
