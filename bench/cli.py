"""The command ``bench``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from bench.records import BenchError

_EPILOG = """\b
Start here:
  bench list                 the suites, methods, protocols, backbones and datasets
  bench run quick            a first comparison table in minutes
  bench table quick          the table again, from the rows that are there
  bench run my_suite.toml    your own grid (see README for the grammar)
"""


def _folder(option: str, variable: str, default: str, about: str) -> Callable[[Any], Any]:
    return click.option(
        option,
        envvar=variable,
        default=default,
        show_default=True,
        show_envvar=True,
        type=click.Path(path_type=Path),
        help=about,
    )


_runs = _folder("--runs", "BENCH_RUNS", "runs", "Where models and outcomes are kept.")
_results = _folder("--results", "BENCH_RESULTS", "results", "Where tables and figures are written.")
_data = _folder("--data", "BENCH_DATA", "data", "Where datasets lie.")


def _places(runs: Path, results: Path, data: Path) -> Any:
    from bench.launch import Places
    from bench.registry import cache_folder

    return Places(runs, results, data, cache_folder())


@click.group(
    epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="representation-bench", prog_name="bench")
def cli() -> None:
    """Compare self-supervised and semi-supervised methods the way the field does.

    A suite (TOML) is a grid of methods, backbones, data and protocols. Running it makes the models,
    judges them and writes tidy tables; running it again does what is left.
    """


@cli.command()
@click.argument("suite")
@click.option(
    "--jobs", type=int, help="Worker processes; 0: in this process.  [default: as many as the cores carry]"
)
@click.option("--seeds", type=int, help="Only the first N seeds of the suite.")
@_runs
@_results
@_data
def run(suite: str, jobs: int | None, seeds: int | None, runs: Path, results: Path, data: Path) -> int:
    """Run what is left of SUITE (a built-in name or a .toml path), then write its tables and figures."""
    from bench import artifacts, launch, plan, progress

    places = _places(runs, results, data)
    loaded, planned = _load(suite, seeds)
    todo = launch.tasks(plan.remaining(planned, artifacts.Done(runs)))
    csv = results / f"{loaded.name}.csv"
    if not todo and csv.exists():
        click.echo(
            f"{loaded.name}: nothing to do, all {len(planned)} cells are done; see {csv} or: bench table {suite}"
        )
        return 0
    chosen = launch.executor(jobs, todo)
    workers = getattr(chosen, "count", 1)
    click.echo(
        progress.forecast(loaded, todo, len(planned), _measured(planned, todo, runs), workers), err=True
    )
    problems: list[str] = []
    try:
        if todo:
            problems = progress.watched(chosen.run(todo, places), todo, workers)
    finally:
        rows = _write_rows(loaded, planned, places)
    _report(loaded, rows, results)
    for problem in problems:
        click.echo(f"failed: {problem}", err=True)
    return _exit_code(rows)


def _exit_code(rows: Sequence[dict[str, Any]]) -> int:
    """2 when something did not come out, as the table says; 0 otherwise."""
    return 2 if any(row["status"] not in {"ok", "skipped"} for row in rows) else 0


def _load(suite: str, seeds: int | None = None) -> tuple[Any, list[Any]]:
    from bench import plan
    from bench.suite import load

    loaded = load(suite)
    planned = plan.cells(loaded)
    if seeds is not None:
        kept = sorted({p.cell.training.seed for p in planned})[:seeds]
        planned = [p for p in planned if p.cell.training.seed in kept]
    return loaded, planned


def _measured(planned: Sequence[Any], todo: Sequence[Any], runs: Path) -> list[float]:
    """Seconds of this suite's finished trainings."""
    from bench import artifacts

    waiting = {task.training for task in todo}
    done = {p.cell.training for p in planned} - waiting
    found = [(artifacts.read_json(artifacts.folder(runs, t).status) or {}).get("train_seconds") for t in done]
    return [float(seconds) for seconds in found if seconds]


def _write_rows(loaded: Any, planned: Sequence[Any], places: Any) -> list[dict[str, Any]]:
    from bench import store

    rows = store.collect(loaded.name, planned, places.runs)
    store.write_csv(places.results / f"{loaded.name}.csv", rows)
    return rows


def _report(loaded: Any, rows: Sequence[dict[str, Any]], results: Path) -> None:
    """Tables to the terminal and to Markdown, figures beside them."""
    from bench import plots, tables

    frame = tables.frame(rows)
    made = tables.of_suite(loaded, frame)
    for table in made:
        click.echo(tables.terminal(table))
    tables.write_markdown(results / f"{loaded.name}.md", loaded, made)
    for path in plots.of_suite(loaded, frame, results):
        click.echo(f"figure: {path}", err=True)
    click.echo(f"rows: {results / loaded.name}.csv   tables: {results / loaded.name}.md", err=True)


