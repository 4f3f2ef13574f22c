"""Models made and judged by the worker, as a command does it: what reaches the rows."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
from sklearn.metrics import normalized_mutual_info_score

from bench import artifacts, registry, tensors, worker
from bench.artifacts import cell_id, file_digest, folder, training_id
from bench.data import _write_voc
from bench.data.scenes import Scenes
from bench.planning import plan
from bench.planning.suite import parse
from bench.records import BenchError, Unit, cell_from, plain
from bench.reporting import plots, tables
from bench.store import collect
from bench.worker import evaluation

STAGES = ["layer1", "layer2", "layer3", "layer4"]
SMALL = 'backbone = {name = "alexnet_small", widths = [8, 8, 8, 8, 8], stem_stride = 1}\n'
DIGITS = '[data]\ndataset = {name = "digits", side = 16}\n[target]\nlabels = 100\n'


@pytest.fixture
def judge(home):
    """Runs a suite's text; returns its rows and its cells."""
    threads = torch.get_num_threads()

    def run(text):
        cells = plan.cells(parse(tomllib.loads(text), Path("mine.toml")))
        place = worker.Place(home / "runs", home / "data", home / "cache")
        for training, waiting in plan.trainings(cells).items():
            job = worker.Job(training, tuple(p.cell for p in waiting))
            assert worker.work(job, place, lambda *_: None) == []
        return collect("mine", cells, place.runs), cells

    yield run
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    evaluation.target_of.cache_clear()


def test_stored_assignments_become_rows_by_epoch(judge, home):
    rows, cells = judge(
        f'budget = "3 epochs"\n{SMALL}{DIGITS}[methods]\ndeepcluster = {{clusters = 10, pca = 8, iterations = 2, '
        'augment = "none"}\nrandom = {}\n[protocols]\nclustering = {restarts = 1}\n'
    )
    kept = folder(home / "runs", cells[0].cell.training).path / "assignments"
    assert len(list(kept.iterdir())) == 3
    mine = {
        (r["metric"], r["step"]): r["value"]
        for r in rows
        if r["label"] == "deepcluster" and r["split"] == "train"
    }
    assert {k for k in mine if k[1] is not None} == {
        ("nmi_labels", 0),
        ("nmi_labels", 1),
        ("nmi_labels", 2),
        ("nmi_previous", 1),
        ("nmi_previous", 2),
    }
    assert all(0 < mine["nmi_labels", e] < 1 for e in range(3))
    truth = registry.load("dataset", cells[0].cell.training.data.dataset).load("train", home).labels
    ids = tensors.read(kept / "000002.safetensors")["ids"]
    expected = normalized_mutual_info_score(truth, ids, average_method="geometric")
    assert mine["nmi_labels", 2] == pytest.approx(expected)
    shown = {"protocol": "clustering", "split": "train", "labels": ["deepcluster"]}
    for name, figure in {
        "labels": {"kind": "learning", "metric": "nmi_labels"},
        "previous": {"kind": "learning", "metric": "nmi_previous"},
        "final": {"kind": "vary", "x": "setting:clusters", "metric": "nmi_labels"},
    }.items():
        block = {"name": name, **shown, **figure}
        assert plots.draw(tables.frame(rows), block, home / f"{name}.svg").exists()
        drawn = plots.figure(tables.frame(rows), block).axes[0].get_lines()[0]
        steps = {"labels": [0, 1, 2], "previous": [1, 2], "final": [2]}[name]
        assert drawn.get_ydata().tolist() == [mine[figure["metric"], e] for e in steps]
    assert not [r for r in rows if r["label"] == "random" and r["step"] is not None]


# ---- traps and precision ---------------------------------------------------------------------------


def test_traps_stand_beside_the_numbers(judge, home, monkeypatch):
    """A net whose features are all the same: the probe is at chance, and the rows say both."""
    method = type(registry.load("method", Unit("random")))
    train = method.train

    def collapsed(self, model, data, run):
        model = train(self, model, data, run)
        torch.nn.init.zeros_(
            [m for m in model.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1].weight
        )
        return model

    monkeypatch.setattr(method, "train", collapsed)
    rows, _ = judge(
        f'{SMALL}{DIGITS}[methods]\nrandom = {{}}\n[protocols]\nlinear_probe = {{augment = "none", epochs = 2, '
        'pooling = "adaptive_avg", size = 2}\nknn = {k = 5}\n'
    )
    assert {r["status"] for r in rows} == {"ok"}
    told = {
        (r["protocol"], r["layer"]): r["reason"]
        for r in rows
        if (r["metric"], r["split"]) == ("top1", "test")
    }
    same = "warning: features at {} are the same for all images: collapsed; top1 is at chance"
    assert told["knn", ""].startswith(same.format("output"))
    assert told["linear_probe", "conv5"].startswith(same.format("conv5"))
    assert "chance" not in told["linear_probe", "conv2"]


