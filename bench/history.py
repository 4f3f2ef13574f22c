"""Why a result is stale, and how results of older code are taken over when they are proven equal."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import artifacts, store
from bench.code import closure
from bench.launch import Places, Task, executor, tasks
from bench.planning.plan import Planned, remaining
from bench.records import EQUAL_COLUMNS, NUMERICS, BenchError, Cell, cell_from, plain, training_from
from bench.registry import find, suggest

# ---- why -----------------------------------------------------------------------------------------


def why(name: str, runs: Path) -> list[str]:
    """What makes a result stale, a line each; ``name`` is a training's folder or ``training/cell``."""
    folder = name.partition("/")[0]
    path = runs / folder / "spec.json"
    remedy = "only why asks for it; delete the training's folder and all of it is made again"
    try:
        spec = artifacts.read_json(path)
    except BenchError as error:
        raise BenchError(f"{path}: damaged: {remedy}") from error
    if spec is None:
        known = [p.name for p in runs.glob("*") if p.is_dir()]
        raise BenchError(
            f"{runs / folder}: there is no such training{suggest(folder, known) if known else ''}"
        )
    try:
        return _why(name, runs, spec)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{path}: no record of this version ({error!r}): {remedy}") from error


def _why(name: str, runs: Path, spec: dict[str, Any]) -> list[str]:
    folder, _, cell = name.partition("/")
    training = training_from(spec["training"])
    lines = [f"{module}: {change}" for module, change in _changes(spec, _modules_of(training))]
    if spec["code"]["numerics"] != str(NUMERICS):
        lines.append(f"the harness's NUMERICS went from {spec['code']['numerics']} to {NUMERICS}")
    if cell:
        lines += _why_cell(runs / folder, cell)
    if not lines and artifacts.training_id(training) != folder:
        lines.append(f"its name is now {artifacts.training_id(training)}: a unit's dependencies changed")
    return lines


def _modules_of(training: Any) -> dict[str, str]:
    units = [("method", training.method.name), ("dataset", training.data.dataset.name)]
    units += [("backbone", training.backbone.name)] if training.backbone.name != "none" else []
    found: dict[str, str] = closure(artifacts.WHITENING) if training.data.whitening else {}
    for kind, unit in units:
        found |= closure(find(kind, unit, "the record").module)
    return found


def _changes(spec: dict[str, Any], now: dict[str, str]) -> list[tuple[str, str]]:
    then = spec["modules"]
    return [
        (
            module,
            "changed" if module in then and module in now else "new" if module in now else "no longer used",
        )
        for module in sorted(then.keys() | now.keys())
        if then.get(module) != now.get(module)
    ]


def _why_cell(folder: Path, name: str) -> list[str]:
    outcome = artifacts.read_json(folder / "cells" / f"{name}.json")
    if outcome is None:
        known = [p.stem for p in (folder / "cells").glob("*.json")]
        raise BenchError(f"{folder}/cells/{name}.json: there is no such cell{suggest(name, known)}")
    now = artifacts.cell_code(cell_from(outcome["cell"]))
    return [f"{part} code changed" for part in now if now[part] != outcome["code"].get(part)]


# ---- adopt ---------------------------------------------------------------------------------------


def adopt(
    planned: Sequence[Planned], places: Places, count: int, seed: int, say: Callable[[str], None]
) -> int:
    """Re-run ``count`` stale trainings, of different methods first; where all are equal to the bit, take over the rest.

    Returns how many trainings were taken over.
    """
    todo = tasks(remaining(planned, artifacts.Done(places.runs)))
    stale = [(task, old) for task in todo if (old := _old(task, places.runs)) is not None]
    if not stale:
        say("nothing to adopt: no result of other code stands where this suite's would")
        return 0
    folders = dict(stale)
    picked = _sample(list(folders), count, seed)
    with _run_again(picked, places) as fresh:
        for task in picked:
            old = folders[task]
            _compare(task, old, fresh)
            say(f"equal: {old.name}")
    for task, old in stale:
        _take(task, old, places.runs, [folders[task].name for task in picked])
    return len(stale)


def _sample(stale: Sequence[Task], count: int, seed: int) -> list[Task]:
    """Random ones, of as many different units' code as there can be."""
    by_code: dict[str, list[Task]] = {}
    for task in random.Random(seed).sample(stale, len(stale)):  # noqa: S311 - a sample, no secret
        by_code.setdefault(artifacts.training_id(task.training)[-8:], []).append(task)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_code.values()))
    return [task for task in turns if task is not None][:count]


@contextlib.contextmanager
def _run_again(todo: Sequence[Task], places: Places, checkout: Path | None = None) -> Iterator[Path]:
    """Make trainings and their cells anew, by a checkout's code, in a folder that is gone afterwards."""
    try:
        places.runs.mkdir(parents=True, exist_ok=True)
        aside = tempfile.TemporaryDirectory(prefix="adopt", dir=places.runs)
    except OSError as error:
        raise BenchError(
            f"{places.runs}: cannot be written: {error.strerror}; choose another folder with --runs"
        ) from error
    with aside as scratch:
        fresh = replace(places, runs=Path(scratch) / "runs")
        for event in executor(None, todo, checkout).run(todo, fresh):
            for problem in event.problems:
                raise BenchError(f"re-running failed: {problem}")
        yield fresh.runs


