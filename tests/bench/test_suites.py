"""The built-in suites: each plans without data, finds its published numbers, and says what the papers say.

The facts are written by hand from the papers and their releases, not taken from the units.
"""

from __future__ import annotations

import pytest

from bench.planning import plan
from bench.planning.files import builtin
from bench.planning.suite import load
from bench.reporting import tables
from bench.store import collect

NAMES = sorted(builtin())
SEMI = [
    "cifar10_semi",
    "cifar100_semi",
    "svhn_semi",
    "stl10_semi",
    "mixmatch_ablation",
    "noise_tolerance",
    "oliver_table",
    "oliver_mismatch",
    "oliver_unlabeled",
    "oliver_validation",
    "oliver_transfer",
]
EMBEDDED = [
    "semi_supervised_embedded",
    "semi_supervised_scenes",
    "mixmatch_embedded",
    "noise_embedded",
    "noise_short_embedded",
    "vat_epsilon_embedded",
]
ABLATIONS = [
    "rotations_embedded",
    "jigsaw_embedded",
    "inpainting_embedded",
    "instdisc_embedded",
    "deepcluster_embedded",
    "infomax_embedded",
    "cpc_embedded",
]
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


@pytest.mark.parametrize(
    "name",
    [
        "imagenet_linear",
        "imagenet_voc",
        "imagenet_recipes",
        "imagenet_semi",
        "cifar_svhn",
        "cifar_infomax",
        "lecture_embedded",
        *ABLATIONS,
        *SEMI,
        *EMBEDDED,
    ],
)
def test_figures_and_tables_are_about_labels_that_are_planned(planned, name):
    suite, labels = load(name), {p.label for p in planned(name)}
    protocols = {p.cell.protocol.name for p in planned(name)}
    for block in (*suite.tables, *suite.figures):
        assert set(block.get("labels", [])) <= labels
        assert block["protocol"] in protocols


# ---- ImageNet ------------------------------------------------------------------------------------


def test_how_much_imagenet_linear_is(planned):
    cells = planned("imagenet_linear")
    assert len(plan.trainings(cells)) == 20
    # 18 AlexNets x 2 probes x 2 targets; 7 x 2 non-linear; kNN of AlexNet; 2 residual networks x (probe, kNN).
    assert len(cells) == 18 * 2 * 2 + 7 * 2 + 1 + 2 * 2
    assert {p.cell.aim.validation for p in cells} == {0}
    assert {p.cell.training.data.dataset.name for p in cells} == {"imagenet"}


S4L_LISTS = {
    "label_map_count_13000_index_0": "18c3b29ae82707809a3509d039ce49d4f568be5af527c42414c8a18818a51acf",
    "label_map_count_128000_index_0": "10b8703cf81452a852536fc5c7fd21c1abc3ac0997997dffaaec4a1a86087c17",
}


