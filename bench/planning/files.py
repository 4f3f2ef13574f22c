"""Where suites lie, and the TOML in them."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from bench.records import BenchError
from bench.registry import suggest


def builtin() -> dict[str, Path]:
    """The suites that ship with the package, by name."""
    folder = Path(str(resources.files("bench") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def locate(name: str) -> Path:
    """The file of a suite: a path that exists, or a built-in name."""
    if name.endswith(".toml") or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise BenchError(f"suite {name}: there is no such file")
    known = builtin()
    if name not in known:
        raise BenchError(
            f"there is no suite {name!r}{suggest(name, known)}, or give the path of a .toml file"
        )
    return known[name]


def read(path: Path) -> dict[str, Any]:
    """What a suite's file says, as TOML means it."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise BenchError(f"{path}: cannot be read: {error.strerror}") from error
