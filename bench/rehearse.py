"""The command ``bench rehearse``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bench.records import BenchError
from bench.shared import data_option, load, places, runs_option

_EPILOG = """\b
What it changes is printed in the last column, all else is as in the run:
  images, steps      few of each split, the first steps of each descent and its last one
  batches of 8       unless --full; memory at the true batch is then an estimate from two batches
  labels, clusters   what cannot be more than there are images, as each unit declares
Files that are there are read; of sets of which no file is there, stand-ins are written.
Exit code 2 when anything would fail.

\b
  bench rehearse imagenet_linear --data /disk/data     before a thousand GPU hours
  bench rehearse my_suite.toml --full                  true batches, and the hours it will take here
"""


@click.command(epilog=_EPILOG)
@click.argument("suite")
@click.option(
    "--full/--shrunk",
    default=None,
    help="True batches and 20 steps, or batches of 8.  [default: full where this machine has what the suite asks for]",
)
@click.option("--jobs", type=int, help="As of bench run.  [default: as many as the cores carry]")
@click.option("--submit", is_flag=True, help="As one SLURM job of the resources that the suite asks for.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="With --submit: this machine's own [slurm] keys."
)
@runs_option
@data_option
def rehearse(
    suite: str, full: bool | None, jobs: int | None, submit: bool, config: Path | None, runs: Path, data: Path
) -> int:
    """Run every distinct combination of SUITE to its end on few images, and say what would fail.

    Each method, backbone, dataset, protocol and setting goes once through loaders, executor and protocols as a run
    does, into RUNS/rehearsal/SUITE; results are not touched.
    """
    import shutil

    from bench import launch, rehearsal
    from bench.planning import refusals

    if submit:
        return _submit(suite, full, config, runs, data)
    loaded, planned = load(suite)
    refusals.check((p for p in planned if not p.cell.skip), str(loaded.path))
    true = rehearsal.fits(loaded.slurm) if full is None else full
    folder = rehearsal.fresh(runs / "rehearsal" / loaded.name)
    how = _how(planned) if true else rehearsal.SHRUNK
    combined = rehearsal.combinations(planned, 0 if true else rehearsal.BATCH, how.images)
    root, made_up = rehearsal.stood_in(combined, data, folder / "data")
    click.echo(
        f"{loaded.name}: {len(combined)} combinations of {len(planned)} cells, {'full' if true else 'shrunk'}: {how.images} images"
        f" a split, {how.steps} steps" + (f"; stand-ins: {', '.join(made_up)}" if made_up else ""),
        err=True,
    )
    half = {} if true else _half(planned, jobs, folder / "half", root)
    where = places(folder / "runs", folder, root)
    where = launch.Places(where.runs, where.results, where.data, folder / "cache")
    executor = launch.executor(jobs, _tasks(combined))
    found = []
    for one, result in rehearsal.run(combined, executor, where, how):
        found.append((one, result))
        click.echo(_line(one, result))
    for spent in ("half", "cache", "data"):
        shutil.rmtree(folder / spent, ignore_errors=True)
    wrong = sum(bool(result.problem) for _, result in found) + len(combined) - len(found)
    wrong += _whole(loaded, planned, found, half, folder, true=true, made_up=bool(made_up))
    click.echo(f"{loaded.name}: {f'{wrong} would fail' if wrong else f'all {len(combined)} combinations ok'}")
    return 2 if wrong else 0


def _how(planned: Sequence[Any]) -> Any:
    from bench import rehearsal
    from bench.records import Rehearsal

    return Rehearsal(images=4 * rehearsal.largest_batch(planned), steps=rehearsal.FULL_STEPS)


def _tasks(combined: Sequence[Any]) -> list[Any]:
    from bench.launch import Task

    return [Task(one.cell.training, (one.cell,), one.first.label) for one in combined]


def _half(planned: Sequence[Any], jobs: int | None, folder: Path, data: Path) -> Mapping[str, Any]:
    """The same with half of everything: two sizes tell what an image of a batch costs."""
    from bench import launch, rehearsal

    combined = rehearsal.combinations(planned, rehearsal.BATCH // 2, rehearsal.HALF.images)
    once = list({one.cell.training: one for one in combined}.values())
    executor = launch.executor(jobs, _tasks(once))
    where = launch.Places(folder / "runs", folder, data, folder / "cache")
    trained = [rehearsal.Combination(o.first, o.cell, o.shrunk) for o in once]
    found = {
        one.cell.training: result for one, result in rehearsal.run(trained, executor, where, rehearsal.HALF)
    }
    return {one.name: found[one.cell.training] for one in combined if one.cell.training in found}


def _line(one: Any, result: Any) -> str:
    state = result.problem or (f"skipped: {result.skipped}" if result.skipped else "ok")
    pace = f"{result.seconds:.2f} s/step" if result.seconds else ""
    memory = f"{max(result.memory_mb, result.device_mb)} MB"
    return f"{one.name}: {state}; {pace or 'no steps'}; {memory}; {', '.join(one.shrunk) or 'nothing shrunk'}"


def _whole(
    loaded: Any,
    planned: Sequence[Any],
    found: Sequence[Any],
    half: Mapping[str, Any],
    folder: Path,
    *,
    true: bool,
    made_up: bool,
) -> int:
    """What the suite will need, a line each; how much of it does not fit."""
    import shutil

    from bench import rehearsal

    needed = rehearsal.need(planned, found, half)
    free, here = shutil.disk_usage(folder).free, rehearsal.here_mb()
    disk = needed.model_bytes + needed.checkpoint_bytes
    guess = "" if true else " (an estimate from two batch sizes)"
    click.echo(
        f"disk: models and snapshots {_size(needed.model_bytes)}, a checkpoint of {_size(needed.checkpoint_bytes)} for each"
        f" training under way; {_size(free)} are free here"
    )
    click.echo(f"memory: {_size(needed.memory_mb * 2**20)}{guess}; {_size(here * 2**20)} are here")
    if true:
        click.echo(
            f"time: about {rehearsal.hours(planned, found):.1f} hours of training, from this device alone"
        )
    over = []
    if disk > free:
        over.append(f"disk: {_size(disk)} do not fit into {_size(free)}")
    if needed.memory_mb > here and (true or not loaded.slurm):
        over.append(f"memory: {_size(needed.memory_mb * 2**20)} do not fit into {_size(here * 2**20)}")
    for line in over:
        click.echo(line)
    return len(over)


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _submit(suite: str, full: bool | None, config: Path | None, runs: Path, data: Path) -> int:
    """One job, of the largest that any training of the suite asks for."""
    import dataclasses

    from bench.slurm import resources, sbatch

    loaded, planned = load(suite)
    rules = resources.rules(loaded, config)
    asked = [rules.training(one) for one in planned if not one.cell.skip]
    if not asked:
        raise BenchError(f"{loaded.path}: there is nothing to rehearse: every cell is skipped")
    largest = {k: max(getattr(one, k) for one in asked) for k in ("time", "gpus", "cpus", "mem")}
    words = ["-m", "bench", "rehearse", str(loaded.path.resolve())]
    words += ["--runs", str(runs.resolve()), "--data", str(data.resolve())]
    words += [] if full is None else ["--full" if full else "--shrunk"]
    folder = runs.resolve() / "rehearsal" / "jobs"
    one = dataclasses.replace(asked[0], **largest)
    job = sbatch.command(words, folder, one, f"rehearse-{loaded.name}")
    click.echo(f"{loaded.name}: job {job} ({sbatch.asked(one)}); its table will be in {folder}/{job}_log.out")
    return 0


COMMANDS = (rehearse,)
