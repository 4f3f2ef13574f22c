"""The commands for SLURM. What they need is loaded when they are called: ``bench --help`` stays fast."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from bench.records import BenchError
from bench.shared import (
    chosen,
    data_option,
    exit_code,
    load,
    missing_option,
    part_options,
    places,
    publish,
    report,
    results_option,
    runs_option,
    submitted,
    tell,
    unmeasured,
    write_rows,
)

_config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="This machine's own [slurm] keys; they win.  "
    "[default: BENCH_SLURM, else ~/.config/representation-bench/slurm.toml]",
)
_wait = click.option("--wait", is_flag=True, help="Stay until all is done, and submit again what died.")


@click.command()
@click.argument("suite")
@click.option("--dry-run", is_flag=True, help="Only show what would be submitted.")
@_wait
@missing_option
@part_options
@_config
@runs_option
@results_option
@data_option
def submit(
    suite: str,
    dry_run: bool,
    wait: bool,
    missing: bool,
    part: Any,
    config: Path | None,
    runs: Path,
    results: Path,
    data: Path,
) -> int:
    """Submit what is left of SUITE to SLURM. Again: retries what died, leaves alone what runs."""
    folders = runs, results, data
    return _submit(
        suite, folders, config, part, dry_run=dry_run, wait=wait, again=False, only_missing=missing
    )


@click.command()
@click.argument("suite")
@_wait
@part_options
@_config
@runs_option
@results_option
@data_option
def retry(
    suite: str, wait: bool, part: Any, config: Path | None, runs: Path, results: Path, data: Path
) -> int:
    """Submit SUITE with what was given up: errors that a method or protocol raised, too many deaths."""
    return _submit(suite, (runs, results, data), config, part, dry_run=False, wait=wait, again=True)


def _submit(
    suite: str,
    folders: tuple[Path, Path, Path],
    config: Path | None,
    part: Any,
    *,
    dry_run: bool,
    wait: bool,
    again: bool,
    only_missing: bool = False,
) -> int:
    from bench import artifacts
    from bench.planning import plan, refusals
    from bench.slurm import follow, resources, submission

    loaded, whole = load(suite)
    rules, where = resources.rules(loaded, config), places(*folders)
    planned = chosen(loaded, whole, part)
    wanted = unmeasured(loaded, planned, where.results) if only_missing else planned
    refusals.check(plan.remaining(wanted, artifacts.Done(where.runs)), str(loaded.path), where.data)
    if dry_run:
        click.echo("\n".join(_dry(loaded, wanted, rules, where)))
        return 0
    submission.note_asked(loaded.name, part, where.runs)
    if not wait:
        sent = submission.submit(wanted, rules, where, again=again)
        _told(loaded, sent, suite, set())
        return 2 if sent.refused else 0
    watched, known = follow.Watched(wanted, rules, where), set[str]()
    try:
        follow.follow(watched, lambda sent: _told(loaded, sent, suite, known), again=again)
    finally:
        rows, damage = write_rows(loaded, whole, where, submitted(loaded, whole, where.runs))
    report(loaded, rows, where.results)
    return tell(damage) or exit_code(rows)


def _told(loaded: Any, sent: Any, suite: str, known: set[str]) -> None:
    """What one round found and did, a line each, to the standard error; what was told before is not told again."""
    lines = [f"given up: {n}: {reason} (bench retry {suite})" for n, reason in sent.draft.given_up]
    lines += [f"refused: {name}: {reason}" for name, reason in sent.refused.items()]
    new = [f"died: {reason}" for _, reason in sent.swept.dead]
    new += [line for line in (*lines, f"{loaded.name}: {_done(sent)}") if line not in known]
    known |= {*new}
    for line in new:
        click.echo(line, err=True)


def _done(sent: Any) -> str:
    draft = sent.draft
    parts = [f"{draft.done} of {draft.total} cells are done"]
    if draft.owned:
        parts.append(f"{draft.owned} are left to live jobs")
    if sent.submission:
        jobs = f"{sent.jobs} jobs in {len(draft.arrays)} arrays"
        parts.append(f"submitted {sent.cells} as {jobs} ({sent.submission.folder.name})")
    elif not draft.owned and not sent.waiting:
        parts.append("nothing to submit")
    if sent.waiting:
        parts.append(
            f"{sent.waiting} wait: SLURM takes no more jobs of this account now (submit again, or --wait)"
        )
    return ", ".join(parts)


def _dry(loaded: Any, planned: Sequence[Any], rules: Any, where: Any) -> Iterator[str]:
    from bench.slurm import cluster, draft, ledger, packs, sbatch
    from bench.slurm import hours as hours_

    live = [view for view in ledger.views(where.runs) if not view.dead]
    left = draft.draft(planned, rules, where, live, cluster.limits())
    yield f"{'array':>5} {'jobs':>6} {'tasks':>6} {'cells':>6} {'hours':>7}  each job asks for"
    total, cost = 0.0, dict[str, list[float]]()
    for number, array in enumerate(left.arrays):
        works = list(array.works)
        hours = sum(packs.wall_seconds(pack) for pack in array.packs) / 3600
        total += hours
        one = array.resources
        spent = cost.setdefault(one.account, [0.0, 0.0])
        spent[0] += hours * one.nodes * one.devices
        spent[1] += hours * one.nodes * one.cpus
        after = f"; each after its like in array {array.follows}" if array.follows is not None else ""
        after += "; after jobs that make the same models" if array.after else ""
        cells = sum(len(work.task.cells) for work in works)
        asks = sbatch.asked(array.resources)
        yield f"{number:5} {len(array.packs):6} {len(works):6} {cells:6} {hours:7.2f}  {asks}{after}"
    source = f"from {left.measured} finished trainings" if left.measured else "a guess: nothing is measured"
    yield f"{loaded.name}: {left.cells} cells in {left.jobs} jobs, about {total:.2f} job hours ({source})"
    yield from (f"about {hours_.told(gpus, cores, account)}" for account, (gpus, cores) in cost.items())
    yield f"{left.done} of {left.total} cells are done, {left.owned} are left to live jobs"
    for name, reason in left.given_up:
        yield f"given up: {name}: {reason}"
    yield from dict.fromkeys(_spared(planned, rules))


def _spared(planned: Sequence[Any], rules: Any) -> Iterator[str]:
    """Nodes that would be idle are not asked for."""
    for one in planned:
        asked, given = rules.nodes(one), rules.training(one).nodes
        if asked > given:
            count = f"{one.cell.training.processes} process" + "es" * (one.cell.training.processes > 1)
            number = {1: "one node"}.get(given, f"{given} nodes")
            yield f"{one.label}: {number} in place of {asked}: it trains in {count}"


# ---- status --------------------------------------------------------------------------------------


@click.command()
@click.argument("suite")
@click.option("--cells", is_flag=True, help="A line a cell, with its id for `bench why` and `bench logs`.")
@click.option("--watch", is_flag=True, help="Again every few seconds, until nothing runs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON table, for programs.")
@part_options
@runs_option
@results_option
def status(suite: str, cells: bool, watch: bool, as_json: bool, part: Any, runs: Path, results: Path) -> int:
    """How far SUITE is: done (here or elsewhere), running, queued, dead, failed with reasons, skipped, pending."""
    from bench.slurm import standing

    loaded, whole = load(suite)
    planned = chosen(loaded, whole, part)
    while True:
        found = standing.standing(loaded, planned, runs, results)
        if as_json:
            click.echo(json.dumps({**vars(found), "counts": found.counts}))
        else:
            click.echo("\n".join(standing.lines(found, every=cells)))
        if standing.is_over(found, submitted(loaded, whole, runs) or ()):
            publish(loaded, whole, runs, results)
        if not watch or not {"running", "suspended", "queued"} & set(found.counts):
            return tell(found.damage)
        time.sleep(5)
        if not as_json:
            click.echo()


@click.command()
@click.argument("cell")
@click.option("--lines", default=40, show_default=True, help="How many of each file's last lines.")
@runs_option
def logs(cell: str, lines: int, runs: Path) -> int:
    """The log of CELL's training (an id out of `bench status --cells`), and what its job printed."""
    found = list(_logs(cell.partition("/")[0], runs))
    if not found:
        raise BenchError(f"{runs}: nothing was logged for {cell!r}; see bench status SUITE --cells for ids")
    for path in found:
        click.echo(f"== {path}")
        click.echo("\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:]))
    return 0


def _logs(training: str, runs: Path) -> Iterator[Path]:
    from bench import artifacts
    from bench.slurm import ledger

    if artifacts.slug(training.replace("-", "_")) == "unnamed" or "/" in training or training.startswith("."):
        return
    candidates = [runs / training / "log"]
    for submission in ledger.submissions(runs, closed=True)[::-1]:
        for index, owns in enumerate(submission.manifest["packs"]):
            job = submission.jobs.get(str(index))
            if training in owns and job:
                candidates.append(submission.folder / "logs" / f"{job}_log.out")
    yield from (path for path in candidates if path.is_file() and path.stat().st_size)


@click.command()
@click.argument("suite")
@runs_option
def cancel(suite: str, runs: Path) -> int:
    """Cancel the jobs that were submitted for SUITE; their workers save what they have."""
    from bench import artifacts
    from bench.planning import suite as suites
    from bench.slurm import cluster, ledger

    loaded = suites.load(suite)
    with artifacts.lock(ledger.home(runs)):
        views = [v for v in ledger.views(runs, ask=False) if v.submission.suite == loaded.name]
        ledger.close_all((view, "canceled", f"bench cancel {loaded.name}") for view in views)
        cluster.cancel([view.job for view in views if view.job])
    click.echo(f"{loaded.name}: canceled {len(views)} jobs; bench submit {suite} goes on")
    return 0


@click.command()
@click.option("--older", default="14d", show_default=True, help="Logs and submissions of at least this age.")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and how much that frees.")
@runs_option
def clean(older: str, dry_run: bool, runs: Path) -> int:
    """Remove what is spent: checkpoints of finished trainings, what killed jobs left half written, old logs and submissions."""
    from bench.slurm import cleaning, values

    age = 60 * values.minutes(older, "--older")
    found = cleaning.clean(runs, age, dry_run=dry_run)
    for one in found:
        click.echo(f"{one.files:7,} files {one.megabytes:10,.1f} MB  {one.what}")
    total = sum(one.megabytes for one in found)
    click.echo(f"{runs}: {total:,.1f} MB {'would be freed' if dry_run else 'freed'}")
    return 0


@click.command()
@click.argument("suite", required=False)
@_config
@runs_option
@data_option
def doctor(suite: str | None, config: Path | None, runs: Path, data: Path) -> int:
    """What a run on SLURM needs, what of it is missing here, and what to write.

    Asks SLURM as `bench submit` would: for what jobs of SUITE ask for, or any suite without a [slurm] of its own.
    """
    from bench.slurm import doctor as examiner
    from bench.slurm import resources

    findings = examiner.examine(runs, data, resources.of_site(suite, config))
    click.echo("\n".join(examiner.lines(findings)))
    return 2 if any(one.ok is False for one in findings) else 0


COMMANDS = (submit, status, logs, cancel, retry, clean, doctor)
