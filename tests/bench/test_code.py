"""The digest of code: moved by what can move a number, by nothing else."""

from __future__ import annotations

import textwrap

import pytest

from bench import code
from bench.records import BenchError

SOURCE = '''
"""About."""
import math

RATE: float = 0.1

def step(x: int, by: float = 2.0) -> float:
    """Doubles."""
    return math.sqrt(x) * by  # a comment

class Walker:
    """Walks."""
    pace: int = 3
    def __init__(self) -> None:
        self.far: int = 0
'''

HARMLESS = {
    "comment": ("# a comment", "# another"),
    "docstring": ('"""Doubles."""', '"""Twice as much."""'),
    "no docstring": ('    """Walks."""\n', ""),
    "module docstring": ('"""About."""', '"""Something else."""'),
    "annotation": ("x: int", "x: object"),
    "no annotation": ("def step(x: int, by: float = 2.0) -> float:", "def step(x, by=2.0):"),
    "field's type": ("pace: int = 3", "pace: float = 3"),
    "position": ("def step", "\n\n\ndef step"),
    "layout": ("by: float = 2.0) -> float:", "\n    by: float = 2.0,\n) -> float:"),
    "what a unit is made from": ("    pace", '    from_description: ClassVar[str] = "no code"\n    pace'),
    "what pictures call its classes": (
        "    pace",
        '    class_names: ClassVar[tuple[str, ...]] = ("a",)\n    pace',
    ),
    "quotes": ('"""Doubles."""', "'''Doubles.'''"),
}

HARMFUL = {
    "constant": ("RATE: float = 0.1", "RATE: float = 0.2"),
    "default": ("2.0", "3.0"),
    "operator": (" * by", " + by"),
    "name": ("math.sqrt", "math.exp"),
    "field": ("pace: int = 3", "pace: int = 4"),
    "type of a number": ("pace: int = 3", "pace: int = 3.0"),
    "order of statements": ("import math\n\nRATE: float = 0.1", "RATE: float = 0.1\nimport math"),
    "field of a document's name": ("    pace", '    from_description: str = "no code"\n    pace'),
    "names that are read by": ("    pace", '    words: ClassVar[tuple[str, ...]] = ("a",)\n    pace'),
    "new statement": ("self.far: int = 0", "self.far: int = 0\n        self.near = 1"),
}


def changed(old, new):
    assert old in SOURCE
    return code.source_digest(SOURCE.replace(old, new, 1))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_says_nothing_to_the_machine_does_not_count(name):
    assert changed(*HARMLESS[name]) == code.source_digest(SOURCE)


@pytest.mark.parametrize("name", HARMFUL)
def test_what_may_change_a_number_counts(name):
    assert changed(*HARMFUL[name]) != code.source_digest(SOURCE)


def test_a_function_of_a_docstring_alone_is_still_a_function():
    digests = {code.source_digest(text) for text in ('def f():\n "about"', "def f():\n pass")}
    assert len(digests) == 1
    assert code.source_digest("def f():\n return 'about'") not in digests


def test_a_syntax_error_is_one_line_with_file_and_line():
    with pytest.raises(BenchError, match=r"^walk\.py:2: .+") as told:
        code.source_digest("x = 1\ndef (", "walk.py")
    assert "\n" not in str(told.value)


# ---- what a unit rests on ------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A third party's package ``steps``; returns a function that writes a file of it and forgets the old one."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text):
        path = tmp_path / "steps" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(textwrap.dedent(text))
        for function in (code._root, code._file_facts, code.closure, code.closure_digest):
            function.cache_clear()

    write("__init__.py", "")
    write("unit.py", "import torch\nfrom bench.training import descend\nfrom steps.part import pace\nX = 1")
    write("part.py", "from .deep import floor\npace = 2")
    write("deep/__init__.py", "from . import ground\nfloor = 0")
    write("deep/ground.py", "depth = 9")
    write("stranger.py", "nobody = 'imports me'")
    yield write
    for function in (code._root, code._file_facts, code.closure, code.closure_digest):
        function.cache_clear()


def test_the_closure_follows_parts_and_only_unit_code(package):
    assert set(code.closure("steps.unit")) == {"steps.unit", "steps.part", "steps.deep", "steps.deep.ground"}


@pytest.mark.parametrize("name", ["unit.py", "part.py", "deep/__init__.py", "deep/ground.py"])
def test_a_change_of_any_part_counts(package, name):
    before = code.closure_digest("steps.unit")
    package(name, "from steps.part import pace\nfrom .deep import floor\nfrom . import ground\nnew = 1")
    assert code.closure_digest("steps.unit") != before


def test_a_file_that_is_not_imported_does_not_matter(package):
    before = code.closure_digest("steps.unit")
    package("stranger.py", "nobody = 'cares'")
    assert code.closure_digest("steps.unit") == before


def test_imports_of_every_form_are_followed(package):
    package(
        "unit.py",
        """
        import steps.part as p
        def late():
            from steps.deep.ground import depth
        if True:
            from steps import stranger
        """,
    )
    assert set(code.closure("steps.unit")) == {
        "steps",
        "steps.unit",
        "steps.part",
        "steps.deep",
        "steps.deep.ground",
        "steps.stranger",
    }


def test_a_built_in_method_rests_on_its_parts_and_never_on_the_core_or_a_protocol():
    found = set(code.closure("methods.rotation"))
    assert {"methods.rotation", "methods._loop", "methods.parts.heads"} <= found
    assert not [m for m in found if not m.startswith("methods")]
    assert "methods.mean_teacher" not in found
    assert not [m for m in code.closure("protocols.knn") if not m.startswith("protocols")]


def test_a_module_that_is_not_there_is_told():
    with pytest.raises(BenchError, match=r"module 'nowhere\.at_all' is not installed"):
        code.module_file("nowhere.at_all")
