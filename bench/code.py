"""The digest of code: what a result depends on, and nothing that it does not.

A file counts by its syntax tree without docstrings, comments, annotations and positions, so that
reformatting or documenting a unit keeps its results; no more does it count what a unit says in
:data:`DOCUMENTS`. A unit counts with the unit files that it
imports (parts, loop, backbones, datasets); the harness core is covered by ``records.NUMERICS``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from bench.records import BenchError

# Unit code of ours; a third party's whole package counts as its unit code.
_OURS = ("methods", "protocols", "bench.backbones", "bench.data")

# Class-level texts that only say where a unit comes from, what pictures call things or what a rehearsal makes
# smaller, and change no number.
DOCUMENTS = ("class_names", "from_description", "shrinks")


@functools.cache
def _root(package: str) -> Path | None:
    """The folder of a top-level package, or its file; found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    return origin.parent if origin.name == "__init__.py" else origin


def module_file(module: str) -> Path:
    """The file of a module, found by its name alone."""
    found = _file(module)
    if found is None:
        raise BenchError(f"module {module!r} is not installed")
    return found


def _file(module: str) -> Path | None:
    top, *rest = module.split(".")
    root = _root(top)
    if root is None or (rest and root.is_file()):
        return None
    if not rest:
        return root / "__init__.py" if root.is_dir() else root
    path = root.joinpath(*rest)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _is_unit_code(module: str, own: str) -> bool:
    prefixes = _OURS if own in {"methods", "protocols", "bench"} else (*_OURS, own)
    return any(module == p or module.startswith(p + ".") for p in prefixes)


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


class _Strip(ast.NodeTransformer):
    """Drops docstrings, annotations and what documents a unit."""

    def _body(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        body = node.body  # type: ignore[attr-defined]  # only called for nodes that have one
        first = body[0] if body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        documents = isinstance(node.target, ast.Name) and node.target.id in DOCUMENTS
        if documents and ast.unparse(node.annotation).startswith("ClassVar"):
            return None
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node


def source_digest(source: str, name: str = "<text>") -> str:
    """SHA-256 hex of the stripped syntax tree."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise BenchError(f"{name}:{error.lineno}: {error.msg}") from error
    return hashlib.sha256(ast.dump(_Strip().visit(tree)).encode()).hexdigest()


@functools.cache
def _file_facts(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    source = path.read_text("utf-8")
    digest = source_digest(source, str(path))
    imports = tuple(sorted(set(_imports(ast.parse(source), module, path.name == "__init__.py"))))
    return digest, imports


@functools.cache
def closure(module: str) -> dict[str, str]:
    """The unit code that a module rests on, itself included: {module: digest of its file}."""
    own = module.split(".", maxsplit=1)[0]
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name], imports = _file_facts(path, name)
        waiting += [i for i in imports if _is_unit_code(i, own)]
    return dict(sorted(found.items()))


@functools.cache
def closure_digest(module: str) -> str:
    """One digest of :func:`closure`."""
    text = "\n".join(f"{name} {digest}" for name, digest in closure(module).items())
    return hashlib.sha256(text.encode()).hexdigest()
