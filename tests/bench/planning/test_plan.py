"""Axes multiply out to cells: every combination once, nothing that makes no difference, nothing silently."""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from bench.artifacts import training_id
from bench.planning import plan
from bench.planning.suite import parse
from bench.records import BenchError, Unit, cell_from, plain


@pytest.fixture
def planned(home):
    """Cells of a suite: toys unless the text says otherwise."""

    def make(tables="[methods]\nwalker = {}", top="", data='dataset = "dots"', protocols="norms = {}"):
        axes = 'budget = 48\nbackbone = "dot_net"\n' if "backbone" not in top else "budget = 48\n"
        text = f"{axes}{top}\n[data]\n{data}\n[protocols]\n{protocols}\n{tables}"
        return plan.cells(parse(tomllib.loads(text), Path("mine.toml")))

    return make


def test_a_list_is_an_axis_everywhere(planned):
    found = planned(
        '[target]\nlabels = [9, "all"]\n[methods]\nwalker = {lr = [0.1, 0.2]}\nnamer = {}',
        'seeds = 2\nbackbone = [{name = "dot_net", width = [4, 6]}, "alexnet_small"]\nprecision = ["fp32", "bf16"]',
        'dataset = ["dots", {name = "digits", side = [16, 32]}]\nlabels = [9, 30]',
        "norms = {factor = [1, 2]}",
    )
    # namer: seeds x backbones x precision x datasets x labels x factors x targets; walker: rates, but blind to labels.
    assert Counter(p.label for p in found) == {
        "namer": 2 * 3 * 2 * 3 * 2 * 2 * 2,
        "walker": 2 * 2 * 3 * 2 * 3 * 2 * 2,
    }
    assert len({p.cell for p in found}) == len(found)
    assert {p.cell.training.backbone.get("width") for p in found} == {4, 6, None}
    assert {p.cell.aim.labels for p in found} == {9, "all"}


def test_a_setting_that_is_a_list_is_a_value_and_a_list_of_lists_an_axis(planned):
    (one,) = planned("[methods]\nwalker = {groups = [3, 4]}")
    assert one.cell.training.method.get("groups") == (3, 4)
    found = planned("[methods]\nwalker = {groups = [[3], [4, 5]]}")
    assert [p.cell.training.method.get("groups") for p in found] == [(3,), (4, 5)]
    (one,) = planned("[methods]\nwalker = {groups = []}")
    assert one.cell.training.method.get("groups") == ()


def test_classes_are_a_value_and_lists_of_them_an_axis(planned):
    found = planned("[methods]\nnamer = {}", data='dataset = "dots"\nlabeled_classes = [[0, 1], [2]]')
    assert [p.cell.training.data.labeled_classes for p in found] == [(0, 1), (2,)]
    (one,) = planned("[methods]\nnamer = {}", data='dataset = "dots"\nlabeled_classes = [0, 1]')
    assert one.cell.training.data.labeled_classes == (0, 1)
    found = planned("[target]\nclasses = [[0, 1], [2]]\n[methods]\nnamer = {}")
    assert [p.cell.aim.classes for p in found] == [(0, 1), (2,)]
    (one,) = planned("[target]\nclasses = [0, 1]\n[methods]\nnamer = {}")
    assert one.cell.aim.classes == (0, 1)


def test_defaults_are_written_out_so_that_saying_one_changes_nothing(planned):
    silent, spoken = (
        planned(),
        planned("[methods]\nwalker = {lr = 0.25, batch_size = 12}", "seeds = [0]\nthreads = 1"),
    )
    assert silent == spoken
    assert silent[0].cell.training.method.get("batch_size") == 12


def test_numbers_that_are_equal_are_the_same_model(planned):
    (a,) = planned("[methods]\nnamer = {}", data='dataset = "dots"\nlabel_noise = 0')
    (b,) = planned("[methods]\nnamer = {}", data='dataset = "dots"\nlabel_noise = 0.0')
    assert repr(a) == repr(b)  # equal values of two types would have two digests


def test_grids_stand_side_by_side_and_what_both_have_is_planned_once(planned):
    found = planned(
        "[methods]\nwalker = {}\nnamer = {}\n[[grid]]\nseeds = [0, 1]\n[[grid]]\nseeds = [1, 2]\nmethods = ['walker']"
    )
    assert [(p.label, p.cell.training.seed) for p in found] == [
        ("walker", 0),
        ("walker", 1),
        ("namer", 0),
        ("namer", 1),
        ("walker", 2),
    ]


def test_one_model_under_two_names_is_one_training_and_two_labels(planned):
    found = planned('[methods]\nwalker = {}\nagain = {use = "walker", lr = 0.25}')
    assert [p.label for p in found] == ["walker", "again"]
    assert len(plan.trainings(found)) == 1


