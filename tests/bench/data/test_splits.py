from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data import splits
from bench.records import BenchError

LABELS = np.arange(3000) * 7 % 10


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_order_within_a_class_is_ascending_sha256():
    taken = splits.labeled(LABELS, 250, "cifar10", 3)
    for c in range(10):
        members = sorted(np.flatnonzero(c == LABELS).tolist(), key=lambda i: sha(f"cifar10:3:{i}"))
        assert set(taken[LABELS[taken] == c].tolist()) == set(members[:25])


def test_digests_are_pinned():
    labels = np.arange(50_000) % 10
    assert splits.split_digest([3, 1, 20]) == sha("1,3,20")
    assert splits.split_digest(splits.labeled(labels, 250, "cifar10", 0))[:16] == "8ce9b2b352ec2c43"
    assert splits.split_digest(splits.validation(labels, 500, "cifar10", 0))[:16] == "51d9e22a03712f68"


# Every published number of labels; image i is of class i modulo the classes, for the digests are of the rule alone.
# Worked out from the rule by a sort of hashlib's digests, apart from the code.
PUBLISHED = [
    ("cifar10", 50_000, 10, 250, "8ce9b2b352ec2c43", "01a71df4744f4320"),
    ("cifar10", 50_000, 10, 500, "23d62f04910823de", "cecd43ee2adad4e6"),
    ("cifar10", 50_000, 10, 1000, "a42cd120ef0ddd56", "74a00f84bafbed41"),
    ("cifar10", 50_000, 10, 2000, "5f3d979999a3654a", "7fcc9b82d341f2b1"),
    ("cifar10", 50_000, 10, 4000, "84f4adcacae2d9a8", "b08211a8e0ea490e"),
    ("cifar10", 50_000, 10, 8000, "91d09a53e14782a6", "6aafa8d27427371b"),
    ("svhn", 73_257, 10, 250, "a059fe339433390b", "fc58db79e4bae643"),
    ("svhn", 73_257, 10, 500, "5b1fa30ec20256c7", "3c258562d479cf3c"),
    ("svhn", 73_257, 10, 1000, "a33856a17ec85579", "e64c0c40f38b1902"),
    ("svhn", 73_257, 10, 2000, "1611b3b2688c9dc9", "a32530879baec195"),
    ("svhn", 73_257, 10, 4000, "87434b65dd0262f4", "94becd48acf49fde"),
    ("svhn", 73_257, 10, 8000, "08dca32fac225285", "d0c528d14c64d1f9"),
    ("cifar100", 50_000, 100, 10000, "1ce5a0c91e15011d", "5a0770fc8846cf30"),
    ("stl10", 5_000, 10, 1000, "7f3eb2631112df97", "8db82d3cfb1abe13"),
]


@pytest.mark.parametrize(("dataset", "images", "classes", "n", "first", "fifth"), PUBLISHED)
def test_digests_of_every_published_number_of_labels_are_pinned(dataset, images, classes, n, first, fifth):
    labels = np.arange(images) % classes
    for split, pinned in ((0, first), (4, fifth)):
        taken = splits.labeled(labels, n, dataset, split)
        assert splits.split_digest(taken)[:16] == pinned
        assert set(np.bincount(labels[taken], minlength=classes)) == {n // classes}


@pytest.mark.parametrize(("dataset", "images"), [("cifar10", 50_000), ("svhn", 73_257)])
def test_published_numbers_of_labels_are_nested(dataset, images):
    counts = sorted(n for name, *_, n, _, _ in PUBLISHED if name == dataset)
    labels = np.arange(images) % 10
    sets = [set(splits.labeled(labels, n, dataset, 0).tolist()) for n in counts]
    assert all(small < large for small, large in itertools.pairwise(sets))


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(-1, 6), min_size=30, max_size=200),
    split=st.integers(0, 3),
    data=st.data(),
)
def test_labeled_is_balanced_and_nested(labels, split, data):
    table = np.array(labels)
    known = int((table >= 0).sum())
    n = data.draw(st.integers(0, known))
    taken = splits.labeled(table, n, "any", split)
    assert len(set(taken.tolist())) == n
    assert (table[taken] >= 0).all()
    more = splits.labeled(table, data.draw(st.integers(n, known)), "any", split)
    assert set(taken.tolist()) <= set(more.tolist())
    counts = np.bincount(table[taken], minlength=7)
    left = np.bincount(table[table >= 0], minlength=7) - counts
    open_classes = counts[left > 0]  # those that could give more must not lag behind
    if n and len(open_classes):
        assert counts.max() - open_classes.min() <= 1