def test_few_labels_of_imagenet_are_those_of_s4ls_lists(planned):
    cells = planned("imagenet_semi")
    one, ten = S4L_LISTS.items()
    for label in ("supervised_10", "s4l", "vat", "vat_entmin"):
        (cell,) = some(cells, label)
        assert settings(cell.training.data.dataset, "label_file", "label_file_sha256") == ten
        assert (cell.training.budget, cell.training.data.labels) == ("200 epochs", "all")
        assert [200 * d for d in cell.training.method.get("drops")] == pytest.approx([140, 160, 180])
    (cell,) = some(cells, "supervised_1")
    assert settings(cell.training.data.dataset, "label_file", "label_file_sha256") == one
    assert cell.training.budget == "1000 epochs"
    method = cell.training.method
    assert settings(method, "lr", "weight_decay", "batch_size", "warmup") == (
        0.01,
        0.01,
        256,
        5 * (13_000 // 256),
    )
    assert settings(
        some(cells, "supervised_10")[0].training.method, "lr", "weight_decay", "batch_size", "warmup"
    ) == (
        0.1,
        1e-3,
        256,
        5 * (128_000 // 256),
    )
    for label in ("random", "instance_discrimination"):
        found = some(cells, label, "fine_tune")
        assert {settings(c.aim.dataset, "label_file", "label_file_sha256") for c in found} == {one, ten}
        assert {c.training.data.dataset.settings for c in found} == {()}
        assert len({c.training for c in found}) == 1


def test_one_network_by_every_recipe(planned):
    cells = planned("imagenet_recipes")
    assert len(plan.trainings(cells)) == 3
    assert len(cells) == 3 * 8 * 2
    tests = {(c.cell.protocol.get("pooling"), c.cell.protocol.get("test", "center")) for c in cells}
    assert {pooling for pooling, test in tests if test == "center"} == {
        "rotnet_max",
        "zhang_resize",
        "goyal_avg",
        "deepcluster_avg",
        "kolesnikov_max",
        "cpc_mean",
    }
    assert {one for one in tests if one[1] != "center"} == {
        ("deepcluster_avg", "ten_softmax"),
        ("asano_max", "ten_scores"),
    }
    # The steps on Places205 are those on ImageNet: 140,000 of 256 images, 85,000 of 2048.
    for pooling, batch, steps in (("zhang_resize", 256, 140_000), ("cpc_mean", 2048, 85_000)):
        (own,) = {
            c.cell.protocol.get("epochs")
            for c in cells
            if c.cell.aim.dataset.name == "places205" and c.cell.protocol.get("pooling") == pooling
        }
        assert own * (2_448_873 // batch) == pytest.approx(steps, rel=0.03)


@pytest.mark.parametrize(
    ("label", "variant", "budget"),
    [
        ("supervised", "caffenet", "90 epochs"),
        ("supervised_rotnet", "rotnet", "90 epochs"),
        ("rotation", "rotnet", "30 epochs"),
        ("deepcluster", "deepcluster", "500 epochs"),
        ("instance_discrimination", "instance_discrimination", "200 epochs"),
        ("context_prediction", "doersch", "19 epochs"),
        ("jigsaw", "jigsaw", "70 epochs"),
        ("context_encoder", "context_encoder", "5 epochs"),
        ("colorization", "zhang", "28 epochs"),
        ("split_brain", "split_brain", "28 epochs"),
        ("counting", "caffenet", "40 epochs"),
        ("bigan", "bigan", "100 epochs"),
        ("noise_as_targets", "noise_as_targets", "100 epochs"),
    ],
)
def test_every_method_has_its_papers_alexnet_and_epochs(planned, label, variant, budget):
    for cell in some(planned("imagenet_linear"), label):
        assert cell.training.backbone.get("variant") == variant
        assert cell.training.budget == budget


def test_views_of_cifar_are_the_releases(planned):
    """RotNet's dataloader.py pads by black, in all of its trainings; lemniscate's cifar.py mirrors nothing."""
    cells = planned("cifar_svhn")
    for label in ("rotation", "supervised_nin"):
        for cell in some(cells, label):
            assert settings(cell.training.method, "augment", "padding") == ("pad_crop_flip", "zeros")
    for cell in some(cells, "nonparametric"):
        assert settings(cell.training.method, "augment", "mirror") == ("resized_crop", False)
    probes = [c.cell.protocol for c in cells if c.cell.protocol.name in {"mlp_probe", "fine_tune"}]
    for probe in probes:
        assert settings(probe, "augment", "padding") == ("crop_flip", "zeros")


def test_transfer_to_voc_trains_nothing_that_the_probes_do_not(planned):
    cells = planned("imagenet_voc")
    assert set(plan.trainings(cells)) <= set(plan.trainings(planned("imagenet_linear")))
    assert {p.cell.aim.validation for p in cells} == {0}
    columns = [(p.label, p.cell.protocol.name, p.cell.protocol.get("train")) for p in cells]
    kinds = [("voc_classification", "fc6-8"), ("voc_classification", "all")]
    kinds += [("voc_detection", None), ("voc_segmentation", None)]
    assert set(columns) == {(p.label, *kind) for p in cells for kind in kinds}
    assert len(columns) == len(set(columns)) == 15 * 4
    for p in cells:
        lists = settings(p.cell.aim.dataset, "task", "train", "test")
        wanted = ("segmentation", "sbd_train", "seg11valid")
        assert lists == (
            wanted if p.cell.protocol.name == "voc_segmentation" else ("main", "trainval", "test")
        )


def test_networks_of_patches_end_in_pool5(planned):
    """Their papers put layers of their own on it: Noroozi & Favaro's fc6 has 512 units on a tile's 3 x 3 x 256."""
    cells = planned("imagenet_linear")
    for label in ("context_prediction", "jigsaw", "damaged_jigsaw", "counting", "bigan"):
        for cell in some(cells, label):
            assert settings(cell.training.backbone, "top", "grid") == (False, 3)


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


@pytest.mark.parametrize(
    ("label", "steps"),
    [
        ("context_prediction", 1_700_000),
        ("jigsaw", 350_000),
        ("colorization", 450_000),
        ("larsson_colorization", 2_000_000),
        ("counting", 200_000),
    ],
)
def test_epochs_are_the_papers_steps(planned, label, steps):
    training = some(planned("imagenet_linear"), label)[0].training
    epochs = int(training.budget.removesuffix(" epochs"))
    assert epochs * 1_281_167 / training.method.get("batch_size") == pytest.approx(steps, rel=0.05)


def test_puzzles_patches_and_codes_are_the_papers(planned):
    cells = planned("imagenet_linear")
    jigsaw = some(cells, "jigsaw")[0].training.method
    assert settings(jigsaw, "crop", "tile", "permutations", "lr", "gray") == (225, 64, 1000, 0.01, 0.3)
    context = some(cells, "context_prediction")[0].training.method
    assert settings(context, "patch", "gap", "patch_jitter", "grid", "grids") == (96, 48, 7, 3, 4)
    bigan = some(cells, "bigan")[0].training.method
    assert settings(bigan, "crop", "resolution", "dim", "lr", "batch_size") == (112, 64, 200, 2e-4, 128)
    noise = some(cells, "noise_as_targets")[0].training.method
    assert settings(noise, "every", "lr", "batch_size", "momentum") == (3, 0.01, 256, 0.0)
    color = some(cells, "colorization")[0].training
    assert settings(color.method, "lr", "weight_decay", "batch_size", "crop") == (3e-5, 1e-3, 80, 180)
    assert [450 * d for d in color.method.get("drops")] == pytest.approx([240, 300, 400], abs=2)
    assert not color.backbone.get("top")  # nor of the other colorizers, which read convolutions alone


def test_deep_infomax_on_cifar(planned):
    cells = planned("cifar_infomax")
    assert {c.cell.training.budget for c in cells if c.label != "random"} == {"1000 epochs"}
    for label, weights in (("local_jsd", (0.0, 1.0, 0.1)), ("global_jsd", (1.0, 0.0, 1.0))):
        for cell in some(cells, label):
            method = cell.training.method
            assert settings(method, "alpha", "beta", "gamma") == weights
            assert settings(method, "lr", "batch_size", "optimizer", "layer", "dim") == (
                1e-4,
                64,
                "adam",
                "conv2",  # 128 maps of 8 x 8
                64,
            )
    for cell in some(cells, "local_jsd", "mlp_probe"):
        assert settings(cell.protocol, "hidden", "average_last") == ((200,), 100)


# ---- the lecture's unsupervised half on scenes ---------------------------------------------------

_ALL = {
    "rotation", "jigsaw", "context_prediction", "damaged_jigsaw", "context_encoder", "colorization",
    "larsson_colorization", "split_brain", "counting", "bigan", "noise_as_targets", "instance_discrimination",
    "deepcluster", "deep_infomax", "cpc", "random", "random_rescaled", "raw_pixels", "mean_color", "supervised",
}  # fmt: skip


def test_the_lectures_half_has_every_method_at_one_budget(planned):
    cells = planned("lecture_embedded")
    assert {p.label for p in cells} == _ALL | {"random_plain"}
    trained = {p.cell.training for p in cells if "lr" in dict(p.cell.training.method.settings)}
    assert {t.budget for t in trained} == {60_000}
    assert {t.seed for t in trained} == {0, 1, 2, 3, 4}
    assert {t.threads for t in trained} == {1}
    for label in sorted(_ALL):
        (probe,) = {c.protocol for c in some(cells, label, "linear_probe")}
        assert probe.get("layers") == ()
        some(cells, label, "knn")
    for label in sorted(_ALL - {"raw_pixels"}):
        (svm,) = {c.protocol for c in some(cells, label, "linear_svm")}
        assert (len(svm.get("costs")), svm.get("folds")) == (5, 3)
    for label in sorted(_ALL - {"raw_pixels", "mean_color"}):
        tuned = some(cells, label, "fine_tune")
        assert sorted((c.aim.labels, c.aim.label_split) for c in tuned) == [(100, i) for i in range(5)]


def test_cpc_has_an_untrained_net_of_its_own_beside_it(planned):
    cells = planned("lecture_embedded")
    nets = {some(cells, label)[0].training.backbone for label in ("cpc", "random_plain")}
    assert [net.get("batch_norm") for net in nets] == [False]


@pytest.mark.parametrize(
    ("suite", "field", "values"),
    [
        ("rotations_embedded", "rotations", {2, 4, 8}),
        ("jigsaw_embedded", "permutations", {8, 32, 100, 320, 1000}),
        ("jigsaw_embedded", "distance", {"maximal", "middle", "minimal"}),
        ("inpainting_embedded", "mask", {"central", "block", "region"}),
        ("inpainting_embedded", "adversarial", {0.0, 0.001, 0.01, 0.1}),
        ("instdisc_embedded", "softmax", {"parametric", "nonparametric", "nce"}),
        ("instdisc_embedded", "negatives", {1, 10, 512, 4096}),
        ("instdisc_embedded", "dim", {32, 64, 128, 256}),
        ("deepcluster_embedded", "clusters", {10, 30, 60, 120, 240, 480, 960}),
        ("infomax_embedded", "objective", {"dv", "jsd", "infonce"}),
        ("infomax_embedded", "alpha", {0.0, 1.0}),
        ("cpc_embedded", "steps", {1, 2, 3, 4, 5}),
    ],
)
def test_ablations_vary_what_they_say_at_a_quarter_of_the_budget(planned, suite, field, values):
    trainings = [p.cell.training for p in planned(suite) if field in dict(p.cell.training.method.settings)]
    assert {t.method.get(field) for t in trainings} == values
    assert {(t.budget, t.seed) for t in trainings} == {(15_000, seed) for seed in range(3)}


def test_clusters_are_compared_epoch_by_epoch(planned):
    cells = some(planned("deepcluster_embedded"), "deepcluster", "clustering")
    assert len(cells) == 7 * 3
    assert {c.training.method.get("every") for c in cells} == {1}


# ---- RotNet and Instance Discrimination on CIFAR-10; the semi-supervised papers --------------------


@pytest.mark.parametrize(
    ("suite", "label", "dataset", "runs"),
    [
        ("cifar10_semi", "pi_model", "cifar10", {4000: 10, "all": 4}),
        ("svhn_semi", "pi_model", "svhn", {500: 10, 1000: 10, "all": 4}),
        ("cifar100_semi", "pi_model_plain", "cifar100", {10_000: 10, "all": 4}),
        ("cifar10_semi", "temporal_ensembling", "cifar10", {4000: 10, "all": 4}),
        ("svhn_semi", "temporal_ensembling", "svhn", {500: 10, 1000: 10, "all": 4}),
        ("cifar100_semi", "temporal_ensembling", "cifar100", {10_000: 10, "all": 4}),
        ("cifar10_semi", "supervised_conv_large", "cifar10", {1000: 10, 2000: 10, 4000: 10, "all": 4}),
        ("svhn_semi", "supervised_conv_large", "svhn", {250: 10, 500: 10, 1000: 10}),
        ("cifar10_semi", "mean_teacher", "cifar10", {1000: 10, 2000: 10, 4000: 10, "all": 4}),
        ("svhn_semi", "mean_teacher", "svhn", {250: 10, 500: 10, 1000: 10}),
        ("cifar10_semi", "mean_teacher_wrn", "cifar10", dict.fromkeys((250, 500, 1000, 2000, 4000, 8000), 5)),
        ("svhn_semi", "pi_model_wrn", "svhn", dict.fromkeys((250, 500, 1000, 2000, 4000, 8000), 5)),
        ("cifar10_semi", "mixmatch", "cifar10", dict.fromkeys((250, 500, 1000, 2000, 4000), 5)),
        ("svhn_semi", "mixmatch_extra", "svhn", dict.fromkeys((250, 500, 1000, 2000, 4000), 5)),
        ("cifar100_semi", "mixmatch", "cifar100", {10_000: 5}),
        ("cifar_svhn", "supervised_nin", "cifar10", dict.fromkeys((200, 1000, 4000, 10_000, "all"), 1)),
    ],
)
def test_label_counts_and_runs_are_the_published_ones(planned, suite, label, dataset, runs):
    found = {}
    for cell in some(planned(suite), label, dataset=dataset):
        data = cell.training.data
        found.setdefault(data.labels, []).append((cell.training.seed, data.label_split))
    assert {k: len(v) for k, v in found.items()} == runs
    for pairs in found.values():
        assert pairs == [(i, i) for i in range(len(pairs))]  # every run has labels of its own


def test_laine_and_ailas_pi_model(planned):
    for suite, dataset, whitening in (
        ("cifar10_semi", "cifar10", "laine_aila"),
        ("cifar100_semi", "cifar100", "laine_aila"),
        ("svhn_semi", "svhn", "per_image"),
    ):
        for cell in some(planned(suite), "pi_model", dataset=dataset):
            method, backbone = cell.training.method, cell.training.backbone
            assert cell.training.budget == "300 epochs"
            assert settings(method, "lr", "batch_size", "weight", "by_labels") == (0.003, 100, 100.0, True)
            assert settings(method, "betas", "last_beta1") == ((0.9, 0.999), 0.5)
            assert [300 * d for d in method.get("drops")] == pytest.approx([80, 250])
            assert 300 * method.get("ramp") == pytest.approx(80)
            assert cell.training.data.whitening == whitening
            assert settings(backbone, "noise", "dropout", "normalization", "momentum") == (
                0.15,
                0.5,
                "weight",
                0.001,
            )


@pytest.mark.parametrize(
    ("suite", "lr", "weight"),
    [("cifar10_semi", 0.003, 30.0), ("svhn_semi", 0.001, 30.0), ("cifar100_semi", 0.003, 100.0)],
)
def test_temporal_ensembling(planned, suite, lr, weight):
    for cell in some(planned(suite), "temporal_ensembling"):
        method = cell.training.method
        assert cell.training.budget == "300 epochs"
        assert settings(method, "lr", "weight", "average", "by_labels") == (lr, weight, 0.6, True)
        assert 300 * method.get("ramp") == pytest.approx(80)


def test_mean_teacher_on_cifar10(planned):
    for cell in some(planned("cifar10_semi"), "mean_teacher"):
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
        assert cell.training.data.whitening == "mean_teacher"


def test_mean_teacher_on_svhn(planned):
    for cell in some(planned("svhn_semi"), "mean_teacher"):
        method = cell.training.method
        assert settings(method, "average", "early_average", "early_beta2") == (0.999, 0.99, 0.99)
        assert settings(method, "weight", "by_labels", "labeled_batch", "batch_size") == (1.0, False, 1, 100)
        assert cell.training.budget / 100 / (4 / 3) == 180_000
        assert [180 * d for d in method.get("drops")] == pytest.approx([40, 155])
        assert 180 * method.get("ramp") == pytest.approx(40)
        assert cell.training.data.whitening == "per_image"


@pytest.mark.parametrize("labels", [1000, 2000, 4000])
def test_mean_teachers_supervised_baseline_on_cifar10(planned, labels):
    training = some(planned("cifar10_semi"), "supervised_conv_large", dataset="cifar10", labels=labels)[
        0
    ].training
    steps = 750 * labels / 100
    rise, fall = training.method.get("drops")
    assert training.budget == "750 epochs"
    assert (rise * steps, fall * 750) == pytest.approx((40_000, 650))


def test_mean_teachers_supervised_baseline_on_svhn(planned):
    for cell in some(planned("svhn_semi"), "supervised_conv_large", dataset="svhn"):
        training = cell.training
        assert training.budget / 100 == 40_000
        assert settings(training.method, "drops", "betas") == ((1.0, 0.75), (0.9, 0.99))


@pytest.mark.parametrize(
    ("suite", "steps", "decay", "epsilon", "plain", "norm"),
    [
        ("cifar10_semi", 200_000, (460, 500), 8.0, 10.0, False),
        ("svhn_semi", 48_000, (80, 120), 3.5, 2.5, True),
    ],
)
def test_vat(planned, suite, steps, decay, epsilon, plain, norm):
    # 32 labeled images; of 128 unlabeled ones: a clean pass (a third of one without entropy), 2/3, and 1.
    cost = {0.0: 32 + 128 * 2, 1.0: 32 + 128 * 8 / 3}
    for label, length, entropy, augment in (
        ("vat", epsilon, 0.0, "translate_flip"),
        ("vat_entropy", epsilon, 1.0, "translate_flip"),
        ("vat_plain", plain, 0.0, "none"),
        ("vat_entropy_plain", plain, 1.0, "none"),
    ):
        for cell in some(planned(suite), label):
            method, backbone = cell.training.method, cell.training.backbone
            assert settings(method, "epsilon", "entropy", "weight", "augment") == (
                length,
                entropy,
                1.0,
                augment,
            )
            assert settings(method, "labeled_batch", "batch_size", "lr", "last_beta1") == (
                32,
                160,
                0.001,
                0.5,
            )
            assert settings(method, "order", "iterations", "score_norm") == ("clean_first", 1, norm)
            assert method.get("drops") == pytest.approx((decay[0] / decay[1],))
            assert int(cell.training.budget / cost[entropy]) == steps
            assert settings(backbone, "normalization", "noise", "dropout") == ("batch", 0.0, 0.5)
            assert cell.training.data.whitening == ("vat" if suite == "cifar10_semi" else "centered")


@pytest.mark.parametrize(
    ("suite", "alpha", "held", "whitening"),
    [("cifar10_semi", 1.0, 5000, "ict"), ("svhn_semi", 0.1, 1000, "signed")],
)
def test_ict(planned, suite, alpha, held, whitening):
    for cell in some(planned(suite), "ict"):
        method, data = cell.training.method, cell.training.data
        assert cell.training.budget == "400 epochs"
        assert settings(method, "lr", "weight_decay", "alpha", "weight") == (0.1, 1e-4, alpha, 100.0)
        assert settings(method, "labeled_batch", "batch_size", "average") == (100, 200, 0.999)
        assert method.get("padding") == "zeros"
        assert 400 * method.get("ramp") == pytest.approx(100)
        assert 400 * method.get("span") == pytest.approx(450)
        assert (data.validation, cell.aim.validation, data.whitening) == (held, held, whitening)


@pytest.mark.parametrize("suite", ["cifar10_semi", "svhn_semi"])
@pytest.mark.parametrize(
    ("label", "lr", "weight", "passes"),
    [
        ("supervised_wrn", 3e-3, None, 1),
        ("pi_model_wrn", 3e-4, 20.0, 4 / 3),
        ("mean_teacher_wrn", 4e-4, 8.0, 4 / 3),
        ("vat_wrn", 3e-3, 0.3, 8 / 3),
        ("vat_entropy_wrn", 3e-3, 0.3, 8 / 3),
        ("pseudo_label_wrn", 3e-4, 1.0, 1),
    ],
)
def test_olivers_settings(planned, suite, label, lr, weight, passes):
    for cell in some(planned(suite), label):
        training = cell.training
        method = training.method
        assert settings(method, "lr", "weight", "optimizer", "batch_size") == (lr, weight, "adam", 100)
        assert int(training.budget / (100 * passes)) == 500_000
        assert (method.get("drops"), method.get("gamma")) == ((0.8,), 0.2)  # at 400,000 steps
        assert method.get("ramp") in {None, 0.4}  # 200,000 steps
        assert (method.get("starts"), method.get("ends")) in {(None, None), (0.0, 0.4)}
        assert method.get("average") in {None, 0.95}
        assert method.get("stop_gradient") in {None, True}
        assert method.get("compared") in {None, "unlabeled"}
        assert method.get("threshold") in {None, 0.95}
        assert method.get("order") in {None, "clean_last"}
        assert method.get("entropy") in {None, 0.1 if label == "vat_entropy_wrn" else 0.0}
        assert method.get("schedule") == "step"
        dataset = cell.aim.dataset.name
        held, epsilon, noise, whitening = {
            "cifar10": (5000, 6.0, 0.15, "mean_teacher"),
            "svhn": (7326, 1.0, 0.0, ""),
        }[dataset]
        assert method.get("epsilon") in {None, epsilon}
        assert (training.data.validation, cell.aim.validation) == (held, held)
        assert (training.data.whitening, training.backbone.get("noise")) == (whitening, noise)
        assert (training.snapshots, cell.snapshots) == (100, "all")
        assert training.backbone.name == "wide_resnet_28_2"


# 64 labeled and 64 unlabeled images; passes of an unlabeled one; then weight, decay a step, alpha.
BASELINES = {
    "pi_model_mm": (4 / 3, 20.0, 5.0, 4e-5, 4e-4, None, None),
    "pseudo_label_mm": (1, 1.0, 2.0, None, None, None, None),
    "mixup_mm": (4 / 3, 1.0, 1.0, 4e-5, 4e-5, 0.75, 0.25),
    "vat_mm": (8 / 3, 0.3, 0.3, 4e-5, 4e-5, None, None),
    "mean_teacher_mm": (4 / 3, 50.0, 150.0, 4e-4, 4e-5, None, None),
    "mixmatch": (8 / 3, 75.0, 250.0, 4e-4, 4e-4, 0.75, 0.75),
}


@pytest.mark.parametrize("label", sorted(BASELINES))
def test_mixmatch_and_its_baselines(planned, label):
    passes, *pairs = BASELINES[label]
    for i, suite in enumerate(("cifar10_semi", "svhn_semi")):
        for cell in some(planned(suite), label):
            training = cell.training
            method = training.method
            assert settings(method, "weight", "decay", "alpha") == tuple(pairs[i::2])
            assert settings(method, "lr", "batch_size", "labeled_batch", "optimizer") == (
                0.002,
                128,
                64,
                "adam",
            )
            assert method.get("schedule") == "constant"
            assert int(training.budget / (64 + 64 * passes)) == 2**20
            assert (training.data.validation, training.data.whitening, cell.snapshots) == (0, "", "all")


def test_svhn_with_extra_images(planned):
    (teacher, *_), (mixmatch, *_) = (
        some(planned("svhn_semi"), label, extra=True) for label in ("mean_teacher_extra", "mixmatch_extra")
    )
    assert settings(teacher.training.method, "weight", "decay") == (180.0, 4e-5)
    assert settings(mixmatch.training.method, "weight", "decay", "alpha") == (250.0, 2e-6, 0.25)
    assert {c.training.data.extra for c in some(planned("svhn_semi"), "mixmatch")} == {False}


def test_mixmatch_on_cifar100_and_stl10(planned):
    (cell, *_) = some(planned("cifar100_semi"), "mixmatch")
    assert settings(cell.training.method, "weight", "decay", "alpha") == (150.0, 8e-4, 0.75)
    folds = some(planned("stl10_semi"), "mixmatch")
    assert [c.training.data.dataset.get("fold") for c in folds] == [0, 1, 2, 3, 4]
    assert all(c.training.data.extra and c.training.data.labels == "all" for c in folds)
    assert {c.training.method.get("weight") for c in folds} == {50.0}
    (whole,) = some(planned("stl10_semi"), "mixmatch_all")
    assert whole.training.data.dataset.get("fold") == -1


ABLATION = {  # label: what differs from MixMatch, and passes of an unlabeled image
    "mixmatch": ({}, 8 / 3),
    "guesses_1": ({"guesses": 1}, 4 / 3),
    "guesses_3": ({"guesses": 3}, 4),
    "guesses_4": ({"guesses": 4}, 16 / 3),
    "temperature_1": ({"temperature": 1.0}, 8 / 3),
    "guess_by_average": ({"guess_by_average": True}, 8 / 3),
    "mixed_none": ({"mixed": "none"}, 8 / 3),
    "mixed_labeled": ({"mixed": "labeled"}, 8 / 3),
    "mixed_unlabeled": ({"mixed": "unlabeled"}, 8 / 3),
    "mixed_separate": ({"mixed": "separate"}, 8 / 3),
}


@pytest.mark.parametrize(
    ("suite", "labeled", "hidden", "steps"),
    [("mixmatch_ablation", 64, 64, 2**20), ("mixmatch_embedded", 10, 40, 1000)],
)
def test_mixmatchs_ablation_changes_one_setting_a_row_and_no_number_of_steps(
    planned, suite, labeled, hidden, steps
):
    cells = planned(suite)
    base = dict(some(cells, "mixmatch")[0].training.method.settings)
    assert (base["guesses"], base["temperature"], base["mixed"]) == (2, 0.5, "all")
    for label, (change, passes) in ABLATION.items():
        for cell in some(cells, label):
            assert dict(cell.training.method.settings) == base | change
            assert int(cell.training.budget / (labeled + hidden * passes)) == steps
    for cell in some(cells, "ict"):
        assert int(cell.training.budget / (labeled + hidden * 4 / 3)) == steps
        assert settings(cell.training.method, "per_sample", "dominant", "mix_labeled") == (True, True, False)


def test_mixmatchs_ablation_is_of_split_3_and_icts_weight_1000(planned):
    cells = planned("mixmatch_ablation")
    assert {(p.cell.training.seed, p.cell.training.data.label_split) for p in cells} == {(3, 3)}
    assert {p.cell.training.data.labels for p in cells} == {250, 4000}
    assert {c.training.method.get("weight") for c in some(cells, "ict")} == {1000.0}


@pytest.mark.parametrize(
    ("suite", "weights"),
    [
        ("noise_tolerance", (300.0, 3000.0)),
        ("noise_embedded", (30.0, 300.0)),
        ("noise_short_embedded", (10.0, 100.0)),
    ],
)
def test_wrong_labels_and_the_weights_that_go_with_them(planned, suite, weights):
    cells = planned(suite)
    for label in ("pi_model", "temporal_ensembling"):
        found = {c.training.data.label_noise: c.training.method.get("weight") for c in some(cells, label)}
        assert found == dict(zip((0.0, 0.2, 0.5, 0.8, 0.9), [weights[0]] * 2 + [weights[1]] * 3, strict=True))
    assert {p.cell.training.data.labels for p in cells} == {"all"}
    assert {p.label for p in cells} == {"supervised", "pi_model", "temporal_ensembling", "mean_teacher"}
    if suite == "noise_tolerance":
        for cell in some(cells, "temporal_ensembling"):
            assert (cell.training.method.get("lr"), cell.training.budget) == (0.001, "300 epochs")
            assert cell.training.data.dataset.name == "svhn"


# ---- Oliver et al.: what is compared, not how --------------------------------------------------------


@pytest.mark.parametrize("suite", ["oliver_table", "semi_supervised_embedded", "semi_supervised_scenes"])
def test_every_method_has_as_many_trials_as_the_baseline_and_something_to_choose_on(planned, suite):
    trials = {}
    for p in planned(suite):
        trials.setdefault((p.label, p.cell.aim.dataset.name), set()).add(p.trial)
        assert p.cell.aim.validation == p.cell.training.data.validation > 0
    assert any(label == "supervised" for label, _ in trials)
    assert len({frozenset(t) for t in trials.values()}) == 1
    assert len(next(iter(trials.values()))) == (20 if suite == "oliver_table" else 3)


def test_olivers_table_starts_its_search_from_their_settings(planned):
    found = {}
    for p in planned("oliver_table"):
        if p.trial == 0:
            method = p.cell.training.method
            found[p.label, p.cell.aim.dataset.name] = settings(method, "lr", "weight", "epsilon", "entropy")
    for dataset, epsilon in (("cifar10", 6.0), ("svhn", 1.0)):
        assert found["supervised", dataset] == (3e-3, None, None, None)
        assert found["pi_model", dataset] == (3e-4, 20.0, None, None)
        assert found["mean_teacher", dataset] == (4e-4, 8.0, None, None)
        assert found["vat", dataset] == (3e-3, 0.3, epsilon, 0.0)
        assert found["vat_entropy", dataset] == (3e-3, 0.3, epsilon, 0.1)
        assert found["pseudo_label", dataset] == (3e-4, 1.0, None, None)


def test_class_mismatch_has_the_published_class_sets(planned):
    cells = planned("oliver_mismatch")
    animals = (2, 3, 4, 5, 6, 7)
    sets = [(4, 5, 6, 7), (0, 5, 6, 7), (0, 1, 6, 7), (0, 1, 8, 7), (0, 1, 8, 9)]
    for label in ("supervised", "pi_model", "mean_teacher", "vat", "pseudo_label"):
        found = [c.training.data.unlabeled_classes for c in some(cells, label)]
        assert list(dict.fromkeys(found)) == sets
    assert [len(set(s) - set(animals)) for s in sets] == [0, 1, 2, 3, 4]
    for p in cells:
        assert (p.cell.training.data.labeled_classes, p.cell.aim.classes) == (animals, animals)
        assert (p.cell.training.data.labels, p.cell.training.data.validation) == (6 * 400, 5000)
        assert p.cell.aim.validation == 6 * 500  # balanced: the animals among the images that are held out


def test_unlabeled_images_from_none_to_all_the_extra_ones(planned):
    cells = planned("oliver_unlabeled")
    sizes = [10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 531_131]
    for label in ("pi_model", "mean_teacher", "vat", "pseudo_label"):
        assert sorted({c.training.data.unlabeled for c in some(cells, label)}) == sizes
    assert {c.training.data.unlabeled for c in some(cells, "supervised")} == {0}
    assert {(p.cell.training.data.labels, p.cell.training.data.extra) for p in cells} == {(1000, True)}


def test_small_validation_sets_are_drawn_ten_times(planned):
    for p in planned("oliver_validation"):
        assert (p.cell.protocol.name, p.cell.protocol.get("resamples")) == ("small_validation", 10)
        assert max(p.cell.protocol.get("sizes")) <= p.cell.aim.validation == 7326
        assert p.cell.training.data.labels == 1000


def test_transfer_starts_from_every_pretext_method_and_from_scratch(planned):
    cells = planned("oliver_transfer")
    pretexts = ("rotation", "instance_discrimination", "deepcluster")
    for label in ("supervised", "mean_teacher", "vat"):
        (budget,) = {c.training.budget for c in some(cells, label)}
        for pretext in pretexts:
            for cell in some(cells, f"{label} from {pretext}"):
                start = cell.training.init
                assert (start.method.name, start.data.labels, start.seed) == (pretext, 0, cell.training.seed)
                assert (start.data.whitening, start.data.validation) == ("mean_teacher", 5000)
                assert cell.training.budget == budget


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_suites_say_how_long_they_take(planned, name):
    suite = load(name)
    assert suite.minutes
    passes = sum(t.budget for t in plan.trainings(planned(name)))
    per_second = {"digits": 40_000 / 12, "scenes": 60_000 / 60}
    (dataset,) = {p.cell.aim.dataset.name for p in planned(name)}
    assert passes / per_second[dataset] / 2 / 60 <= suite.minutes  # two processes side by side


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
