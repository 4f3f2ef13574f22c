"""What is agreed about the shape of the code holds for every unit that the registry finds."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.code import module_file

UNITS = [(kind, name) for kind in ("method", "protocol") for name in sorted(registry.units(kind))]


def _code_lines(path):
    """Lines that hold code: docstrings, comments and blanks apart."""
    tree = ast.parse(path.read_text("utf-8"))
    dropped = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            first = node.body[0]
            dropped |= set(range(first.lineno, first.end_lineno + 1))
    lines = enumerate(path.read_text("utf-8").splitlines(), 1)
    return sum(
        1 for n, line in lines if n not in dropped and line.strip() and not line.lstrip().startswith("#")
    )


@pytest.mark.parametrize(("kind", "name"), UNITS)
def test_a_unit_is_one_file_and_cites_its_paper(kind, name):
    info = registry.units(kind)[name]
    assert info.module.endswith(f".{name}")
    assert len(registry.describe(info.module)) == 1
    assert info.paper
    assert info.about


@pytest.mark.parametrize("name", sorted(registry.units("method")))
def test_a_method_has_at_most_150_lines_of_code(name):
    assert _code_lines(module_file(registry.units("method")[name].module)) <= 150


@pytest.mark.parametrize(
    "module",
    ["bench", "bench.cli", "bench.planning.plan", "bench.reporting.tables", "bench.store", "bench.history"],
)
def test_planning_and_reporting_load_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_imports_go_one_way():
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