def test_a_set_block_applies_where_all_its_conditions_hold(planned):
    found = planned(
        """
        [methods]
        walker = {}
        namer = {}
        [[set]]
        when = {dataset = "digits", seed = [1, 2]}
        method = {trouble = "set"}
        [[set]]
        when = {method = "namer"}
        data = {labels = 12}
        snapshots = 3
        [[set]]
        when = {labels = 12, dataset = "dots"}
        target = {labels = 6}
        [[grid]]
        methods = ["walker"]
        seeds = 2
        [[grid]]
        methods = ["namer"]
        seeds = 1
        """,
        data='dataset = ["dots", {name = "digits"}]',
    )
    rows = [
        (
            p.label,
            p.cell.training.data.dataset.name,
            p.cell.training.seed,
            p.cell.training.method.get("trouble"),
        )
        for p in found
    ]
    assert rows == [
        ("walker", "dots", 0, ""),
        ("walker", "dots", 1, ""),
        ("walker", "digits", 0, ""),
        ("walker", "digits", 1, "set"),
        ("namer", "dots", 0, None),
        ("namer", "digits", 0, None),
    ]
    assert [p.cell.training.data.labels for p in found] == [0, 0, 0, 0, 12, 12]
    assert [p.cell.aim.labels for p in found] == ["all", "all", "all", "all", 6, "all"]


def test_later_set_blocks_win(planned):
    (one,) = planned(
        "[methods]\nwalker = {lr = 1.0}\n[[set]]\nwhen = {seed = 0}\nmethod = {lr = 2.0, noise = 3.0}\n"
        "[[set]]\nwhen = {seed = 0}\nmethod = {lr = 4.0}\nbudget = 12"
    )
    assert (one.cell.training.method.get("lr"), one.cell.training.method.get("noise")) == (4.0, 3.0)
    assert one.cell.training.budget == 12


def test_a_set_block_may_name_a_unit_alone(planned):
    (one,) = planned(
        '[methods]\nwalker = {}\n[[set]]\nwhen = {seed = 0}\nbackbone = "alexnet_small"\ndata = {dataset = "digits"}'
    )
    assert one.cell.training.backbone.name == "alexnet_small"
    assert one.cell.training.data.dataset.name == "digits"


def test_vary_replaces_one_value_at_a_time(planned):
    found = planned(
        """
        [methods]
        walker = {}
        namer = {}
        [[vary]]
        path = "method.lr"
        values = [0.1, 0.2]
        methods = ["walker"]
        [[vary]]
        path = "data.labels"
        values = [6, "all"]
        methods = ["namer"]
        [[vary]]
        path = "budget"
        values = [12]
        [[vary]]
        path = "backbone"
        values = ["alexnet_small"]
        methods = ["walker"]
        """
    )
    rows = [
        (p.label, p.cell.training.method.get("lr"), p.cell.training.data.labels, p.cell.training.budget)
        for p in found
    ]
    assert rows == [
        ("walker", 0.1, 0, 48),
        ("walker", 0.2, 0, 48),
        ("namer", None, 6, 0),
        ("namer", None, "all", 0),
        ("walker", 0.25, 0, 12),
        ("walker", 0.25, 0, 48),
    ]
    assert found[-1].cell.training.backbone.name == "alexnet_small"


def test_axes_that_a_method_does_not_depend_on_collapse(planned):
    data = 'dataset = "dots"\nlabels = [3, 6]\nlabel_split = [0, 1]'
    found = planned("[methods]\nwalker = {}\nnamer = {}\nmean_color = {}\nrandom = {}", "seeds = 3", data)
    trainings = Counter(training.method.name for training in plan.trainings(found))
    assert trainings == {"walker": 3, "namer": 12, "mean_color": 1, "random": 3}
    by_name = {p.label: p.cell.training for p in found}
    assert by_name["walker"].data.labels == 0
    assert by_name["namer"].budget == 0
    assert by_name["mean_color"].backbone == Unit("none")
    assert by_name["mean_color"].seed == 0


def test_every_seed_may_have_labels_of_its_own(planned):
    data = 'dataset = "dots"\nlabels = 3\nlabel_split = "seed"'
    found = planned("[methods]\nnamer = {}", "seeds = [4, 7]", data)
    assert [(p.cell.training.seed, p.cell.training.data.label_split) for p in found] == [(4, 4), (7, 7)]


def test_what_cannot_be_measured_is_planned_as_skipped_with_its_reason(planned):
    found = planned(
        "[methods]\nwalker = {}\nnamer = {}",
        data='dataset = ["dots"]\nlabels = [0, 9]',
        protocols="votes = {}\nnorms = {}",
    )
    reasons = {(p.label, p.cell.training.data.labels, p.cell.protocol.name): p.cell.skip for p in found}
    assert reasons == {
        ("walker", 0, "votes"): "votes needs a classifier; walker makes none",
        ("walker", 0, "norms"): "",
        ("namer", 0, "votes"): "namer needs labels; data.labels is 0",
        ("namer", 0, "norms"): "namer needs labels; data.labels is 0",
        ("namer", 9, "votes"): "",
        ("namer", 9, "norms"): "",
    }
    assert len(plan.remaining(found, lambda _: False)) == 3
    assert plan.remaining(found, lambda _: True) == []


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ("color=True", "walker needs color; dots is gray"),
        ("video=True", "walker needs video; dots has none"),
        ("audio=True", "walker needs audio; dots has none"),
        ("min_side=9", "walker needs images of at least 9 pixels a side; dots has 8"),
        ("min_side=8", ""),
        ("labels=True", "walker needs labels; data.labels is 0"),
    ],
)
def test_every_need_of_a_method_is_told(toys, forgetting, planned, needs, reason):
    path = toys / "toy_units" / "walker.py"
    text = path.read_text().replace("import Method, Model", "import Method, Model, Needs")
    path.write_text(
        text.replace("    lr: float", f"    needs: ClassVar[Needs] = Needs({needs})\n    lr: float", 1)
    )
    forgetting(files=True)
    assert [p.cell.skip for p in planned()] == [reason]


