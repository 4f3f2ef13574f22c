"""The built-in suites: each plans without data, finds its published numbers, and says what the papers say.

The facts are written by hand from the papers and their releases, not taken from the units.
"""

from __future__ import annotations

import pytest

from bench import plan, tables
from bench.store import collect
from bench.suite import builtin, load

NAMES = sorted(builtin())
SKIPPED: dict[str, set[str]] = {}  # suite -> reasons that are meant; all others plan every cell


@pytest.fixture(scope="module")
def planned(described, tmp_path_factory):
    """Cells of a built-in suite, planned once."""
    known: dict[str, list[plan.Planned]] = {}

    def of(name):
        if name not in known:
            known[name] = plan.cells(load(name))
        return known[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(described.parent))
        yield of


def some(cells, label, protocol=None, dataset=None, **data):
    """The cells of a label, narrowed down; there is one at least."""
    found = [
        p.cell
        for p in cells
        if p.label == label
        and protocol in {None, p.cell.protocol.name}
        and dataset in {None, p.cell.aim.dataset.name}
        and all(getattr(p.cell.training.data, k) == v for k, v in data.items())
    ]
    assert found, (label, protocol, dataset, data)
    return found


def settings(unit, *keys):
    return tuple(unit.get(k) for k in keys)


@pytest.mark.parametrize("name", NAMES)
def test_every_suite_says_what_it_is_and_skips_nothing_unawares(planned, name):
    assert load(name).about
    cells = planned(name)
    assert cells
    assert {p.cell.skip for p in cells} - {""} == SKIPPED.get(name, set())


@pytest.mark.parametrize("name", NAMES)
def test_every_table_is_made_of_no_result_and_finds_its_published_numbers(planned, name, tmp_path):
    suite = load(name)
    made = tables.of_suite(suite, tables.frame(collect(name, planned(name), tmp_path)))
    assert [t.name for t in made] == [b["name"] for b in suite.tables]
    for block, table in zip(suite.tables, made, strict=True):
        measured = [line for line in table.lines if not line.published]
        assert measured
        assert not any(e.n for line in measured for e in line.entries)
        if "published" not in block:
            continue
        rows = [line for line in table.lines if line.published]
        wanted = block["published"]["rows"]
        assert len(rows) == len(wanted)
        for line in rows:
            assert any(e.mean is not None for e in line.entries), (table.name, line.name)
        filled = [any(line.entries[i].mean is not None for line in rows) for i in range(len(table.columns))]
        assert sum(filled) == len(block["published"]["columns"]), table.name


@pytest.mark.parametrize("name", ["imagenet_linear", "cifar_svhn"])
def test_figures_and_tables_are_about_labels_that_are_planned(planned, name):
    suite, labels = load(name), {p.label for p in planned(name)}
    protocols = {p.cell.protocol.name for p in planned(name)}
    for block in (*suite.tables, *suite.figures):
        assert set(block.get("labels", [])) <= labels
        assert block["protocol"] in protocols


# ---- ImageNet ------------------------------------------------------------------------------------


def test_how_much_imagenet_linear_is(planned):
    cells = planned("imagenet_linear")
    assert len(plan.trainings(cells)) == 10
    # 8 AlexNets x 2 probes x 2 targets; 3 x 2 non-linear; kNN of AlexNet; 2 residual networks x (probe, kNN).
    assert len(cells) == 8 * 2 * 2 + 3 * 2 + 1 + 2 * 2
    assert {p.cell.aim.validation for p in cells} == {0}
    assert {p.cell.training.data.dataset.name for p in cells} == {"imagenet"}


@pytest.mark.parametrize(
    ("label", "variant", "budget"),
    [
        ("supervised", "caffenet", "90 epochs"),
        ("supervised_rotnet", "rotnet", "90 epochs"),
        ("rotation", "rotnet", "30 epochs"),
        ("deepcluster", "deepcluster", "500 epochs"),
        ("instance_discrimination", "instance_discrimination", "200 epochs"),
    ],
)
def test_every_method_has_its_papers_alexnet_and_epochs(planned, label, variant, budget):
    for cell in some(planned("imagenet_linear"), label):
        assert cell.training.backbone.get("variant") == variant
        assert cell.training.budget == budget


def test_rotnets_pretraining_and_probe(planned):
    cells = planned("imagenet_linear")
    method = some(cells, "rotation")[0].training.method
    assert settings(method, "lr", "batch_size", "weight_decay", "momentum", "nesterov") == (
        0.01,
        192,
        5e-4,
        0.9,
        True,
    )
    assert [30 * d for d in method.get("drops")] == pytest.approx([10, 20])
    for dataset in ("imagenet", "places205"):
        probes = [c.protocol for c in some(cells, "rotation", "linear_probe", dataset)]
        (probe,) = [p for p in probes if p.get("pooling") == "dims_max"]
        assert settings(probe, "epochs", "batch_size", "weight_decay", "side", "feature_norm") == (
            35,
            192,
            5e-4,
            224,
            "batch",
        )
        assert [35 * d for d in probe.get("drops")] == pytest.approx([5, 15, 25])
        rates = [probe.get("learning_rates")[0] * probe.get("gamma") ** i for i in range(4)]
        assert rates == pytest.approx([0.01, 0.002, 4e-4, 8e-5])


