"""Reading a suite: what is wrong is told in one line with file and key, and what to write instead."""

from __future__ import annotations

import pytest

from bench.planning import plan
from bench.planning.files import builtin, locate
from bench.planning.suite import load
from bench.records import BenchError

GOOD = """
about = "a walk"
minutes = 1.5
budget = 48
seeds = 2
backbone = "dot_net"

[data]
dataset = "dots"

[methods]
walker = {lr = 0.1}
fast = {use = "walker", lr = 1}

[protocols]
norms = {}
"""


@pytest.fixture
def file(home):
    def write(text, name="mine.toml"):
        (home / name).write_text(text)
        return str(home / name)

    return write


def planned(name):
    return plan.cells(load(name))


def test_a_suite_as_written(file):
    suite = load(file(GOOD))
    assert (suite.name, suite.about, suite.minutes) == ("mine", "a walk", 1.5)
    (grid,) = suite.grids
    assert grid["methods"] == {"walker": {"name": "walker", "lr": 0.1}, "fast": {"name": "walker", "lr": 1}}
    assert grid["seeds"] == [0, 1]
    assert grid["data"] == {"dataset": [{"name": "dots"}]}
    assert (grid["precision"], grid["threads"], grid["snapshots"]) == ("fp32", 1, 1)


def test_a_grid_block_overrides_axes_and_may_name_methods_alone(file):
    text = GOOD + '\n[[grid]]\nmethods = ["fast"]\nbudget = 12\n[[grid]]\nseeds = [7]\ndata = "digits"\n'
    first, second = load(file(text)).grids
    assert first["methods"] == {"fast": {"name": "walker", "lr": 1}}
    assert (first["budget"], first["seeds"]) == (12, [0, 1])
    assert (second["budget"], second["seeds"]) == (48, [7])
    assert set(second["methods"]) == {"walker", "fast"}
    assert second["data"]["dataset"] == [{"name": "digits"}]


@pytest.mark.parametrize("name", sorted(builtin()))
def test_every_built_in_suite_plans(home, name):
    cells = planned(name)
    assert cells
    assert load(name).about
    assert any(not one.cell.skip for one in cells)