def adopt_rows(
    suite: str,
    planned: Sequence[Planned],
    places: Places,
    count: int,
    seed: int,
    say: Callable[[str], None],
    checkout: Path | None = None,
) -> int:
    """:func:`adopt` for the suite's table, whoever made its rows: those of ``count`` trainings are made again.

    Where they are equal to the bit, the rows of all cells of which only the code differs get today's ids; the
    column ``commit`` goes on saying what made them. Returns how many trainings were taken over.

    :param checkout: of the code that made the rows. It is run here too, and equal to it is what counts: the
        last bits of the rows are those of the machine they were made on.
    """
    if checkout and not (checkout / "bench" / "serve.py").is_file():
        raise BenchError(
            f"--code {checkout}: is no checkout of this project (it has no bench/serve.py); make one with: "
            "git worktree add FOLDER COMMIT"
        )
    path = places.results / f"{suite}.csv"
    rows = store.measured(path)
    older = {_without_code(cell): cell for cell in rows}
    today = {artifacts.cell_id(one.cell): one.cell for one in planned}
    stale = {
        name: older[_without_code(name)]
        for name in today
        if name not in rows and _without_code(name) in older
    }
    todo = tasks([one for one in planned if artifacts.cell_id(one.cell) in stale])
    if not todo:
        say(f"nothing to adopt: {path} has no rows of other code where this suite's would stand")
        return 0
    picked = _sample(todo, count, seed)
    with contextlib.ExitStack() as folders:
        before = folders.enter_context(_run_again(picked, places, checkout)) if checkout else None
        olds = [_made_by(before, task, stale) for task in picked] if before else []
        fresh = folders.enter_context(_run_again(picked, places))
        for task, old in itertools.zip_longest(picked, olds):
            if old:
                _compare(task, old, fresh)
            else:
                _compare_rows([one for one in planned if one.cell in task.cells], rows, stale, fresh)
            say(f"equal: {artifacts.training_id(task.training)}")
    _rename(path, {old: today[name] for name, old in stale.items()})
    return len(todo)


def _made_by(runs: Path, task: Task, stale: Mapping[str, str]) -> Path:
    """The folder of what another checkout made, if that is what the rows are of."""
    folder = _old(task, runs)
    for cell in task.cells:
        old, wanted = folder and _old_cell(folder, cell), stale[artifacts.cell_id(cell)]
        made = f"{folder.name}/{old.stem}" if folder and old else "nothing"
        if made != wanted:
            raise BenchError(
                f"--code: made {made}, not {wanted}: give the code that made the rows (column commit)"
            )
    assert folder is not None
    return folder


def _compare_rows(
    planned: Sequence[Planned],
    rows: Mapping[str, list[dict[str, Any]]],
    stale: Mapping[str, str],
    fresh: Path,
) -> None:
    again = fresh.with_suffix(".csv")
    store.write_csv(again, store.collect("again", planned, fresh))
    made = store.recorded(again)
    for cell in sorted({artifacts.cell_id(one.cell) for one in planned}):
        if _told(made.get(cell, [])) != _told(rows[stale[cell]]):
            raise BenchError(
                f"{stale[cell]}: comes out differently today: nothing was adopted (on another machine the last "
                "bits differ: --code runs the code that made the rows here too)"
            )


def _without_code(cell: str) -> tuple[str, str]:
    """A cell's id without the marks of its training's and its own code."""
    training, _, name = cell.partition("/")
    return training.rpartition("-")[0], name.rpartition("-")[0]


def _told(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What must be equal of a cell's rows, in whatever order they stand."""
    return sorted(tuple(row[c] for c in ("label", "split", *EQUAL_COLUMNS)) for row in rows)


def _rename(path: Path, cells: Mapping[str, Cell]) -> None:
    """Give the rows of these cells, by their old ids, today's."""
    rows = store.in_order(path)
    store.write_csv(path, [row | (store.ids(cells[name]) if name in cells else {}) for name, row in rows])


def _old(task: Task, runs: Path) -> Path | None:
    """The folder with results of other code: an older one of the same settings, or this one's older cells."""
    own = artifacts.folder(runs, task.training).path
    for path in [own, *artifacts.siblings(runs, task.training)]:
        status = artifacts.read_json(path / "status.json") or {}
        if status.get("status") == "ok" and all(_old_cell(path, cell) for cell in task.cells):
            return path
    return None


def _old_cell(folder: Path, cell: Cell) -> Path | None:
    found = list((folder / "cells").glob(f"{artifacts.cell_stem(cell)}-????????.json"))
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def _compare(task: Task, old: Path, fresh: Path) -> None:
    for cell in task.cells:
        before = _old_cell(old, cell)
        after = artifacts.read_json(artifacts.folder(fresh, task.training).cell(artifacts.cell_name(cell)))
        if before is None or after is None or _numbers(artifacts.read_json(before)) != _numbers(after):
            raise BenchError(
                f"{old.name}: {artifacts.cell_stem(cell)} comes out differently today: nothing was adopted"
            )


def _numbers(outcome: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.get(c, "") for c in EQUAL_COLUMNS if c != "status") for row in outcome.get("rows", [])]


def _take(task: Task, old: Path, runs: Path, checked: list[str]) -> None:
    files = artifacts.folder(runs, task.training)
    if old != files.path:
        shutil.copytree(old, files.path, dirs_exist_ok=True)
        for cell in (files.path / "cells").glob("*.json"):
            cell.unlink()
    for cell_ in task.cells:
        source = _old_cell(old, cell_)
        if source is not None:
            outcome = artifacts.read_json(source)
            artifacts.write_json(
                files.cell(artifacts.cell_name(cell_)),
                {**outcome, "code": artifacts.cell_code(cell_), "adopted_from": f"{old.name}/{source.stem}"},
            )
    artifacts.merge_json(files.status, {"adopted_from": old.name, "adopted_checked": checked})
    spec = artifacts.read_json(files.spec)
    changes = {"code": artifacts.training_code(task.training), "modules": _modules_of(task.training)}
    artifacts.write_json(files.spec, {"training": plain(task.training), **(spec or {}), **changes})
