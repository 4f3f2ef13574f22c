"""What planning knows of units: found by file or entry point, described once, told in one line what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import registry
from bench.records import BenchError, Unit
from bench.registry import Field, Info

INFO = Info(
    "method",
    "walk",
    "m.walk",
    "Walk",
    fields={
        "lr": Field("float", 0.1),
        "steps": Field("int", 5),
        "fast": Field("bool", default=False),
        "mode": Field("str", "up"),
        "widths": Field("tuple[int, ...]", (1, 2), sequence=True),
        "side": Field("int | None", None),
        "root": Field("str", required=True),
        "betas": Field("tuple[float, float]", (0.9, 0.99), sequence=True),
        "parts": Field("tuple[tuple[str, ...], ...]", (), sequence=True),
    },
)


def resolved(**settings):
    return dict(INFO.resolve({"root": "r", **settings}, "x.toml: methods.walk").settings)


def test_defaults_are_written_out():
    assert resolved() == {
        "lr": 0.1,
        "steps": 5,
        "fast": False,
        "mode": "up",
        "widths": (1, 2),
        "side": None,
        "root": "r",
        "betas": (0.9, 0.99),
        "parts": (),
    }
    assert resolved(betas=[1, 0.5], parts=[["a"], []])["parts"] == (("a",), ())
    assert resolved(lr=0.5, side=4)["side"] == 4


def test_a_whole_number_for_a_float_is_the_same_setting():
    assert INFO.resolve({"root": "r", "lr": 1}, "x") == INFO.resolve({"root": "r", "lr": 1.0}, "x")
    assert isinstance(resolved(lr=1)["lr"], float)
    assert isinstance(resolved(steps=1)["steps"], int)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"lrr": 1}, "x.toml: methods.walk: method 'walk' has no field 'lrr'; did you mean 'lr'?"),
        (
            {"zzz": 1},
            "x.toml: methods.walk: method 'walk' has no field 'zzz'; known are: betas, fast, lr, mode, parts, root, side, steps, widths",
        ),
        ({"lr": "much"}, "x.toml: methods.walk: walk.lr must be float, not 'much'"),
        ({"lr": True}, "x.toml: methods.walk: walk.lr must be float, not True"),
        ({"steps": 1.5}, "x.toml: methods.walk: walk.steps must be int, not 1.5"),
        ({"steps": [1, 2]}, "x.toml: methods.walk: walk.steps must be int, not the list [1, 2]"),
        ({"fast": 1}, "x.toml: methods.walk: walk.fast must be bool, not 1"),
        ({"mode": 3}, "x.toml: methods.walk: walk.mode must be str, not 3"),
        ({"widths": 3}, "x.toml: methods.walk: walk.widths must be a list (tuple[int, ...]), not 3"),
        ({"widths": ["a"]}, "x.toml: methods.walk: walk.widths must be tuple[int, ...], not the list ['a']"),
        (
            {"widths": [1, True]},
            "x.toml: methods.walk: walk.widths must be tuple[int, ...], not the list [1, True]",
        ),
        (
            {"betas": [0.5]},
            "x.toml: methods.walk: walk.betas must be tuple[float, float], not the list [0.5]",
        ),
        (
            {"parts": [["a"], [2]]},
            "x.toml: methods.walk: walk.parts must be tuple[tuple[str, ...], ...], not the list [['a'], [2]]",
        ),
        ({"lr": float("nan")}, "x.toml: methods.walk: walk.lr must be finite, not nan"),
        ({"side": "big"}, "x.toml: methods.walk: walk.side must be int | None, not 'big'"),
        ({"lr": {"a": 1}}, "x.toml: methods.walk: walk.lr must be float, not {'a': 1}"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_to_write(settings, line):
    with pytest.raises(BenchError) as told:
        resolved(**settings)
    assert str(told.value) == line


def test_a_setting_without_a_default_must_be_given():
    with pytest.raises(BenchError, match="method 'walk' needs a value for 'root'"):
        INFO.resolve({}, "x.toml")


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_unit_has_a_name_a_line_about_it_and_fields(home, kind):
    for name, info in registry.units(kind).items():
        assert info.name == name
        assert info.about, name
        assert "needs" in info.traits or kind in {"dataset", "backbone"}
        for key, field in info.fields.items():
            assert field.required or field.default is not None or "None" in field.type, f"{name}.{key}"


def test_a_name_that_is_nearly_right_is_suggested(home):
    with pytest.raises(
        BenchError, match="^suite x: there is no method 'rotatoin'; did you mean 'rotation'\\?$"
    ):
        registry.find("method", "rotatoin", "suite x")


# ---- third parties -------------------------------------------------------------------------------


def test_a_third_partys_units_are_found_by_entry_points(home):
    walker = registry.find("method", "walker", "test")
    assert walker.about == "Walks a few steps without labels."
    assert walker.paper == "ours"
    assert walker.fields["groups"].sequence
    assert registry.find("method", "namer", "test").traits["sees_labels"] is True
    assert registry.find("dataset", "dots", "test").traits["color"] is False
    assert registry.find("protocol", "votes", "test").traits["needs"]["head"] is True
    loaded = registry.load("method", walker.resolve({"lr": 1}, "test"))
    assert (loaded.lr, loaded.groups) == (1.0, (1, 2))


def test_a_third_partys_parts_are_part_of_its_digest(toys, forgetting):
    before = registry.code_digest("method", "walker"), registry.code_digest("method", "namer")
    (toys / "toy_units" / "part.py").write_text("STEP = 0.5\n")
    forgetting(files=True)
    after = registry.code_digest("method", "walker"), registry.code_digest("method", "namer")
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_changed_file_is_described_again(toys, forgetting):
    assert registry.find("method", "walker", "test").fields["lr"].default == 0.25
    (toys / "toy_units" / "part.py").write_text("STEP = 0.5\n")
    forgetting(files=True)
    assert registry.find("method", "walker", "test").fields["lr"].default == 0.5


def test_a_known_file_is_not_described_again(home, forgetting, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a child was started"))
    forgetting(files=True)
    assert "walker" in registry.units("method")


def test_what_the_contracts_say_of_all_units_is_part_of_the_key(home, forgetting, monkeypatch):
    asked = []
    monkeypatch.setattr(registry, "_TELLERS", ("bench.registry",))
    monkeypatch.setattr(
        registry, "_describe_in_child", lambda names: asked.extend(names) or {n: [] for n in names}
    )
    forgetting()
    registry.units("method")
    assert "methods.rotation" in asked


def test_a_damaged_description_is_made_again(home, forgetting):
    path = home / "cache" / "units.json"
    path.write_text(path.read_text()[:100])
    forgetting()
    assert "dots" in registry.units("dataset")
    assert "toy_units.dots" in json.loads(path.read_text())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_thing_at_all", "ModuleNotFoundError: No module named 'no_such_thing_at_all'"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first second"),
        ("import sys\nsys.exit('bye')", "SystemExit: bye"),
    ],
)
def test_a_broken_third_party_module_is_one_line(toys, forgetting, text, reason):
    (toys / "toy_units" / "walker.py").write_text(text)
    forgetting(files=True)
    with pytest.raises(BenchError) as told:
        registry.units("method")
    assert str(told.value) == f"cannot read the units: toy_units.walker cannot be imported: {reason}"


def test_a_third_party_module_that_does_not_parse_is_one_line(toys, forgetting):
    (toys / "toy_units" / "walker.py").write_text("def (")
    forgetting(files=True)
    with pytest.raises(BenchError, match=r"walker\.py:1: "):
        registry.units("method")


def test_an_entry_point_to_a_module_that_is_gone_is_one_line(toys, forgetting):
    (toys / "toy_units" / "walker.py").unlink()
    forgetting(files=True)
    with pytest.raises(
        BenchError, match=r"toy_units\.walker cannot be imported: ModuleNotFoundError"
    ) as told:
        registry.units("method")
    assert "\n" not in str(told.value)


def test_two_units_of_one_name_are_told(toys, forgetting):
    folder = toys / "toy_units"
    (folder / "other.py").write_text((folder / "dots.py").read_text())
    points = toys / "toy_units-1.0.dist-info" / "entry_points.txt"
    points.write_text(
        points.read_text().replace("dots = toy_units.dots", "dots = toy_units.dots\nmore = toy_units.other")
    )
    forgetting(files=True)
    with pytest.raises(
        BenchError, match=r"dataset 'dots' is defined by toy_units\.dots and toy_units\.other"
    ):
        registry.units("dataset")


def test_prints_of_a_module_do_not_spoil_its_description(toys, forgetting):
    path = toys / "toy_units" / "walker.py"
    path.write_text(path.read_text() + "\nimport atexit\nprint('hello')\natexit.register(print, 'bye')\n")
    forgetting(files=True)
    assert "walker" in registry.units("method")


def test_settings_that_a_unit_refuses_are_one_line(home):
    with pytest.raises(BenchError, match="side must be 16 or 32, not 8"):
        registry.load("dataset", Unit.of("digits", {"side": 8}))
    with pytest.raises(BenchError, match="method 'walker' refuses its settings"):
        registry.load("method", Unit.of("walker", {"nothing": 8}))


def test_describing_is_done_in_a_child(home):
    code = (
        "import sys; from bench import registry; registry.units('method'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- recipes and later fields --------------------------------------------------------------------


def test_a_recipe_is_settings_by_name_and_what_stands_beside_it_wins(tmp_path, monkeypatch):
    (tmp_path / "walk.toml").write_text("[slow]\nlr = 0.01\nwidths = [3]\n[fast]\nfast = true\n")
    monkeypatch.setattr(registry, "module_file", lambda _: tmp_path / "walk.py")
    assert INFO.takes("recipe")
    assert resolved(recipe="slow") == resolved(lr=0.01, widths=[3])
    assert resolved(recipe="slow", lr=1) == resolved(lr=1, widths=[3])
    with pytest.raises(BenchError) as told:
        resolved(recipe="slo")
    assert str(told.value) == "x.toml: methods.walk: walk has no recipe 'slo'; did you mean 'slow'?"
    monkeypatch.setattr(registry, "module_file", lambda _: tmp_path / "run.py")
    assert not INFO.takes("recipe")
    with pytest.raises(BenchError, match="walk has no recipe 'slow'"):
        resolved(recipe="slow")


def test_a_field_that_came_later_is_left_out_where_it_has_its_default():
    info = Info(
        "method",
        "walk",
        "m",
        "W",
        fields={"a": Field("int", 1), "b": Field("tuple[int, ...]", (1,), sequence=True, later=True)},
    )
    assert info.resolve({}, "x") == info.resolve({"b": [1]}, "x") == Unit.of("walk", {"a": 1})
    assert info.resolve({"b": [2]}, "x") == Unit.of("walk", {"a": 1, "b": (2,)})