def test_a_protocol_that_moves_statistics_is_told(judge, monkeypatch):
    protocol = type(registry.load("protocol", Unit("knn")))
    evaluate = protocol.evaluate

    def careless(self, model, target, run):
        model.train()(torch.zeros(2, 3, 16, 16))
        yield from evaluate(self, model.eval(), target, run)

    monkeypatch.setattr(protocol, "evaluate", careless)
    monkeypatch.setattr("bench.contracts.Model.forward", lambda self, images: self.encoder(images))
    rows, _ = judge(f"{SMALL}{DIGITS}[methods]\nrandom = {{}}\n[protocols]\nknn = {{k = 5}}\n")
    assert all(
        r["reason"].startswith("warning: the model changed while it was judged (encoder.trunk") for r in rows
    )


def test_features_of_other_code_are_not_read(judge, home, monkeypatch):
    """What protocols share is kept by the code that extracts it, and by the images' own."""
    text = f"{SMALL}{DIGITS}[methods]\nrandom = {{}}\n[protocols]\nknn = {{k = [5]}}\nlinear_svm = {{costs = [1.0]}}\n"
    kept = home / "cache" / "features"

    def files():
        return {path.name for path in kept.iterdir()}

    judge(text)
    first = files()
    judge(text.replace("k = [5]", "k = [6]"))
    assert files() == first
    monkeypatch.setattr(artifacts, "features_code", lambda _: "another version")
    judge(text.replace("k = [5]", "k = [7]"))
    assert len(files() - first) == len(first)


def test_the_mark_of_features_names_their_code(monkeypatch):
    cells = [
        p.cell
        for p in plan.cells(
            parse(
                tomllib.loads(
                    f"{SMALL}{DIGITS}[methods]\nrandom = {{}}\n[protocols]\nknn = {{}}\nlinear_svm = {{}}\n"
                ),
                Path("mine.toml"),
            )
        )
    ]
    marks = {artifacts.features_code(cell) for cell in cells}
    assert len(marks) == 1  # shared by protocols
    for name, value in (("closure_digest", lambda _: "x"), ("code_digest", lambda *_: "x"), ("NUMERICS", -1)):
        with monkeypatch.context() as patch:
            patch.setattr(artifacts, name, value)
            assert artifacts.features_code(cells[0]) not in marks


def test_a_wrong_tap_costs_its_own_cell_only(judge, home):
    """Announced with the others, read with none of them: whoever comes first, the right ones have their numbers."""
    text = (
        f"{SMALL}{DIGITS}[methods]\nrandom = {{}}\n[protocols]\nlayer = {{use = 'knn', k = 5, layer = 'conv9'}}\n"
        "pooling = {use = 'knn', k = 5, layer = 'conv2', pooling = 'rotnet'}\nknn = {k = 5}\n"
        "right = {use = 'knn', k = 5, layer = 'conv2', pooling = 'cpc_mean'}\n"
    )
    alone, _ = judge(
        "\n".join(line for line in text.splitlines() if not line.startswith(("layer", "pooling")))
    )
    for name in ("runs", "cache"):
        (home / name).rename(home / f"{name} alone")
    with pytest.raises(AssertionError):  # it tells two problems
        judge(text)
    cells = plan.cells(parse(tomllib.loads(text), Path("mine.toml")))
    rows = collect("mine", cells, home / "runs")
    failed = [r["reason"] for r in rows if r["status"] == "failed"]
    assert len(failed) == 2
    assert failed[0].startswith("layer 'conv9' does not exist here")
    assert failed[1].startswith("there is no pooling 'rotnet'")

    def told(rows):
        return sorted((r["layer"], r["split"], r["metric"], r["value"]) for r in rows if r["status"] == "ok")

    assert told(rows) == told(alone)


def test_half_precision_is_another_cell_whose_rows_say_so(judge):
    text = f'{SMALL}{DIGITS}features = ["float32", "float16"]\n[methods]\nrandom = {{}}\n[protocols]\nknn = {{k = 5}}\n'
    rows, cells = judge(text)
    assert len(cells) == 2
    exact, half = ([r for r in rows if ("float16" in r["protocol_settings"]) is h] for h in (False, True))
    assert len(exact) == len(half) > 0
    assert {json.loads(r["protocol_settings"])["features"] for r in half} == {"float16"}
    (silent,) = plan.cells(
        parse(tomllib.loads(text.replace('features = ["float32", "float16"]\n', "")), Path("mine.toml"))
    )
    assert cell_id(silent.cell) == cell_id(cells[0].cell)  # the default leaves identities as they were
    with pytest.raises(BenchError, match=r"target\.features must be one of float32, float16, not 'int8'"):
        judge(text.replace("float16", "int8"))


