"""What units say of their own settings, asked before anything runs: a wrong word costs no training.

Planning checks names and types; whether ``augment = "flp"`` is a word that a unit knows, the unit itself says
where it is made. That imports it (and so torch): it is done in a child process, once for each combination of
settings and code.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench import children, registry
from bench.planning.plan import Planned
from bench.records import Aim, BenchError, Cell, Data, Training, Unit, freeze

_Ask = tuple[str, Unit]  # kind, unit


def check(planned: Iterable[Planned], where: str, root: Path | None = None) -> None:
    """Make every unit of these cells once, and ask datasets whose files say their classes for them.

    :param where: the suite's file, which begins the error line.
    :param root: where datasets lie; None: files are not looked at.
    :raises BenchError: a unit refuses its settings: in its own words, as ``linear_probe.augment is 'flp'; write ...``.
    """
    planned = list(planned)
    _made(planned, where)
    parts = {p.cell.training.data for p in planned} | {p.cell.aim for p in planned}
    for part in sorted(parts, key=repr):
        _check_classes(part, where, root)


def _check_classes(part: Data | Aim, where: str, root: Path | None) -> None:
    """Classes that a suite names must be there."""
    try:
        count = registry.facts(part.dataset, root).classes
    except BenchError as error:
        raise BenchError(f"{where}: {error}") from error
    keys = ("labeled_classes", "unlabeled_classes") if isinstance(part, Data) else ("classes",)
    for key in keys:
        wrong = [c for c in getattr(part, key) if not 0 <= c < (count or math.inf)]
        if wrong and count:
            told = f"{part.dataset.name} has {count} classes: write 0 to {count - 1}"
            raise BenchError(f"{where}: {key}: there is no class {wrong[0]}; {told}")


def _made(planned: Sequence[Planned], where: str) -> None:
    asked = {_key(*one): one for one in dict.fromkeys(_units(p.cell for p in planned))}
    path = registry.cache_folder() / "accepted.json"
    known = _accepted(path)
    new = {key: one for key, one in asked.items() if key not in known}
    if not new:
        return
    answers = _answers([*new.values()])
    if answers is None:
        return
    for answer in answers:
        if answer:
            raise BenchError(f"{where}: {answer}")
    registry.keep(path, [*known, *new])


def _units(cells: Iterable[Cell]) -> Iterator[_Ask]:
    """The units that have something to say: those that check themselves where they are made."""
    for cell in cells:
        asked = [("protocol", cell.protocol), ("dataset", cell.aim.dataset), *_made_by(cell.training)]
        for kind, unit in asked:
            if unit.name != "none" and registry.find(kind, unit.name, "the plan").traits["checks"]:
                yield kind, unit


def _made_by(training: Training) -> Iterator[_Ask]:
    yield from (
        ("method", training.method),
        ("backbone", training.backbone),
        ("dataset", training.data.dataset),
    )
    if training.init:
        yield from _made_by(training.init)


def _key(kind: str, unit: Unit) -> str:
    told = json.dumps([kind, unit.name, unit.settings, registry.code_digest(kind, unit.name)])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _answers(units: Sequence[_Ask]) -> list[str] | None:
    """What each unit objects to, or nothing; ``None`` where it cannot be asked: a login node without torch."""
    if "torch" in sys.modules:  # what takes seconds is here already
        return [_objection(kind, unit) for kind, unit in units]
    done = subprocess.run(  # noqa: S603 - our own words
        children.python("bench.planning.refusals"),
        input=json.dumps([[kind, unit.name, unit.all_settings] for kind, unit in units]),
        capture_output=True,
        text=True,
        check=False,
        env=children.environment(),
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        if "No module named 'torch'" in lines[-1]:
            return None  # a wrong word costs its training then, with its reason
        raise BenchError(f"cannot make the units: {lines[-1]}")
    answers: list[str] = json.loads(done.stdout)
    return answers


def _objection(kind: str, unit: Unit) -> str:
    try:
        registry.load(kind, unit)
    except BenchError as error:
        return str(error)
    return ""


def _accepted(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _main() -> int:
    asked = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # what modules print is not the answer
    answers = [
        _objection(kind, Unit.of(name, {k: freeze(v) for k, v in settings.items()}))
        for kind, name, settings in asked
    ]
    out.write(json.dumps(answers) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
