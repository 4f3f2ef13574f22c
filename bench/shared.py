"""What the commands share: where things are, a suite with its cells, rows, tables and the exit code."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from bench.records import BenchError


def folder_option(option: str, variable: str, default: str, about: str) -> Callable[[Any], Any]:
    return click.option(
        option,
        envvar=variable,
        default=default,
        show_default=True,
        show_envvar=True,
        type=click.Path(path_type=Path),
        help=about,
    )


runs_option = folder_option("--runs", "BENCH_RUNS", "runs", "Where models and outcomes are kept.")
results_option = folder_option(
    "--results", "BENCH_RESULTS", "results", "Where tables and figures are written."
)
missing_option = click.option(
    "--missing",
    is_flag=True,
    help="Only cells that the suite's table in RESULTS has no rows of, wherever those were measured (same settings, same code).",
)


def part_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--methods``, ``--datasets``, ``--protocols`` and ``--set``, handed over as one ``part``."""

    @functools.wraps(command)
    def with_part(*args: Any, **given: Any) -> Any:
        from bench.planning.part import Part

        words = (given.pop(name) for name in ("methods", "datasets", "protocols", "settings"))
        return command(*args, part=Part.of(*words), **given)

    made = with_part
    about = "KEY=VALUE: only cells of which this holds, e.g. labels=250, method.lr=0.1, seed=0.  [repeatable]"
    made = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help=about)(made)
    for kind in ("protocols", "datasets", "methods"):
        about = f"Only these {kind} of the suite: a,b,c."
        made = click.option(f"--{kind}", multiple=True, metavar="NAMES", help=about)(made)
    return made


data_option = folder_option("--data", "BENCH_DATA", "data", "Where datasets lie.")


def places(runs: Path, results: Path, data: Path) -> Any:
    from bench.launch import Places
    from bench.registry import cache_folder

    return Places(runs, results, data, cache_folder())


def exit_code(rows: Sequence[dict[str, Any]]) -> int:
    """2 when something did not come out, as the table says; 0 otherwise."""
    return 2 if any(row["status"] not in {"ok", "skipped"} for row in rows) else 0


def load(suite: str) -> tuple[Any, list[Any]]:
    """A suite and its cells."""
    from bench.planning import plan
    from bench.planning import suite as suites

    loaded = suites.load(suite)
    return loaded, plan.cells(loaded)


def chosen(loaded: Any, planned: Sequence[Any], part: Any) -> list[Any]:
    """The cells of a part of a suite."""
    from bench.planning import part as parts

    return list(planned) if part.whole else parts.cells(planned, part, str(loaded.path))


def first_seeds(loaded: Any, planned: Sequence[Any], count: int | None) -> list[Any]:
    """The cells of the first seeds that a suite names, and those of methods without a seed; None: of all."""
    from bench.registry import find

    kept = list(dict.fromkeys(seed for grid in loaded.grids for seed in grid["seeds"]))[:count]

    def seedless(method: str) -> bool:
        return "seed" not in find("method", method, str(loaded.path)).traits["depends_on"]

    return [p for p in planned if p.cell.training.seed in kept or seedless(p.cell.training.method.name)]