# ---- anybody's checkpoint ------------------------------------------------------------------------

SCENES = (
    'data = {dataset = {name = "scenes", side = 64, train = 60, test = 24}}\ntarget = {validation = 12}\n'
    "[protocols]\nknn = {k = 5}\nretrieval = {k = [1, 5]}\n"
    'linear_probe = {augment = "none", epochs = 2, pooling = "dims_avg", size = 512}\n'
)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        ("torchvision:alexnet", ["features.1", "features.4", "features.7", "features.9", "features.11"]),
        ("timm:resnet10t", ["conv1", "act1", "layer1", "layer2", "layer3", "layer4"]),
        pytest.param("torchvision:resnet50", ["relu", *STAGES], marks=pytest.mark.slow),
    ],
)
def test_a_file_goes_through_the_protocols_from_one_line(judge, home, network, layers):
    net = saved(network, home / "w.pt")
    rows, cells = judge(
        f'{SCENES}[methods]\nmine = {{use = "checkpoint", file = "w.pt", network = "{network}", side = 64}}\n'
    )
    assert {r["status"] for r in rows} == {"ok"}
    assert {r["protocol"] for r in rows} == {"knn", "retrieval", "linear_probe"}
    assert [r["layer"] for r in rows if r["metric"] == "lr"] == layers
    assert len(list((home / "runs").rglob("neighbors.png"))) == 1
    digest = file_digest(home / "w.pt")
    assert all(json.loads(r["method_settings"])["file_sha256"] == digest for r in rows)
    kept = tensors.read(folder(home / "runs", cells[0].cell.training).model)
    own = {k: v for k, v in net.state_dict().items() if not k.startswith(("fc", "classifier.6"))}
    assert all(torch.equal(kept[f"encoder.trunk.{k}"], v) for k, v in own.items())


def saved(network, path):
    """A network with random weights, whose state dict lies at ``path`` as DataParallel would name it."""
    source, _, name = network.partition(":")
    models = pytest.importorskip(source) if source == "timm" else torchvision.models
    net = seeded(lambda: getattr(models, "create_model" if source == "timm" else "get_model")(name))
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
    return net


ANYBODYS = """
budget = 0

[data]
dataset = "voc_scenes"

[methods]
alexnet = {use = "checkpoint", file = "alexnet.pth", network = "torchvision:alexnet"}
resnet50 = {use = "checkpoint", file = "resnet50.pth", network = "torchvision:resnet50"}
efficientnet = {use = "checkpoint", file = "efficientnet.pth", network = "timm:tf_efficientnet_lite0"}
vit = {use = "checkpoint", file = "vit.pth", network = "timm:vit_tiny_patch16_224"}

[protocols]
linear_probe = {augment = "none", epochs = 2, side = 64, size = 512, pooling = "dims_avg"}
knn = {k = 5, side = 64}
retrieval = {k = [1, 5], side = 64, queries = 2, shown = 3, picture_side = 32}
new_top = {use = "voc_classification", steps = 2, batch_size = 8, side = 64, hidden = 32, crops = 2}
features = {use = "voc_classification", train = "all", fresh = "fc8", steps = 2, batch_size = 8, side = 64, crops = 2}
on_output = {use = "linear_probe", augment = "none", epochs = 2, side = 224, layers = ["output"], pooling = "none", size = 0}

[[grid]]
methods = ["alexnet", "resnet50", "efficientnet"]
target = {dataset = {name = "scenes", side = 64, train = 40, test = 16}, validation = 8}
protocols = ["linear_probe", "knn", "retrieval"]

[[grid]]
methods = ["alexnet", "resnet50", "efficientnet"]
target = {validation = 0}
protocols = ["new_top", "features"]

[[grid]]
methods = ["vit"]
target = {dataset = {name = "scenes", side = 64, train = 40, test = 16}, validation = 8}
protocols = ["linear_probe", "on_output"]
"""