BAD = {
    "key": ("seeds = 2", "seedz = 2", "mine.toml: unknown key 'seedz'; did you mean 'seeds'?"),
    "strange key": ("seeds = 2", "weather = 2", "mine.toml: unknown key 'weather'; known are: about, backbone, "),
    "method": ("walker = {lr", "walkre = {lr", "methods.walkre: there is no method 'walkre'; did you mean 'walker'?"),
    "use": ('use = "walker"', 'use = "runner"', "methods.fast: there is no method 'runner'; "),
    "field": ("lr = 1}", "lrr = 1}", "methods.fast: method 'walker' has no field 'lrr'; did you mean 'lr'?"),
    "type": ("lr = 0.1", 'lr = "high"', "mine.toml: method: walker.lr must be float, not 'high'"),
    "settings": ("{lr = 0.1}", "0.1", "methods.walker must be a table of settings, not 0.1"),
    "dataset": ('"dots"', '"dats"', "data.dataset: there is no dataset 'dats'; did you mean 'dots'?"),
    "dataset's field": ('"dots"', '{name = "dots", sid = 4}', "dataset 'dots' has no field 'sid'; did you mean 'side'?"),
    "dataset's type": ('"dots"', '{name = "dots", side = "big"}', "dataset: dots.side must be int, not 'big'"),
    "dataset's name": ('"dots"', "{side = 4}", "data.dataset must be a name or a table with a name"),
    "data's key": ('dataset = "dots"', 'dataset = "dots"\nlabel = 3', "data: unknown key 'label'; did you mean 'labels'?"),
    "labels": ('"dots"', '"dots"\nlabels = "some"', "data.labels must be a number or \"all\", not 'some'"),
    "labels' type": ('"dots"', '"dots"\nlabels = 0.5', "data.labels must be int | str, not 0.5"),
    "labels' sign": ('"dots"', '"dots"\nlabels = -5', "data.labels must be 0 or more, not -5"),
    "noise": ('"dots"', '"dots"\nlabel_noise = 2', "data.label_noise must be between 0 and 1, not 2"),
    "extra": ('"dots"', '"dots"\nextra = 1', "data.extra must be bool, not 1"),
    "classes": ('"dots"', '"dots"\nlabeled_classes = ["a"]', "data.labeled_classes must be tuple[int, ...], not the list ['a']"),
    "no dataset": ('dataset = "dots"', "labels = 3", "data.dataset is missing: name the dataset to train on"),
    "no data": ('[data]\ndataset = "dots"', "", "key 'data' is missing (what is trained on)"),
    "no methods": ('[methods]\nwalker = {lr = 0.1}\nfast = {use = "walker", lr = 1}', "", "key 'methods' is missing"),
    "empty methods": ('walker = {lr = 0.1}\nfast = {use = "walker", lr = 1}', "", "methods must be a list of names or a table"),
    "protocol": ("norms = {}", "norm = {}", "protocols.norm: there is no protocol 'norm'; did you mean 'norms'?"),
    "protocol's field": ("norms = {}", "norms = {k = 3}", "protocol 'norms' has no field 'k'; "),
    "backbone": ('"dot_net"', '"dotnet"', "backbone: there is no backbone 'dotnet'; did you mean 'dot_net'?"),
    "backbone's field": ('"dot_net"', '{name = "dot_net", wide = 3}', "backbone 'dot_net' has no field 'wide'; did you mean 'width'?"),
    "backbone's type": ('"dot_net"', "3", "backbone must be a name or a table with a name"),
    "no backbone": ('backbone = "dot_net"', "", "walker needs a backbone: write backbone = "),
    "budget": ("budget = 48", 'budget = "much"', "budget must be a number of encoder passes or like \"12 epochs\", not 'much'"),
    "budget's unit": ("budget = 48", 'budget = "12 hours"', "budget must be a number"),
    "budget's sign": ("budget = 48", "budget = -1", "budget must be a number"),
    "budget's type": ("budget = 48", "budget = 1.5", "budget must be a number"),
    "seeds": ("seeds = 2", "seeds = 0", "seeds must be a number of seeds or a list of whole numbers, not 0"),
    "seeds' type": ("seeds = 2", 'seeds = ["a"]', "seeds must be a number of seeds or a list"),
    "precision": ("seeds = 2", 'precision = "fp16"', "precision must be \"fp32\" or \"bf16\", not 'fp16'"),
    "threads": ("seeds = 2", "threads = 0", "threads must be a positive whole number, not 0"),
    "snapshots": ("seeds = 2", "snapshots = [1, true]", "snapshots must be a positive whole number, not True"),
    "minutes": ("minutes = 1.5", 'minutes = "few"', "minutes must be a number, not 'few'"),
    "TOML": ("seeds = 2", "seeds = ", "mine.toml: not valid TOML: "),
    "grid": ("[protocols]", "[grid]\n[protocols]", "grid must be written as [[grid]] blocks"),
    "grid's key": ("[protocols]", "[[grid]]\ntabel = 3\n[protocols]", "mine.toml: grid 1: unknown key 'tabel'"),
    "target's key": ("[protocols]", "[target]\nlabel = 3\n[protocols]", "target: unknown key 'label'; did you mean 'labels'?"),
    "target": ("[protocols]", '[target]\nvalidation = "some"\n[protocols]', "target.validation must be a number or \"auto\", not 'some'"),
    "set": ("[protocols]", "[[set]]\nbudget = 3\n[protocols]", "set needs when, as in when = "),
    "set's when": ("[protocols]", "[[set]]\nwhen = {mood = 3}\n[protocols]", "set: when: unknown key 'mood'"),
    "set's key": ("[protocols]", "[[set]]\nwhen = {seed = 1}\nmethodd = {}\n[protocols]", "set: unknown key 'methodd'; did you mean 'method'?"),
    "set's field": ("[protocols]", "[[set]]\nwhen = {seed = 1}\nmethod = {rl = 1}\n[protocols]", "has no field 'rl'"),
    "set's budget": ("[protocols]", '[[set]]\nwhen = {seed = 1}\nbudget = "much"\n[protocols]', "budget must be a number"),
    "set's data": ("[protocols]", "[[set]]\nwhen = {seed = 1}\ndata = {labelz = 3}\n[protocols]", "data: unknown key 'labelz'; did you mean 'labels'?"),
    "set's method": ("[protocols]", '[[set]]\nwhen = {seed = 1}\nmethod = "walker"\n[protocols]', "set: method must be a table of settings, not 'walker'"),
    "vary": ("[protocols]", "[[vary]]\nvalues = [1]\n[protocols]", 'vary needs a path ("method.lr") and values (a list)'),
    "vary's values": ("[protocols]", '[[vary]]\npath = "budget"\nvalues = 3\n[protocols]', "vary needs a path"),
    "vary's path": ("[protocols]", '[[vary]]\npath = "mood"\nvalues = [1]\n[protocols]', "path 'mood' names nothing: write e.g. \"method.lr\""),
    "vary's field": ("[protocols]", '[[vary]]\npath = "method.lrr"\nvalues = [1]\n[protocols]', "has no field 'lrr'; did you mean 'lr'?"),
    "vary's value": ("[protocols]", '[[vary]]\npath = "budget"\nvalues = ["a"]\n[protocols]', "budget must be a number"),
    "vary's data": ("[protocols]", '[[vary]]\npath = "data.label"\nvalues = [1]\n[protocols]', "data: unknown key 'label'; did you mean 'labels'?"),
    "vary's method": ("[protocols]", '[[vary]]\npath = "method.lr"\nvalues = [1]\nmethods = ["fats"]\n[protocols]', "vary: there is no method 'fats' in this suite; did you mean 'fast'?"),
    "vary's dataset": ("[protocols]", '[[vary]]\npath = "data.dataset"\nvalues = ["dats"]\n[protocols]', "there is no dataset 'dats'; did you mean 'dots'?"),
    "vary's backbone": ("[protocols]", '[[vary]]\npath = "backbone"\nvalues = [3]\n[protocols]', "backbone must be a name or a table with a name"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_file_key_and_what_to_write(file, name):
    old, new, line = BAD[name]
    assert old in GOOD
    with pytest.raises(BenchError) as told:
        planned(file(GOOD.replace(old, new, 1)))
    assert line in str(told.value)
    assert "\n" not in str(told.value)
    assert "mine.toml" in str(told.value)


def test_a_method_that_a_grid_names_must_exist(file):
    with pytest.raises(BenchError, match="grid 1: methods.slow: there is no method 'slow'"):
        load(file(GOOD + '\n[[grid]]\nmethods = ["slow"]\n'))


def test_bytes_that_are_no_text_are_told(home):
    (home / "mine.toml").write_bytes(b"about = '\xff'")
    with pytest.raises(BenchError, match="mine.toml: not valid TOML: .*utf-8"):
        load("mine.toml")


def test_a_missing_file_is_told(home):
    with pytest.raises(BenchError, match=r"^suite nowhere/mine\.toml: there is no such file$"):
        load("nowhere/mine.toml")
    (home / "folder.toml").mkdir()
    with pytest.raises(BenchError, match="there is no such file"):
        load("folder.toml")


def test_an_unknown_built_in_suite_is_suggested(home):
    with pytest.raises(
        BenchError, match=r"^there is no suite 'smok'; did you mean 'smoke'\?, or give the path"
    ):
        load("smok")
    assert locate("smoke").name == "smoke.toml"


def test_a_file_name_that_cannot_name_results_is_told(file):
    with pytest.raises(BenchError, match="a suite's file name may hold letters, digits"):
        load(file(GOOD, "my suite.toml"))


def methods(file, text, name="mine.toml"):
    (grid,) = load(file(text, name)).grids
    return grid["methods"]


def test_an_entry_like_another_takes_its_settings_on(file):
    found = methods(file, GOOD.replace("[protocols]", 'twin = {like = "fast", lr = 2}\n\n[protocols]'))
    assert found["twin"] == {"name": "walker", "lr": 2}
    assert found["fast"] == {"name": "walker", "lr": 1}


def test_an_entry_like_one_of_another_suite(file):
    other = file(GOOD, "other.toml")
    text = GOOD.replace('fast = {use = "walker", lr = 1}', f'fast = {{like = "{other}/fast"}}')
    assert methods(file, text)["fast"] == {"name": "walker", "lr": 1}
    # In the other suite, "fast" is like a sibling there, not like the "walker" here.
    file(GOOD.replace('use = "walker", lr = 1', 'like = "walker"'), "other.toml")
    assert methods(file, text.replace("lr = 0.1", "lr = 0.5"))["fast"] == {"name": "walker", "lr": 0.1}


@pytest.mark.parametrize("like", ['"fest"', '"fast"', '"twin"', "3", '"quick/fast"'])
def test_like_must_name_another_entry(file, like):
    text = GOOD.replace('use = "walker", lr = 1', f"like = {like}").replace(
        "[protocols]", 'twin = {like = "fast"}\n\n[protocols]'
    )
    with pytest.raises(BenchError, match=r"mine\.toml: methods\.(fast|twin): like must name another entry"):
        load(file(text))


def test_two_suites_like_each_other_are_refused(file):
    there, here = file(GOOD, "there.toml"), file(GOOD, "mine.toml")
    file(GOOD.replace('use = "walker", lr = 1', f'like = "{here}/fast"'), "there.toml")
    with pytest.raises(BenchError, match="fast: like must name another entry"):
        load(file(GOOD.replace('use = "walker", lr = 1', f'like = "{there}/fast"')))