def rows_of(loaded: Any, planned: Sequence[Any], runs: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a suite, and what is wrong with its files: a damaged one costs its own cells."""
    from bench import store

    try:
        return store.collect(loaded.name, planned, runs), []
    except BenchError:
        rows: list[dict[str, Any]] = []
        damage: dict[str, None] = {}
    for one in planned:
        try:
            rows += store.collect(loaded.name, [one], runs)
        except BenchError as error:
            damage[str(error)] = None
            for row in store.collect(loaded.name, [one], runs / "nothing here"):  # as if it were pending
                rows.append(
                    row if row["status"] == "skipped" else {**row, "status": "failed", "reason": str(error)}
                )
    return rows, list(damage)


def write_rows(
    loaded: Any, planned: Sequence[Any], places: Any, asked: Sequence[Any] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a suite to its table, where rows of cells that were not run here stay; and what is damaged.

    :param asked: of what else was planned, what is pending is left out.
    """
    from bench import artifacts, store

    rows, damage = rows_of(loaded, planned, places.runs)
    path = places.results / f"{loaded.name}.csv"
    rows = store.keeping(rows, path)
    aside, count = store.set_aside(path, planned, places.runs)
    if count:
        click.echo(f"{path}: {count} rows are of other settings or code: they are in {aside} now", err=True)
    if asked is not None:
        names = {artifacts.cell_id(one.cell) for one in asked}
        rows = [r for r in rows if r["status"] != "pending" or f"{r['training']}/{r['cell']}" in names]
    store.write_csv(path, rows)
    return rows, damage


def strangers(suite: str, table: Path, cells: Iterable[str], planned: Sequence[Any]) -> str:
    """One line where a table has cells that the suite has not (or no more), else nothing."""
    from bench import artifacts

    ids = {artifacts.cell_id(one.cell) for one in planned}
    cells = list(cells)
    count = sum(cell not in ids for cell in cells)
    if not count:
        return ""
    return (
        f"{table}: {count} of its {len(cells)} cells are of other settings or code than {suite}: bench run {suite} "
        f"measures what it lacks, bench adopt {suite} --rows takes over what only code made another"
    )


def unmeasured(loaded: Any, planned: Sequence[Any], results: Path) -> list[Any]:
    """The cells that the suite's table has no rows of."""
    from bench import artifacts, store

    found = store.measured(results / f"{loaded.name}.csv")
    return [one for one in planned if artifacts.cell_id(one.cell) not in found]


def tell(damage: Sequence[str]) -> int:
    """The exit code, and a line for each damaged file."""
    for line in damage:
        click.echo(f"bench: {line}", err=True)
    return 2 if damage else 0


def submitted(loaded: Any, planned: Sequence[Any], runs: Path) -> list[Any] | None:
    """The cells of a suite that were ever asked for by ``bench submit`` with this folder; nothing where it was not."""
    from bench import artifacts
    from bench.planning import part as parts

    kept = (artifacts.read_json(artifacts.asked_for(runs)) or {}).get(loaded.name)
    if kept is None:
        return None
    asked = [parts.Part.read(one) for one in kept]
    if any(one.whole for one in asked):
        return list(planned)
    found: dict[Any, None] = {}
    for one in asked:
        with contextlib.suppress(BenchError):  # of a suite that changed since
            found |= dict.fromkeys(parts.cells(planned, one, str(loaded.path)))
    return list(found)


def publish(loaded: Any, planned: Sequence[Any], runs: Path, results: Path) -> None:
    """What ``bench run`` writes at its end, of jobs that ended on a cluster, where nobody was there to write it.

    Whoever asks for the results first does it; where nothing changed since, nothing is done.
    """
    asked = submitted(loaded, planned, runs)
    if asked is None:
        return
    table = results / f"{loaded.name}.csv"
    try:
        before = table.read_bytes() if table.exists() else b""
        rows, _ = write_rows(loaded, planned, places(runs, results, Path()), asked)
        if table.read_bytes() != before or not (results / f"{loaded.name}.md").exists():
            write_report(loaded, rows, results)
    except (BenchError, OSError) as error:
        click.echo(f"not written: {error}", err=True)  # reading is not forbidden where writing is


def write_report(loaded: Any, rows: Sequence[dict[str, Any]], results: Path) -> list[Any]:
    """Tables to Markdown, figures beside them. Returns the tables."""
    from bench.reporting import plots, tables

    frame = tables.frame(rows)
    made = tables.of_suite(loaded, frame)
    tables.write_markdown(results / f"{loaded.name}.md", loaded, made)
    for path in plots.of_suite(loaded, frame, results):
        click.echo(f"figure: {path}", err=True)
    return made


def report(loaded: Any, rows: Sequence[dict[str, Any]], results: Path) -> None:
    """Tables to Markdown and to the terminal, figures beside them; who reads along may leave early."""
    from bench.reporting import tables

    made = write_report(loaded, rows, results)
    click.echo(f"rows: {results / loaded.name}.csv   tables: {results / loaded.name}.md", err=True)
    for table in made:
        click.echo(tables.terminal(table))
