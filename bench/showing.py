"""The commands that show results: tables, figures, the lecture, what is behind a number, what changed, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bench.records import BenchError
from bench.shared import load, publish, results_option, rows_of, runs_option, strangers, tell

FORMS = ("terminal", "markdown", "latex", "html", "csv")
EXPORTS = ("parquet", "csv", "tensorboard", "mlflow")


@click.command()
@click.argument("suite")
@click.option("--name", help="Only the table of this name.")
@click.option("--format", "form", type=click.Choice(FORMS), default="terminal")
@click.option("--mixed", is_flag=True, help="Average over different settings, data or code, and say so.")
@runs_option
@results_option
def table(suite: str, name: str | None, form: str, mixed: bool, runs: Path, results: Path) -> int:
    """The comparison tables of SUITE, from whatever rows are there.

    SUITE may also be a table of the lecture (see `bench lecture`) or a file of rows (.csv, .parquet).
    """
    from bench.reporting import tables

    made, damage = _exhibits(suite, runs, results, name, mixed=mixed)
    click.echo("\n".join(getattr(tables, form)(one.table) for one in made).rstrip("\n"))
    return tell(damage)


@click.command()
@click.argument("suite")
@click.option("--name", help="Only the figure of this name.")
@click.option("--format", "form", type=click.Choice(["png", "pdf", "svg"]), default="png")
@runs_option
@results_option
def plot(suite: str, name: str | None, form: str, runs: Path, results: Path) -> int:
    """The figures of SUITE, from whatever rows are there.

    SUITE may also be a figure of the lecture (see `bench lecture`).
    """
    from bench.reporting import lecture, plots

    spec = lecture.find(suite, "figure")
    if spec is not None:
        path = results / f"lecture-{spec.name}.{form}"
        drawn = lecture.figure(spec, _reader(runs, results), runs, path)
        click.echo(drawn.path or f"{spec.name}: not there: {drawn.missing}")
        return 0 if drawn.path else 2
    _check_name(suite, "figure")
    loaded, frame, damage = rows_here(suite, runs, results)
    paths = plots.of_suite(loaded, frame, results, name, form)
    if not paths:
        raise BenchError(f"{loaded.path}: no figure: what is drawn is said in a [[figure]] block of a suite")
    click.echo("\n".join(map(str, paths)))
    return tell(damage)


@click.command()
@click.option("--format", "form", type=click.Choice(["png", "pdf", "svg"]), default="png", help="Of figures.")
@runs_option
@results_option
def lecture(form: str, runs: Path, results: Path) -> int:
    """The lecture's tables and figures, measured beside published.

    All of them, from whatever results there are. Writes results/lecture.md and results/lecture-*.png. What is not there yet is named with the reason.
    """
    from bench.artifacts import write_text
    from bench.reporting import lecture as lectures
    from bench.reporting import tables

    read = _reader(runs, results)
    specs = lectures.specs()
    shown = [lectures.table(s, read) for s in specs if s.kind == "table"]
    drawn = [
        lectures.figure(s, read, runs, results / f"lecture-{s.name}.{form}")
        for s in specs
        if s.kind == "figure"
    ]
    write_text(results / "lecture.md", lectures.document(shown, drawn))
    for one in shown:
        if one.exhibit is not None:
            click.echo(tables.terminal(one.exhibit.table))
    for one in shown:
        for line in one.missing:
            click.echo(f"table {one.spec.name}: not there: {line}")
    for figure in drawn:
        told = figure.path or f"not there: {figure.missing}"
        click.echo(f"figure {figure.spec.name}: {told}")
    click.echo(f"all of it: {results / 'lecture.md'}", err=True)
    return 0


@click.command()
@click.argument("table")
@click.argument("row")
@click.argument("column")
@runs_option
@results_option
def explain(table: str, row: str, column: str, runs: Path, results: Path) -> int:
    """The runs, settings, code, data and logs behind one number.

    TABLE is a suite's (as SUITE:NAME) or one of the lecture's. Rows and columns as printed, or an unmistakable part: bench explain lecture_embedded:probe rotation conv3
    """
    from bench.reporting import provenance

    suite, _, name = table.rpartition(":") if ":" in table else (table, "", "")
    made, damage = _exhibits(suite, runs, results, name or None)
    if len(made) > 1:
        names = ", ".join(f"{suite}:{one.table.name}" for one in made)
        raise BenchError(f"{suite} has several tables: name one of {names}")
    click.echo(provenance.explain(provenance.behind(made[0], row, column), runs), nl=False)
    return tell(damage)


@click.command()
@click.argument("a")
@click.argument("b")
@results_option
def diff(a: str, b: str, results: Path) -> int:
    """What changed between two results, with intervals.

    A and B are files of rows (.csv, .parquet), or suites with results. Paired where seeds agree. Ends with 0 when nothing changed, 1 when something did, 2 on bad input.
    """
    from bench.reporting import compare, tables

    found = compare.changes(*(tables.read(_file(name, results)) for name in (a, b)))
    for one in found:
        click.echo(f"{one.name}\n    {one.before}  ->  {one.after}   {one.change}")
    click.echo(f"{len(found)} differences" if found else "no difference")
    return 1 if found else 0


@click.command()
@click.argument("suite")
@click.option("--format", "form", type=click.Choice(EXPORTS), default="parquet", show_default=True)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="MLflow's store, e.g. http://server:5000.  [default: results/mlflow.db]",
)
@runs_option
@results_option
def export(suite: str, form: str, tracking_uri: str | None, runs: Path, results: Path) -> int:
    """The rows of SUITE for other tools.

    \b
    parquet      results/SUITE.parquet: tidy, numbers as numbers; `bench table` reads it too
    csv          results/SUITE.csv, as `bench run` writes it
    tensorboard  results/tensorboard/SUITE/; look with: tensorboard --logdir results/tensorboard
    mlflow       experiment SUITE in a local SQLite store, or wherever --tracking-uri says;
                 look with: mlflow ui --backend-store-uri sqlite:///results/mlflow.db

    To the trackers a model (a method with its settings and a seed) is one run: all settings as
    hyper-parameters, every number as PROTOCOL/METRIC/LAYER/SPLIT (with what else tells two apart),
    losses as train/TERM where --runs keeps the histories, what failed with its reason. Exporting
    again replaces what changed. They are extras: pip install 'representation-bench[tensorboard]'
    or 'representation-bench[mlflow]'.
    """  # noqa: D301 - click's own mark
    from bench import store
    from bench.reporting import tables
    from bench.reporting.columns import text

    loaded, frame, damage = rows_here(suite, runs, results)
    path = results / f"{loaded.name}.{form}"
    if form == "csv":
        records = frame.to_dict("records")
        store.write_csv(path, [{str(k): text(v) for k, v in record.items()} for record in records])
    elif form == "parquet":
        tables.write_parquet(path, frame)
    else:
        path = _track(form, loaded.name, frame, runs, results, tracking_uri)
    click.echo(path)
    return tell(damage)


def _track(form: str, name: str, frame: Any, runs: Path, results: Path, uri: str | None) -> Any:
    """Rows to a tracker. Returns where they are."""
    from bench.reporting.tracking import mlflow, tensorboard
    from bench.reporting.tracking.runs import tracked

    found = tracked(frame, runs)
    if form == "tensorboard":
        folder = results / "tensorboard" / name
        click.echo(f"{tensorboard.write(folder, found)} runs", err=True)
        return folder
    store = uri or mlflow.local_store(results)
    written, kept = mlflow.write(name, found, store, None if uri else results / "mlflow-artifacts")
    click.echo(f"{written} runs written, {kept} there already", err=True)
    return store


@click.command()
@click.argument("suites", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="[default: report.html in --results]")
@runs_option
@results_option
def report(suites: tuple[str, ...], out: Path | None, runs: Path, results: Path) -> int:
    """One HTML page of tables, figures, cost and provenance.

    Of SUITES (files of rows too; "lecture"), by default of the lecture and all that has results. Self-contained: tables to sort and filter, figures, pictures, cost, failures, what is behind each number.
    """
    from bench.artifacts import write_text
    from bench.planning.files import builtin
    from bench.reporting import report as reports

    kept = [name for name in builtin() if _kept(name, results)]
    pool, sections, damage = reports.Pool(), [], []
    for name in suites or ("lecture", *kept):
        if name == "lecture":
            sections.append(reports.of_lecture(_reader(runs, results), runs, pool))
            continue
        loaded, frame, wrong = rows_here(name, runs, results)
        sections.append(reports.of_suite(loaded, frame, runs, pool))
        damage += wrong
    path = out or results / "report.html"
    title = "representation-bench: " + (", ".join(s.title for s in sections) if suites else "results")
    write_text(path, reports.page(title, sections, pool))
    click.echo(path)
    return tell(damage)


# ---- rows ----------------------------------------------------------------------------------------


def rows_here(suite: str, runs: Path, results: Path) -> tuple[Any, Any, list[str]]:
    """A suite, its rows (from the runs where some are here, the rest from the result table), what is damaged."""
    from bench import store
    from bench.planning.suite import Suite
    from bench.reporting import tables

    if suite.endswith((".csv", ".parquet")):
        path = _file(suite, results)
        return Suite(path.stem, path, "", None, ()), tables.read(path), []
    loaded, planned = load(suite)
    publish(loaded, planned, runs, results)
    rows, damage = rows_of(loaded, planned, runs)
    kept = _kept(loaded.name, results)
    if kept is not None and not (damage or _begun(tables.frame(rows))):
        frame = tables.read(kept)
        pairs = frame[["training", "cell"]].drop_duplicates().astype(str)
        told = strangers(suite, kept, pairs["training"] + "/" + pairs["cell"], planned)
        if told:
            click.echo(told, err=True)
        return loaded, frame, []
    rows = store.keeping(rows, results / f"{loaded.name}.csv")
    _tell_half(loaded, rows, suite)
    return loaded, tables.frame(rows), damage


def _tell_half(loaded: Any, rows: Any, suite: str) -> None:
    cells = {(row["training"], row["cell"]): row["status"] for row in rows}
    open_ = sum(status == "pending" for status in cells.values())
    if open_:
        told = f"{len(cells) - open_} of {len(cells)} cells are there; see bench status {suite}"
        click.echo(f"{loaded.name}: half done: {told}", err=True)


def _begun(frame: Any) -> bool:
    """Was this suite run? A baseline without a budget may be there because another suite has the same one."""
    status = frame["status"]
    waits = status.isin(["pending", "skipped"])
    trained = frame["budget"].astype(str) != "0"
    own = ~waits & (trained | (status != "ok"))
    return bool(own.any() or ((~waits).any() and not (status == "pending").any()))


def _check_name(name: str, kind: str) -> None:
    """A name without a suffix is a suite's; that the lecture has none such was looked up before."""
    from bench.planning.files import builtin
    from bench.registry import suggest
    from bench.reporting import lecture

    known = [*builtin(), *lecture.names(kind)]
    if not Path(name).suffix and name not in known:
        raise BenchError(f"there is no suite, nor {kind} of the lecture, {name!r}{suggest(name, known)}")