def test_a_target_without_the_annotation_is_told(toys, forgetting, planned):
    path = toys / "toy_units" / "votes.py"
    path.write_text(path.read_text().replace("head=True", 'annotation="boxes"'))
    forgetting(files=True)
    (one,) = planned("[methods]\nnamer = {}", protocols="votes = {}")
    assert one.cell.skip == "votes needs boxes annotations; dots has none"


def test_all_snapshots_are_judged_by_protocols_of_the_head_alone(planned):
    found = planned("[methods]\nnamer = {}\nwalker = {}", "snapshots = 3", protocols="norms = {}\nvotes = {}")
    assert {(p.label, p.cell.protocol.name): p.cell.snapshots for p in found if not p.cell.skip} == {
        ("namer", "norms"): "last",
        ("namer", "votes"): "last",  # namer does not depend on the budget: it has one model
        ("walker", "norms"): "last",
    }
    found = planned("[methods]\nsupervised = {}", "snapshots = 3", protocols="norms = {}\nerror = {}")
    assert [p.cell.snapshots for p in found] == ["last", "all"]


def test_a_target_of_its_own(planned):
    (one,) = planned('[target]\ndataset = {name = "digits", side = 32}\nlabels = 20\n[methods]\nwalker = {}')
    assert one.cell.aim.dataset == Unit.of("digits", {"side": 32})
    assert one.cell.training.data.dataset.name == "dots"


def test_records_survive_the_way_to_a_worker_and_back(planned):
    found = planned(
        "[methods]\nwalker = {groups = [3, 4]}\nnamer = {}",
        "seeds = 2",
        'dataset = "dots"\nlabeled_classes = [1, 2]',
    )
    for one in found:
        again = cell_from(plain(one.cell))
        assert again == one.cell
        assert training_id(again.training) == training_id(one.cell.training)


def test_recipes_are_an_axis_and_a_cell_is_its_settings_however_they_were_written(planned):
    both = planned(protocols='probe = {use = "linear_probe", recipe = ["zhang", "cpc"], epochs = 3}')
    assert [p.cell.protocol.get("pooling") for p in both] == ["zhang_resize", "cpc_mean"]
    assert [p.cell.protocol.get("epochs") for p in both] == [3, 3]
    (written,) = planned(
        protocols='linear_probe = {pooling = "cpc_mean", size = 0, feature_norm = "none", learning_rates = [0.1], '
        "batch_size = 2048, nesterov = false, weight_decay = 0.0, drops = [0.5882352941176471, 0.8823529411764706], "
        'gamma = 0.1, augment = "none", side = 224, epochs = 3}'
    )
    assert written.cell == both[1].cell
    assert "test" not in dict(written.cell.protocol.settings)  # came later: ids stay
    (set_,) = planned(
        '[[set]]\nwhen = {protocol = "probe"}\nprotocol = {recipe = "kolesnikov"}\n[methods]\nwalker = {}',
        protocols='probe = {use = "linear_probe", epochs = 3}',
    )
    assert (set_.cell.protocol.get("pooling"), set_.cell.protocol.get("epochs")) == ("kolesnikov_max", 3)
    with pytest.raises(BenchError, match="linear_probe has no recipe 'zang'; did you mean 'zhang'"):
        planned(protocols='linear_probe = {recipe = "zang"}')
    with pytest.raises(BenchError, match="protocol 'knn' has no field 'recipe'"):
        planned(protocols='knn = {recipe = "zhang"}')


def test_a_list_of_labeled_images_is_part_of_the_identity_by_its_digest(planned, home):
    def cells(text):
        return planned(
            "[methods]\nnamer = {}", data=f'dataset = {{name = "imagenet"{text}}}', protocols="votes = {}"
        )

    (plain_,) = cells("")
    assert dict(plain_.cell.training.data.dataset.settings) == {}  # came later: ids stay
    (home / "some.txt").write_text("a.JPEG")
    (one,) = cells(', label_file = "some.txt"')
    found = hashlib.sha256(b"a.JPEG").hexdigest()
    for unit in (one.cell.training.data.dataset, one.cell.aim.dataset):
        assert dict(unit.settings) == {"label_file": "some.txt", "label_file_sha256": found}
    (home / "some.txt").unlink()
    (said,) = cells(f', label_file = "some.txt", label_file_sha256 = "{found}"')
    assert said.cell == one.cell
    with pytest.raises(BenchError, match=r"dataset: imagenet\.label_file: some\.txt is no file here"):
        cells(', label_file = "some.txt"')