@pytest.mark.slow
def test_networks_of_other_makes_go_through_the_protocols_from_one_line_each(judge, home):
    for network, file in {
        "torchvision:alexnet": "alexnet",
        "torchvision:resnet50": "resnet50",
        "timm:tf_efficientnet_lite0": "efficientnet",
        "timm:vit_tiny_patch16_224": "vit",
    }.items():
        saved(network, home / f"{file}.pth")
    _write_voc.write(Scenes(side=96, train=24, test=12, objects=3), home / "data" / "scenes_voc")
    rows, _ = judge(ANYBODYS)
    status = {
        (r["label"], r["protocol"], json.loads(r["protocol_settings"]).get("fresh", "")): r["status"]
        for r in rows
    }
    protocols = [("knn", ""), ("linear_probe", ""), ("retrieval", "")]
    protocols += [("voc_classification", "fc6-8"), ("voc_classification", "fc8")]
    for label in ("alexnet", "resnet50", "efficientnet"):
        assert {status[label, *p] for p in protocols} == {"ok"}, label
    told = {r["status"]: r for r in rows if r["label"] == "vit" and r["metric"] != "lr"}
    assert told["skipped"]["reason"] == (
        'linear_probe reads maps; the network of checkpoint has none: write layers = ["output"]'
    )
    assert told["ok"]["metric"].startswith("top")


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_a_program_is_judged_by_its_output_and_the_rest_is_skipped(judge, home):
    net = seeded(lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU()))
    torch.jit.script(net).save(home / "w.pt")
    rows, _ = judge(
        'data = {dataset = {name = "scenes", side = 32, train = 60, test = 24}}\n'
        "target = {validation = 12}\n"
        'methods = {mine = {use = "checkpoint", file = "w.pt", network = "program", side = 32}}\n'
        "[protocols]\nknn = {k = 5}\nretrieval = {k = [1]}\nlinear_svm = {costs = [1.0]}\nfilters = {}\n"
        "clustering = {restarts = 1}\nlinear_probe = {}\nfine_tune = {}\nvoc_svm = {}\n"
        "voc_classification = {}\nvoc_detection = {}\nvoc_segmentation = {}\n"
        'on_output = {use = "linear_probe", augment = "none", epochs = 2, layers = ["output"]}\n'
    )
    found = {}
    for r in rows:
        found.setdefault(r["protocol"], set()).add((r["status"], r["reason"].split(":")[0]))
    maps = ("skipped", "{} reads maps; the network of checkpoint has none")
    weights = ("skipped", "{} needs weights to train; checkpoint has none")
    for name in ("knn", "linear_svm", "retrieval", "clustering"):
        assert {status for status, _ in found.pop(name)} == {"ok"}, name
    assert {status for status, _ in found["linear_probe"]} == {"ok", "skipped"}
    for name in ("linear_probe", "filters", "voc_svm", "voc_detection", "voc_segmentation"):
        assert (maps[0], maps[1].format(name)) in found.pop(name)
    for name, told in found.items():
        assert told == {(weights[0], weights[1].format(name))}
    assert set(found) == {"fine_tune", "voc_classification"}


def test_a_file_that_changes_is_another_model(home):
    def cells(line, top=""):
        text = f'{top}data = {{dataset = "digits"}}\n[protocols]\nknn = {{}}\n[methods]\n{line}\n'
        return [p.cell for p in plan.cells(parse(tomllib.loads(text), Path("mine.toml")))]

    line = 'checkpoint = {file = "w.pt", network = "torchvision:alexnet"}'
    with pytest.raises(BenchError, match=r"mine\.toml: method: checkpoint\.file: w\.pt is no file here"):
        cells(line)
    (home / "w.pt").write_bytes(b"one")
    (one,) = cells(line)
    assert one.training.method.get("file_sha256") == hashlib.sha256(b"one").hexdigest()
    (home / "w.pt").write_bytes(b"two")
    (other,) = cells(line)
    assert cell_id(one) != cell_id(other)
    assert training_id(one.training) != training_id(other.training)
    assert cell_from(plain(other)) == other
    # Said, it is checked; and believed where there is no file.
    said = line.replace("}", f', file_sha256 = "{other.training.method.get("file_sha256")}"}}')
    assert cells(said) == [other]
    (home / "w.pt").write_bytes(b"three")
    with pytest.raises(BenchError, match="is another file"):
        cells(said)
    (home / "w.pt").unlink()
    assert cells(said) == [other]


def test_a_network_of_its_own_makes_the_backbone_and_the_seed_irrelevant(home):
    (home / "w.pt").write_bytes(b"one")

    def trainings(line, backbone):
        text = (
            f'seeds = 2\n{backbone}budget = [100, 200]\ndata = {{dataset = "digits"}}\n[protocols]\nknn = {{}}\n'
            f"[methods]\n{line}\n"
        )
        return plan.trainings(plan.cells(parse(tomllib.loads(text), Path("mine.toml"))))

    two = 'backbone = ["alexnet_small", "resnet18"]\n'
    assert len(trainings('checkpoint = {file = "w.pt", network = "torchvision:alexnet"}', two)) == 1
    assert len(trainings('checkpoint = {file = "w.pt"}', two)) == 2
    with pytest.raises(BenchError, match="checkpoint needs a backbone"):
        trainings('checkpoint = {file = "w.pt"}', "")


def test_a_file_that_changed_since_it_was_planned_is_not_loaded(tmp_path):
    torch.save({}, tmp_path / "w.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    method = registry.load(
        "method", Unit.of("checkpoint", {"file": str(tmp_path / "w.pt"), "file_sha256": "0" * 64})
    )
    with pytest.raises(BenchError, match="changed since it was planned"):
        method._load(None)