def _kept(name: str, results: Path) -> Path | None:
    """The result table of a suite: as CSV, or as parquet."""
    return next((p for p in (results / f"{name}.csv", results / f"{name}.parquet") if p.exists()), None)


def _file(name: str, results: Path) -> Path:
    if name.endswith((".csv", ".parquet")):
        if not Path(name).is_file():
            raise BenchError(f"{name}: there is no such file")
        return Path(name)
    kept = _kept(name, results)
    if kept is None:
        raise BenchError(
            f"{name}: neither a file of rows (.csv, .parquet) nor a suite with results in {results}"
        )
    return kept


def _reader(runs: Path, results: Path) -> Any:
    """Rows of suites for the lecture: None where a suite has neither runs nor a result table."""
    import functools

    from bench.planning.files import builtin
    from bench.reporting import tables

    @functools.cache
    def read(name: str) -> Any:
        kept = _kept(name, results)
        if name not in builtin():
            return tables.read(kept) if kept else None
        _, frame, _ = rows_here(name, runs, results)
        return frame if _begun(frame) else None

    return read


def _exhibits(
    suite: str, runs: Path, results: Path, name: str | None, *, mixed: bool = False
) -> tuple[list[Any], list[str]]:
    """Tables with what is behind them: a suite's, a file's, or one of the lecture's."""
    from bench.reporting import lecture as lectures
    from bench.reporting import tables

    spec = lectures.find(suite, "table")
    if spec is not None:
        shown = lectures.table(spec, _reader(runs, results))
        if shown.exhibit is None:
            raise BenchError(f"{suite}: not there: {'; '.join(shown.missing)}")
        return [shown.exhibit], []
    _check_name(suite, "table")
    loaded, frame, damage = rows_here(suite, runs, results)
    return tables.exhibits(loaded, frame, name, mixed=mixed), damage


COMMANDS = (table, plot, lecture, report, explain, diff, export)
