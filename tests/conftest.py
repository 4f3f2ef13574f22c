"""What every test may ask for: a home of its own, third-party units that are fast, the command."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOYS = Path(__file__).parent / "thirdparty"
_FOLDERS = {"BENCH_CACHE": "cache", "BENCH_RUNS": "runs", "BENCH_RESULTS": "results", "BENCH_DATA": "data"}


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


def forget(*, files: bool = False) -> None:
    """Empty the caches of what is known of units; with ``files``, of their text too."""
    from bench import artifacts, code, registry

    known = [registry.modules, registry.units, code._root, code.closure, code.closure_digest]
    known += [
        artifacts.training_settings,
        artifacts._code_mark,
        artifacts.training_stem,
        artifacts.training_id,
    ]
    for function in [*known, *([code._file_facts] if files else [])]:
        function.cache_clear()


@contextlib.contextmanager
def _on_path(folder: Path, cache: Path) -> Iterator[None]:
    """Third-party units below ``folder`` are installed, for this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(cache))
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
        )
        patch.setattr(sys, "path", [str(folder), *sys.path])
        importlib.invalidate_caches()
        forget()
        yield
        for name in [n for n in sys.modules if n.partition(".")[0] == "toy_units"]:
            del sys.modules[name]
    importlib.invalidate_caches()
    forget()


@pytest.fixture(scope="session")
def described(request) -> Path:
    """The description of all units, toys included: made once, kept between test runs, told by digest."""
    from bench import registry

    cache = request.config.cache.mkdir("bench")
    with _on_path(TOYS, cache):
        for kind in registry.KINDS:
            registry.units(kind)
    return cache / "units.json"


@pytest.fixture
def home(tmp_path, monkeypatch, described) -> Path:
    """A folder with runs, results, data and cache of its own; the toys are installed; it is the working folder."""
    for variable, name in _FOLDERS.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv("BENCH_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    shutil.copy(described, tmp_path / "cache" / "units.json")
    with _on_path(TOYS, tmp_path / "cache"):
        yield tmp_path


@pytest.fixture
def toys(home, monkeypatch) -> Path:
    """A copy of the toys that a test may edit; after an edit: ``forget(files=True)``."""
    folder = home / "thirdparty"
    shutil.copytree(TOYS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    with _on_path(folder, home / "cache"):
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # an edit within a second would not be seen
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        yield folder


@pytest.fixture
def forgetting() -> Callable[..., None]:
    return forget


@pytest.fixture
def suite(home) -> Callable[..., Path]:
    """Writes a suite of toys, part by part."""

    def write(
        tables: str = "[methods]\nwalker = {}",
        *,
        top: str = "seeds = 1",
        data: str = 'dataset = "dots"',
        protocols: str = "norms = {}",
        name: str = "toy",
    ) -> Path:
        axes = {"budget": "48", "backbone": '"dot_net"'}
        axes |= {k: v for k, _, v in (line.partition(" = ") for line in top.splitlines()) if k}
        head = "\n".join(f"{key} = {value}" for key, value in axes.items())
        path = home / f"{name}.toml"
        path.write_text(f"{head}\n[data]\n{data}\n[protocols]\n{protocols}\n{tables}\n")
        return path

    return write


@pytest.fixture
def bench(home, monkeypatch, capsys) -> Callable[..., Result]:
    """The command, in this process."""
    import torch

    from bench.cli import main
    from bench.worker import evaluation

    threads = torch.get_num_threads()

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Result(int(ended.value.code or 0), said.out, said.err)

    yield run
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    evaluation.target_of.cache_clear()


@pytest.fixture
def bench_process(home) -> Callable[..., Result]:
    """The command, in a process of its own."""

    def run(*arguments: object, **env: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "bench", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **env},
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
