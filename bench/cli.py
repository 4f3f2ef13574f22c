"""The command ``bench``."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench import children, rehearse, showing
from bench.records import BenchError
from bench.shared import chosen as _chosen
from bench.shared import data_option as _data
from bench.shared import exit_code as _exit_code
from bench.shared import first_seeds as _first_seeds
from bench.shared import load as _load
from bench.shared import missing_option as _missing
from bench.shared import part_options as _part_options
from bench.shared import places as _places
from bench.shared import report as _report
from bench.shared import results_option as _results
from bench.shared import runs_option as _runs
from bench.shared import tell as _tell
from bench.shared import unmeasured as _unmeasured
from bench.shared import write_rows as _write_rows
from bench.slurm import commands

_EPILOG = """\b
Start here:
  bench list                 the suites, methods, protocols, backbones and datasets
  bench run quick            a first comparison table in minutes
  bench table quick          the table again, from the rows that are there
  bench run my_suite.toml    your own grid (see README for the grammar)
"""


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
@click.option("--seeds", type=click.IntRange(min=1), help="Only the first N seeds of the suite.")
@_missing
@_part_options
@_runs
@_results
@_data
def run(
    suite: str,
    jobs: int | None,
    seeds: int | None,
    missing: bool,
    part: Any,
    runs: Path,
    results: Path,
    data: Path,
) -> int:
    """Run what is left of SUITE (a built-in name or a .toml path), then write its tables and figures."""
    from bench import artifacts, launch, progress
    from bench.planning import plan, refusals

    places = _places(runs, results, data)
    loaded, whole = _load(suite)
    planned = _first_seeds(loaded, _chosen(loaded, whole, part), seeds)
    wanted = _unmeasured(loaded, planned, results) if missing else planned
    left = plan.remaining(wanted, artifacts.Done(runs))
    refusals.check(left, str(loaded.path), data)
    todo = launch.tasks(left)
    csv = results / f"{loaded.name}.csv"
    if not todo and _is_final(csv, planned):
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
    except BaseException:
        with contextlib.suppress(BenchError):  # what stopped the run is what is told
            _write_rows(loaded, whole, places, planned)
        raise
    rows, damage = _write_rows(loaded, whole, places, planned)
    for problem in dict.fromkeys([*problems, *damage]):
        click.echo(f"failed: {problem}", err=True)
    _report(loaded, rows, results)
    return _exit_code(rows)


def _is_final(csv: Path, planned: Sequence[Any]) -> bool:
    """Is this the table of a run in which all of these cells came out? Else it is written anew."""
    from bench import artifacts, store

    with contextlib.suppress(OSError):
        if not re.search(rb",(failed|oom|timeout|killed|pending),", csv.read_bytes()):
            rows = store.recorded(csv)
            return all(
                any(row["label"] == p.label for row in rows.get(artifacts.cell_id(p.cell), ()))
                for p in planned
            )
    return False


def _measured(planned: Sequence[Any], todo: Sequence[Any], runs: Path) -> list[float]:
    """Seconds of this suite's finished trainings."""
    from bench import artifacts

    waiting = {task.training for task in todo}
    done = {p.cell.training for p in planned} - waiting
    found = []
    for training in done:
        with contextlib.suppress(BenchError):  # a damaged record is told with the rows
            status = artifacts.read_json(artifacts.folder(runs, training).status) or {}
            found.append(status.get("train_seconds"))
    return [float(seconds) for seconds in found if isinstance(seconds, (int, float)) and seconds]


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
    help="How many trainings to run again, of different methods first.",
)
@click.option("--seed", default=0, show_default=True, help="Which ones.")
@click.option(
    "--rows", is_flag=True, help="The rows of the suite's table in RESULTS, whose runs are not here."
)
@click.option(
    "--code",
    type=click.Path(path_type=Path),
    help="With --rows made on another machine, where the last bits differ: a checkout of the code that made "
    "them (git worktree add CODE COMMIT), which is run here too, to compare with.",
)
@_runs
@_results
@_data
def adopt(
    suite: str, check: int, seed: int, rows: bool, code: Path | None, runs: Path, results: Path, data: Path
) -> int:
    """Take over results that older code made, after a few of them were run again and came out equal to the bit."""
    from bench import history

    if code and not rows:
        raise BenchError(
            "--code goes with --rows: of runs that are here the older code's results are here too"
        )
    loaded, planned = _load(suite)
    places = _places(runs, results, data)
    if rows:
        taken = history.adopt_rows(loaded.name, planned, places, check, seed, click.echo, code)
    else:
        taken = history.adopt(planned, places, check, seed, click.echo)
    if taken:
        click.echo(f"{loaded.name}: adopted {taken} trainings")
    if taken and not rows:  # rows of a table are renamed where they stand, and no other one is touched
        return _tell(_write_rows(loaded, planned, places)[1])
    return 0