@pytest.mark.parametrize(("dataset", "images"), [("imagenet", 1_281_167), ("places205", 2_448_873)])
def test_zhangs_probe_is_140000_steps_of_256(planned, dataset, images):
    probes = [
        c.protocol
        for c in some(planned("imagenet_linear"), "instance_discrimination", "linear_probe", dataset)
    ]
    (probe,) = [p for p in probes if p.get("pooling") == "zhang_resize"]
    steps = probe.get("epochs") * images / 256
    assert steps == pytest.approx(140_000, rel=0.03)
    assert [140 * d for d in probe.get("drops")] == pytest.approx([40, 80, 120])
    assert settings(probe, "size", "gamma", "side", "nesterov", "learning_rates") == (
        0,
        0.1,
        227,
        False,
        (0.01,),
    )


def test_rotnets_nonlinear_classifier(planned):
    cells = some(planned("imagenet_linear"), "rotation", "fine_tune")
    assert [c.protocol.get("from_layer") for c in cells] == ["conv4", "conv5"]
    for cell in cells:
        assert settings(cell.protocol, "freeze", "epochs", "batch_size") == (True, 40, 192)
        assert [40 * d for d in cell.protocol.get("drops")] == [10, 20, 30]


def test_deepcluster_and_instance_discrimination_on_imagenet(planned):
    cells = planned("imagenet_linear")
    cluster = some(cells, "deepcluster")[0].training.method
    assert settings(cluster, "clusters", "pca", "lr", "weight_decay", "batch_size") == (
        10_000,
        256,
        0.05,
        1e-5,
        256,
    )
    for label in ("instance_discrimination", "instdisc_resnet18", "instdisc_resnet50"):
        (cell,) = some(cells, label, "knn", "imagenet")
        method = cell.training.method
        assert settings(method, "temperature", "negatives", "lr", "dim", "batch_size") == (
            0.07,
            4096,
            0.03,
            128,
            256,
        )
        assert [200 * d for d in method.get("drops")] == pytest.approx([120, 160])
        assert settings(cell.protocol, "k", "temperature") == (200, 0.07)


# ---- CIFAR and SVHN --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "dataset", "runs"),
    [
        ("pi_model", "cifar10", {4000: 10, "all": 4}),
        ("pi_model", "svhn", {500: 10, 1000: 10, "all": 4}),
        ("pi_model_plain", "cifar100", {10_000: 10, "all": 4}),
        ("supervised_conv_large", "cifar10", {1000: 10, 2000: 10, 4000: 10, "all": 4}),
        ("supervised_conv_large", "svhn", {250: 10, 500: 10, 1000: 10}),
        ("mean_teacher", "cifar10", {1000: 10, 2000: 10, 4000: 10, "all": 4}),
        ("mean_teacher_wrn", "cifar10", dict.fromkeys((250, 500, 1000, 2000, 4000), 5)),
        ("pi_model_wrn", "svhn", dict.fromkeys((250, 500, 1000, 2000, 4000), 5)),
        ("supervised_nin", "cifar10", dict.fromkeys((200, 1000, 4000, 10_000, "all"), 1)),
    ],
)
def test_label_counts_and_runs_are_the_published_ones(planned, label, dataset, runs):
    found = {}
    for cell in some(planned("cifar_svhn"), label, dataset=dataset):
        data = cell.training.data
        found.setdefault(data.labels, []).append((cell.training.seed, data.label_split))
    assert {k: len(v) for k, v in found.items()} == runs
    for pairs in found.values():
        assert pairs == [(i, i) for i in range(len(pairs))]  # every run has labels of its own


def test_laine_and_ailas_pi_model(planned):
    for dataset in ("cifar10", "cifar100", "svhn"):
        for cell in some(planned("cifar_svhn"), "pi_model", dataset=dataset):
            method, backbone = cell.training.method, cell.training.backbone
            assert cell.training.budget == "300 epochs"
            assert settings(method, "lr", "batch_size", "weight", "by_labels") == (0.003, 100, 100.0, True)
            assert settings(method, "betas", "last_beta1") == ((0.9, 0.999), 0.5)
            assert [300 * d for d in method.get("drops")] == pytest.approx([80, 250])
            assert 300 * method.get("ramp") == pytest.approx(80)
            assert settings(backbone, "noise", "dropout", "normalization", "momentum") == (
                0.15,
                0.5,
                "weight",
                0.001,
            )


def test_mean_teacher_on_cifar10(planned):
    for cell in some(planned("cifar_svhn"), "mean_teacher"):
        method = cell.training.method
        assert settings(method, "average", "weight", "by_labels", "lr", "batch_size") == (
            0.999,
            100.0,
            True,
            0.003,
            100,
        )
        assert [150 * d for d in method.get("drops")] == pytest.approx([40, 125])
        budget = cell.training.budget
        passes = 300 * 500 if budget == "300 epochs" else budget / 100 / (4 / 3)
        assert passes == 150_000


