"""Features that memory does not hold: on disk, read in blocks, with the numbers that memory gives."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from bench import features as kit
from bench.cache import FileCache
from bench.contracts import BenchError, Measurement, Rows, Tap
from bench.features import Need, batches, blocks, chosen, moments
from protocols import _features
from protocols._features import features
from protocols._nearest import nearest, unit
from protocols.clustering import Clustering
from protocols.embedding import Embedding
from protocols.error import Error
from protocols.filters import Filters
from protocols.knn import Knn
from protocols.linear_probe import LinearProbe
from protocols.linear_svm import LinearSvm
from protocols.mlp_probe import MlpProbe
from protocols.retrieval import Retrieval
from protocols.small_validation import SmallValidation

PROBE = {"augment": "none", "epochs": 3, "batch_size": 32, "pooling": "dims_max", "size": 64}
BLOCKWISE = {
    "linear_probe": LinearProbe(**PROBE, learning_rates=(0.01, 0.1)),
    "standardized": LinearProbe(**PROBE, feature_norm="standardize", select="best"),
    "knn": Knn(k=(5, 1)),
    "error": Error(),
    "small_validation": SmallValidation(sizes=(5, 10)),
    "mlp_probe": MlpProbe(epochs=2, layer="conv1", pooling="dims_max", size=32),
    "retrieval": Retrieval(layer="conv2", pooling="dims_avg", size=64, k=(1, 5), queries=2),
    "own": Retrieval(gallery="own", k=(1,), queries=0),
    "filters": Filters(images=4, units=2),
    "embedding": Embedding(images=40, iterations=250, picture_side=100),
}
MEMORY_GB = 1e-7  # a hundred bytes: not even one image


@pytest.fixture
def small(monkeypatch):
    """No memory for features, and blocks that no split is a multiple of."""
    monkeypatch.setenv("BENCH_MEMORY_GB", str(MEMORY_GB))
    monkeypatch.setattr(kit, "BLOCK", 37)
    monkeypatch.setattr(_features, "BATCH", 32)


@pytest.fixture
def disk(tmp_path, make_run):
    run = make_run()
    run.cache = FileCache(tmp_path / "features")
    return run


def numbers(found):
    return {(m.metric, m.layer, m.split): m.value for m in found if isinstance(m, Measurement)}


@pytest.mark.parametrize("name", BLOCKWISE)
def test_a_protocol_gives_from_disk_what_it_gives_from_memory(name, model, target, make_run, disk, request):
    model.head = torch.nn.Linear(16, 3)
    here = numbers(BLOCKWISE[name].evaluate(model, target, make_run()))
    request.getfixturevalue("small")
    there = numbers(BLOCKWISE[name].evaluate(model, target, disk))
    assert {path.suffix for path in disk.cache.folder.iterdir()} == {".npy", ".json"}
    assert there == pytest.approx(here, abs=1e-4)


def test_clusters_of_points_on_disk_agree_as_those_in_memory(target, make_run, small):
    """Three clouds far apart: whatever the start, the best of five finds them."""
    labels = target.train.labels
    points = torch.nn.functional.one_hot(labels, 3) * 9.0 + torch.randn(len(labels), 3) / 10
    here, there = (
        {(s, m): v for s, m, v in Clustering()._agreement({"train": (x, labels)}, 3, 3, make_run())}
        for x in (points, Drawn(points))
    )
    assert here == there == {("train", "nmi"): pytest.approx(1), ("train", "ari"): 1, ("train", "top1"): 100}


@pytest.mark.parametrize("protocol", [LinearSvm(costs=(1.0,)), Retrieval(index="ivf")])
def test_what_needs_memory_says_how_much(protocol, model, target, disk, small):
    with pytest.raises(
        BenchError, match=r"features of 150 images x 1 layer x 16 float32 need 10 kB of memory"
    ):
        list(protocol.evaluate(model, target, disk))


class Drawn(Rows):
    """A tensor that is only read by rows; remembers the largest piece."""

    def __init__(self, x):
        self.x, self.shape, self.largest = x, tuple(x.shape), 0

    def __getitem__(self, rows, /):
        found = self.x[rows].float()
        self.largest = max(self.largest, len(found))
        return found


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("block", [5, 64, 1000])
def test_neighbors_by_blocks_are_those_of_a_loop(k, block, monkeypatch):
    """Small whole numbers: products are exact, and ties are everywhere."""
    monkeypatch.setattr(kit, "BLOCK", block)
    monkeypatch.setenv("BENCH_MEMORY_GB", "1e-6")
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randint(-3, 4, (n, 6), generator=generator).float() for n in (203, 31))
    similarity, places = nearest(Drawn(bank), Drawn(queries), k)
    for query, values, rows in zip(queries, similarity, places, strict=True):
        products = (bank @ query).tolist()
        best = sorted(range(len(bank)), key=lambda i: (-products[i], i))[:k]
        assert values.tolist() == [products[i] for i in best]
        inside = [i for i in best if products[i] > values[-1]]  # of equals at the end, any will do
        assert sorted(rows.tolist())[: len(rows)] == sorted(set(rows.tolist()))
        assert set(inside) <= set(rows.tolist())
        assert [products[i] for i in rows.tolist()] == values.tolist()


def test_neighbors_on_disk_are_faiss_own(monkeypatch):
    monkeypatch.setattr(kit, "BLOCK", 64)
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 24, generator=generator) for n in (500, 60))
    index = faiss.IndexFlatIP(24)
    index.add(unit(bank).numpy())
    similarity, places = index.search(unit(queries).numpy(), 20)
    found = nearest(unit(Drawn(bank)), unit(Drawn(queries)), 20)
    assert np.array_equal(found[1], places)
    torch.testing.assert_close(found[0], torch.from_numpy(similarity))


def test_batches_of_rows_on_disk_are_those_of_memory():
    x = torch.randn(90, 7)
    picks = list(torch.randperm(90)[:80].split(16))
    drawn = Drawn(x)
    for pick, found in zip(picks, batches({"memory": x, "disk": drawn}, picks), strict=True):
        assert torch.equal(found["memory"], x[pick])
        assert torch.equal(found["disk"], x[pick])
    assert drawn.largest <= 16
    rows = torch.tensor([5, 2, 80])
    assert torch.equal(torch.cat(list(blocks(chosen(drawn, rows), 2))), x[rows])


def test_moments_by_blocks(monkeypatch):
    monkeypatch.setattr(kit, "BLOCK", 16)
    x = torch.randn(90, 7) * 3 + 100
    mean, var = moments(Drawn(x))
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(var, x.var(0, correction=0), rtol=1e-4, atol=1e-4)


def test_an_interrupted_extraction_goes_on(model, target, disk, small, monkeypatch):
    monkeypatch.setattr("bench.cache.SYNC_BYTES", 1.0)
    taps = [Tap("conv1", "dims_max", 32), Tap("output")]
    whole = features(model, target.train, taps, replace_cache(disk, FileCache(disk.cache.folder / "other")))
    seen = []
    hook = model.encoder.trunk[0].register_forward_hook(lambda _m, _i, out: seen.append(len(out)))

    def stop(done, _total):
        if done >= 96:
            raise KeyboardInterrupt

    disk.progress = stop
    with pytest.raises(KeyboardInterrupt):
        features(model, target.train, taps, disk)
    assert sum(seen) == 96
    seen.clear()
    disk.progress = lambda *_: None
    found = features(model, target.train, taps, disk)
    assert sum(seen) == 32 + 150 - 96  # the first batch says how wide they are
    for tap in taps:
        assert torch.equal(found[tap][:], whole[tap][:])
    hook.remove()


def replace_cache(run, cache):
    other = type(run)()
    other.cache = cache
    return other


def test_half_precision_on_disk_takes_half_and_is_what_memory_gives(model, target, disk, make_run, request):
    tap, run = Tap("conv2", "dims_avg", 64), make_run()
    run.features = disk.features = "float16"
    here = features(model, target.test, [tap], run)[tap]
    request.getfixturevalue("small")
    there = features(model, target.test, [tap], disk)[tap]
    assert isinstance(there, Rows)
    assert torch.equal(there[:], here)
    (path,) = disk.cache.folder.glob("*.npy")
    assert np.load(path, mmap_mode="r").dtype == np.float16
    assert path.stat().st_size - np.load(path).nbytes == 128  # numpy's header


def test_what_is_not_finite_is_told_from_disk_too(model, target, disk, small):
    said = []
    disk.warn = said.append
    with torch.no_grad():
        model.encoder.trunk[1][1].bias[0] = torch.nan
    for _ in range(2):  # extracted, and read again
        features(model, target.test, [Tap("output")], disk)
    assert said == ["features at output are not finite"] * 2


def test_what_does_not_fit_is_refused_with_the_number():
    from bench.contracts import Room

    need = Need(1_281_167, (9600,) * 5, "float32")
    said = need.refusal(Room("CACHE", 500e9, 80e9))
    assert said.startswith("features of 1,281,167 images x 5 layers x 9,600 float32 need 246 GB in CACHE")
    assert "where 80 GB are free" in said
    assert 'write target.features = "float16" (123 GB)' in said
    assert need.refusal(Room("CACHE", 8e9, 800e9)).count("leaves 8 GB (BENCH_CACHE_GB)") == 1
    assert not need.refusal(Room("CACHE", 300e9, 300e9))
    half = Need(1_281_167, (9216, 9600), "float16")
    assert "x 2 layers x 9,216 to 9,600 float16 need 48 GB" in half.refusal(Room("CACHE", 1e9, 1e9))
    assert "float16 (" not in half.refusal(Room("CACHE", 1e9, 1e9)).replace("float16 need", "")


def test_features_too_large_for_both_are_refused_before_the_second_batch(model, target, disk, small):
    disk.cache.limit = 100.0
    seen = []
    hook = model.encoder.trunk[0].register_forward_hook(lambda _m, _i, out: seen.append(len(out)))
    with pytest.raises(
        BenchError, match=r"features of 150 images x 1 layer x 16 float32 need 10 kB in .*BENCH_CACHE_GB"
    ):
        features(model, target.train, [Tap("output")], disk)
    assert seen == [32]
    hook.remove()


def test_what_others_will_read_is_left_out_where_there_is_no_room_for_it(model, target, disk, small):
    wide = Tap("conv1", "none")
    disk.taps = (wide, Tap("output"))
    disk.cache.limit = 150 * 16 * 4 + 1000.0
    found = features(model, target.train, [Tap("output")], disk)
    assert found[Tap("output")].shape == (150, 16)
    assert len(list(disk.cache.folder.glob("*.npy"))) == 1