@cli.command(name="list")
@click.argument(
    "what", required=False, type=click.Choice(["suites", "methods", "protocols", "backbones", "datasets"])
)
@click.option("--fields", is_flag=True, help="With every setting and its default.")
def list_(what: str | None, fields: bool) -> int:
    """What there is: suites, methods, protocols, backbones, datasets."""
    from bench import registry
    from bench.planning.files import builtin
    from bench.planning.suite import load

    if what in (None, "suites"):
        click.secho("suites", bold=True)
        for name in builtin():
            click.echo(f"  {name:22} {load(name).about}")
    for kind in registry.KINDS:
        if what in (None, f"{kind}s"):
            click.secho(f"{kind}s", bold=True)
            for name, info in sorted(registry.units(kind).items()):
                said = info.traits.get("from_description")
                click.echo(f"  {name:22} {info.about}" + (f" [from description: {said}]" if said else ""))
                for key, field in info.fields.items() if fields else ():
                    click.echo(f"      {key} = {field.default!r}  ({field.type})")
                if fields and info.recipes:
                    click.echo(f"      recipe = one of {', '.join(info.recipes)}")
    return 0


@cli.group()
def data() -> None:
    """Check and get datasets."""


@data.command()
@click.argument("names", nargs=-1)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the dataset, as in a suite."
)
@click.option("--deep", is_flag=True, help="Decode every image.")
@_data
def check(names: tuple[str, ...], settings: tuple[str, ...], data: Path, *, deep: bool) -> int:
    """Are the files of datasets NAMES there, whole and as published? By default of all without required settings.

    A folder of your own: bench data check folder --set root=PATH
    """
    from bench import registry
    from bench.data import checking

    wrong, known = 0, registry.units("dataset")
    usual = [name for name in sorted(known) if not any(f.required for f in known[name].fields.values())]
    for name in names or usual:
        info = registry.find("dataset", name, "bench data check")
        given = _settings(settings)
        dataset = registry.load("dataset", info.resolve(given, "bench data check"))
        report = checking.check(dataset, data, deep=deep)
        wrong += bool(report.problems)
        told = [*report.counts, *(["a stand-in, not the published files"] if report.standin else [])]
        ok = [] if report.problems else ["ok"]
        lines = [", ".join([*ok, *told])] if ok or told else []
        click.echo("\n".join(f"{name}: {line}" for line in [*lines, *report.problems]))
    return 2 if wrong else 0


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` as TOML means it; a word needs no quotes here."""
    import tomllib

    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise BenchError(f"--set {pair!r}: write KEY=VALUE, as root=PATH")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


@data.command()
@click.argument("name")
@_data
def get(name: str, data: Path) -> int:
    """Download dataset NAME where its license and torchvision allow it."""
    from bench import registry

    info = registry.find("dataset", name, "bench data get")
    registry.load("dataset", info.resolve({}, "bench data get")).get(data)
    return 0


@data.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--images-per-class", type=int, help="Of the training set.  [default: enough for built-in suites]"
)
@click.option("--form", default="", help="Of CIFAR: python or binary.  [default: python]")
def standin(name: str, folder: Path, images_per_class: int | None, form: str) -> int:
    """Write a small, made-up set in dataset NAME's own form on disk below FOLDER, to be tried with --data FOLDER."""
    from bench.data import standins

    place = standins.write(name, folder, images_per_class=images_per_class, form=form)
    click.echo(f"{place}: a stand-in of {name}; read it with --data {folder}")
    return 0


@data.command()
@click.option("--voc", "folder", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--side", default=128, show_default=True, help="Pixels a side.")
@click.option("--objects", default=4, show_default=True, help="At most so many an image.")
@click.option("--train", default=400, show_default=True, help="Training images.")
@click.option("--test", default=200, show_default=True, help="Test images.")
@click.option(
    "--proposals",
    type=click.Choice(["selective_search", "windows"]),
    help="Also write proposals.npz, which the dataset's setting ``proposals`` reads.",
)
def scenes(folder: Path, side: int, objects: int, train: int, test: int, proposals: str | None) -> int:
    """Write scenes in VOC's own form: JPEGImages, Annotations, ImageSets, SegmentationClass."""
    from bench.data import _write_voc
    from bench.data.scenes import Scenes

    rendered = Scenes(side=side, train=train, test=test, objects=objects)
    count = _write_voc.write(rendered, folder, proposals or "")
    more = f", proposals = .../{_write_voc.PROPOSALS}" if proposals else ""
    click.echo(
        f'{folder}: {count} images; read them with dataset = {{name = "voc_scenes", folder = ...{more}}}'
    )
    return 0


@data.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--order", default="xyxy", show_default=True, help="Of a box's numbers: xyxy, or yxyx.")
@click.option("--base", default=0, show_default=True, help="The first pixel's number: 0, or 1 (MATLAB).")
@click.option("--ids", type=click.Path(path_type=Path), help="A list of image ids, where SOURCE holds none.")
def convert(source: Path, target: Path, order: str, base: int, ids: Path | None) -> int:
    """Proposals in SOURCE (.mat, .npz, .json, .pkl) to TARGET (.npz), which a dataset's ``proposals`` reads."""
    from bench.data import proposals

    if target.suffix != ".npz":
        raise BenchError(f"{target}: the converted file must end in .npz")
    found = proposals.convert(source, order, base, ids)
    proposals.write(target, found)
    click.echo(f"{target}: {proposals.summary(found)}")
    return 0


for command in (*showing.COMMANDS, *commands.COMMANDS, *rehearse.COMMANDS):
    cli.add_command(command)


def main() -> None:
    """Entry point: bad input is one line and exit code 2."""
    os.environ.update(children.OFF_SCREEN)
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
    except OSError as error:
        click.echo(f"bench: {error.filename or 'a file'}: {error.strerror or error}", err=True)
        code = 2
    sys.exit(code)