@pytest.mark.parametrize("labels", [1000, 2000, 4000])
def test_mean_teachers_supervised_baseline_on_cifar10(planned, labels):
    training = some(planned("cifar_svhn"), "supervised_conv_large", dataset="cifar10", labels=labels)[
        0
    ].training
    steps = 750 * labels / 100
    rise, fall = training.method.get("drops")
    assert training.budget == "750 epochs"
    assert (rise * steps, fall * 750) == pytest.approx((40_000, 650))


def test_mean_teachers_supervised_baseline_on_svhn(planned):
    for cell in some(planned("cifar_svhn"), "supervised_conv_large", dataset="svhn"):
        training = cell.training
        assert training.budget / 100 == 40_000
        assert settings(training.method, "drops", "betas") == ((1.0, 0.75), (0.9, 0.99))


@pytest.mark.parametrize(
    ("label", "lr", "weight", "passes"),
    [
        ("supervised_wrn", 3e-3, None, 1),
        ("pi_model_wrn", 3e-4, 20.0, 4 / 3),
        ("mean_teacher_wrn", 4e-4, 8.0, 4 / 3),
    ],
)
def test_olivers_settings(planned, label, lr, weight, passes):
    for cell in some(planned("cifar_svhn"), label):
        training = cell.training
        method = training.method
        assert settings(method, "lr", "weight", "optimizer", "batch_size") == (lr, weight, "adam", 100)
        assert int(training.budget / (100 * passes)) == 500_000
        assert (method.get("drops"), method.get("gamma")) == ((0.8,), 0.2)  # at 400,000 steps
        assert method.get("ramp") in {None, 0.4}  # 200,000 steps
        assert method.get("average") in {None, 0.95}
        assert method.get("stop_gradient") in {None, True}
        assert method.get("schedule") == "step"
        held = {"cifar10": 5000, "svhn": 7326}[cell.aim.dataset.name]
        assert (training.data.validation, cell.aim.validation) == (held, held)
        assert (training.snapshots, cell.snapshots) == (100, "all")
        assert training.backbone.name == "wide_resnet_28_2"


def test_rotnet_on_cifar10(planned):
    cells = planned("cifar_svhn")
    for label, blocks in (("rotation", 4), ("rotation_3", 3), ("rotation_5", 5), ("supervised_nin", 3)):
        for cell in some(cells, label):
            method = cell.training.method
            assert cell.training.backbone.get("blocks") == blocks
            assert settings(method, "lr", "gamma", "batch_size", "augment", "nesterov") == (
                0.1,
                0.2,
                128,
                "pad_crop_flip",
                True,
            )
            assert [200 * d for d in method.get("drops")] == pytest.approx([60, 120, 160])
    layers = {
        label: [c.protocol.get("layer") for c in some(cells, label, "mlp_probe")]
        for label in ("rotation_3", "rotation", "rotation_5")
    }
    assert {k: len(v) for k, v in layers.items()} == {"rotation_3": 3, "rotation": 4, "rotation_5": 5}
    for cell in some(cells, "rotation", "mlp_probe"):
        assert settings(cell.protocol, "hidden", "learning_rate", "epochs") == ((200, 200), 0.1, 50)
        assert [50 * d for d in cell.protocol.get("drops")] == pytest.approx([20, 40, 45])
    assert some(cells, "rotation_by_45")[0].training.method.get("rotations") == 8
    assert some(cells, "rotation_by_180")[0].training.method.get("rotations") == 2


def test_rotnets_convolutional_classifier_makes_100_epochs_of_390_steps_of_any_labels(planned):
    found = {}
    for cell in some(planned("cifar_svhn"), "rotation_3", "fine_tune"):
        count = 50_000 if cell.aim.labels == "all" else cell.aim.labels
        found[cell.aim.labels] = cell.protocol.get("epochs") * (count // 128)
        assert settings(cell.protocol, "from_layer", "freeze", "learning_rates") == ("block2", True, (0.1,))
        assert [100 * d for d in cell.protocol.get("drops")] == pytest.approx([35, 70, 85])
    assert set(found) == {200, 1000, 4000, 10_000, "all"}
    assert list(found.values()) == pytest.approx([39_000] * 5, rel=1e-3)


def test_instance_discrimination_on_cifar10(planned):
    cells = planned("cifar_svhn")
    negatives = {"nce_1": 1, "nce_10": 10, "nce_512": 512, "nce_4096": 4096}
    for label in ("parametric", "nonparametric", *negatives):
        (cell,) = some(cells, label, "knn")
        method = cell.training.method
        assert settings(method, "temperature", "weight_decay", "batch_size", "lr") == (0.1, 5e-4, 128, 0.1)
        assert [200 * d for d in method.get("drops")] == pytest.approx([80, 120, 160])
        assert method.get("softmax") == ("nce" if label in negatives else label)
        assert label not in negatives or method.get("negatives") == negatives[label]
        assert settings(cell.protocol, "k", "temperature") == (200, 0.1)
        assert cell.training.backbone.get("stem") == "3x3"