@cli.command()
@click.argument("suite")
@click.option("--cells", is_flag=True, help="A line a cell, with its id for `bench why`.")
@_runs
def status(suite: str, cells: bool, runs: Path) -> int:
    """How far SUITE is: done, failed with reasons, skipped, pending."""
    from collections import Counter

    from bench import store

    loaded, planned = _load(suite)
    by_cell: dict[str, dict[str, Any]] = {}
    for row in store.collect(loaded.name, planned, runs):
        by_cell[f"{row['training']}/{row['cell']}"] = row
    for name, row in by_cell.items():
        if cells or row["status"] in {"failed", "oom", "timeout", "killed"}:
            click.echo(f"{row['status']:8} {name}  {row['reason']}".rstrip())
    counts = Counter(row["status"] for row in by_cell.values())
    click.echo(f"{loaded.name}: " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
    return 0


@cli.command()
@click.argument("cell")
@_runs
def why(cell: str, runs: Path) -> int:
    """What makes CELL (a name out of `bench status --cells`) stale."""
    from bench import history

    lines = history.why(cell, runs)
    click.echo("\n".join(lines) if lines else f"{cell}: up to date")
    return 0


@cli.command()
@click.argument("suite")
@click.option(
    "--check",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="How many trainings to run again.",
)
@click.option("--seed", default=0, show_default=True, help="Which ones.")
@_runs
@_results
@_data
def adopt(suite: str, check: int, seed: int, runs: Path, results: Path, data: Path) -> int:
    """Take over results that older code made, after a few of them were run again and came out equal to the bit."""
    from bench import history

    loaded, planned = _load(suite)
    places = _places(runs, results, data)
    taken = history.adopt(planned, places, check, seed, click.echo)
    if taken:
        click.echo(f"{loaded.name}: adopted {taken} trainings")
        _write_rows(loaded, planned, places)
    return 0


@cli.command()
@click.argument("suite")
@click.option("--name", help="Only the table of this name.")
@click.option(
    "--format", "form", type=click.Choice(["terminal", "markdown", "latex", "csv"]), default="terminal"
)
@_runs
@_results
def table(suite: str, name: str | None, form: str, runs: Path, results: Path) -> int:
    """The comparison tables of SUITE, from whatever rows are there."""
    from bench import tables

    loaded, frame = _rows_of(suite, runs, results)
    click.echo(
        "\n".join(getattr(tables, form)(one) for one in tables.of_suite(loaded, frame, name)).rstrip("\n")
    )
    return 0


@cli.command()
@click.argument("suite")
@click.option("--name", help="Only the figure of this name.")
@click.option("--format", "form", type=click.Choice(["png", "pdf", "svg"]), default="png")
@_runs
@_results
def plot(suite: str, name: str | None, form: str, runs: Path, results: Path) -> int:
    """The figures of SUITE, from whatever rows are there."""
    from bench import plots

    loaded, frame = _rows_of(suite, runs, results)
    for path in plots.of_suite(loaded, frame, results, name, form):
        click.echo(path)
    return 0


def _rows_of(suite: str, runs: Path, results: Path) -> tuple[Any, Any]:
    """A suite and its rows: from the runs where they are here, else from the result table."""
    from bench import store, tables

    loaded, planned = _load(suite)
    csv = results / f"{loaded.name}.csv"
    if not runs.is_dir() and csv.exists():
        return loaded, tables.read(csv)
    return loaded, tables.frame(store.collect(loaded.name, planned, runs))


@cli.command(name="list")
@click.argument(
    "what", required=False, type=click.Choice(["suites", "methods", "protocols", "backbones", "datasets"])
)
@click.option("--fields", is_flag=True, help="With every setting and its default.")
def list_(what: str | None, fields: bool) -> int:
    """What there is: suites, methods, protocols, backbones, datasets."""
    from bench import registry
    from bench.suite import builtin, load

    if what in (None, "suites"):
        click.secho("suites", bold=True)
        for name in builtin():
            click.echo(f"  {name:22} {load(name).about}")
    for kind in registry.KINDS:
        if what in (None, f"{kind}s"):
            click.secho(f"{kind}s", bold=True)
            for name, info in sorted(registry.units(kind).items()):
                click.echo(f"  {name:22} {info.about}")
                for key, field in info.fields.items() if fields else ():
                    click.echo(f"      {key} = {field.default!r}  ({field.type})")
    return 0


@cli.group()
def data() -> None:
    """Check and get datasets."""


@data.command()
@click.argument("names", nargs=-1)
@_data
def check(names: tuple[str, ...], data: Path) -> int:
    """Are the files of datasets NAMES (all of them by default) there, whole and as published?"""
    from bench import registry

    wrong = 0
    for name in names or sorted(registry.units("dataset")):
        info = registry.find("dataset", name, "bench data check")
        dataset = registry.load("dataset", info.resolve({}, "bench data check"))
        problems = dataset.check(data)
        wrong += bool(problems)
        click.echo(f"{name}: {'; '.join(problems) or 'ok'}")
    return 2 if wrong else 0


@data.command()
@click.argument("name")
@_data
def get(name: str, data: Path) -> int:
    """Download dataset NAME where its license and torchvision allow it."""
    from bench import registry

    info = registry.find("dataset", name, "bench data get")
    registry.load("dataset", info.resolve({}, "bench data get")).get(data)
    return 0


def main() -> None:
    """Entry point: bad input is one line and exit code 2."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except BenchError as error:
        click.echo(f"bench: {error}", err=True)
        code = 2
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("bench: interrupted; what is done is kept, run the same command to go on", err=True)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    sys.exit(code)