def test_classes_restrict():
    taken = splits.labeled(LABELS, 61, "svhn", 0, classes=(2, 5))
    assert sorted(np.bincount(LABELS[taken])[[2, 5]].tolist()) == [30, 31]


def test_splits_differ_by_split_and_dataset():
    sets = {splits.split_digest(splits.labeled(LABELS, 100, d, s)) for d in ("a", "b") for s in range(5)}
    assert len(sets) == 10


@pytest.mark.parametrize("n", [3001, -1])
def test_too_many_labels_is_one_line_that_says_what_is_possible(n):
    with pytest.raises(BenchError, match="0 to 3000") as caught:
        splits.labeled(LABELS, n, "cifar10", 0)
    assert "\n" not in str(caught.value)


def test_noise_hits_the_fraction_uniformly_and_nests():
    labels = np.arange(20_000) % 10
    half, most = (splits.noisy(labels, f, "cifar10", 1, 10) for f in (0.5, 0.8))
    # A replaced label is the true one in a tenth of the cases: 0.5 * 0.9 differ, binomial deviation 0.0035.
    assert abs((half != labels).mean() - 0.45) < 0.015
    changed = half != labels
    assert (most[changed] == half[changed]).all()
    counts = np.bincount(most[most != labels], minlength=10)
    assert counts.min() > 0.9 * counts.mean()


def test_noise_leaves_hidden_labels_hidden():
    labels = np.where(np.arange(1000) % 2, -1, 3)
    noisy = splits.noisy(labels, 1.0, "x", 0, 5)
    assert ((noisy == -1) == (labels == -1)).all()
    assert (splits.noisy(labels, 0.0, "x", 0, 5) == labels).all()


def test_noise_outside_0_to_1_is_refused():
    with pytest.raises(BenchError, match="0 to 1"):
        splits.noisy(LABELS, 1.5, "x", 0, 10)


def test_fifty_thousand_take_well_under_a_second():
    labels = np.arange(50_000) % 100
    started = time.process_time()
    splits.labeled(labels, 4000, "speed", 0)
    assert time.process_time() - started < 0.8


# The same under every Python that can be found here, in an environment of its own.

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, sys
import numpy as np
from bench.data import splits

found = []
for dataset, images, classes, n, *_ in json.loads(sys.argv[1]):
    labels = np.arange(images) % classes
    found.append([splits.split_digest(splits.labeled(labels, n, dataset, split))[:16] for split in (0, 4)])
wrong = splits.noisy(np.arange(50_000) % 10, 0.5, "cifar10", 0, 10)
held = splits.validation(np.arange(50_000) % 10, 500, "cifar10", 0)
hidden = splits.unlabeled(np.ones(50_000, bool), 5000, "cifar10", 0)
rest = [splits.split_digest(held), splits.split_digest(hidden), splits.split_digest(np.flatnonzero(wrong % 2))]
print(json.dumps([list(sys.version_info[:2]), found, rest]))
"""


def interpreter(version):
    """A Python that runs: of the PATH, or one that pyenv keeps."""
    kept = (Path.home() / ".pyenv" / "versions").glob(f"{version}*/bin/python{version}")
    for python in [shutil.which(f"python{version}"), *map(str, kept)]:
        if (
            python
            and not subprocess.run([python, "-c", "import venv"], check=False, capture_output=True).returncode
        ):
            return python
    pytest.skip(f"there is no python{version} here")


def told_by(python):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [python, "-c", SCRIPT, json.dumps(PUBLISHED)]
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_splits_are_the_same_on_another_python(version, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([interpreter(version), "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy"], check=True)
    ran, found, rest = told_by(str(python))
    assert ran == [int(part) for part in version.split(".")]
    assert found == [[first, fifth] for *_, first, fifth in PUBLISHED]
    assert rest == told_by(sys.executable)[2]
