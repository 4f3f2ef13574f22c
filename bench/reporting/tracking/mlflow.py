"""Runs in MLflow: an experiment a suite; parameters, tags and metrics through its client, to whatever store it has."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.records import BenchError, digest
from bench.reporting.tracking.runs import TrackedRun

_ENDED = {"ok": "FINISHED", "skipped": "FINISHED", "pending": "SCHEDULED", "killed": "KILLED"}
_METRICS, _PARAMS, _TEXT = 1000, 100, 5000  # MLflow's limits for one request, and for one value
_DIGEST = "bench.digest"  # of all that a run says: it is written anew when that changed


def local_store(results: Path) -> str:
    """The tracking URI of the store beside the results."""
    return f"sqlite:///{(results / 'mlflow.db').absolute()}"


def write(experiment: str, runs: Iterable[TrackedRun], uri: str, artifacts: Path | None) -> tuple[int, int]:
    """The runs that the store at ``uri`` lacks or has differently. Returns how many were written, how many stood there.

    :param artifacts: where a new experiment's files would go; None: the server's own place.
    :raises BenchError: MLflow is not installed, or its store refuses.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # writing rows tells nobody
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise BenchError(
            "--format mlflow needs MLflow: pip install 'representation-bench[mlflow]'"
        ) from error
    try:
        with _quiet():
            return _write(MlflowClient(tracking_uri=uri), experiment, runs, artifacts)
    except MlflowException as error:
        raise BenchError(f"MLflow at {uri}: {(str(error).splitlines() or [''])[0]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a line for each table of a new database."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _write(
    client: Any, experiment: str, runs: Iterable[TrackedRun], artifacts: Path | None
) -> tuple[int, int]:
    place = _experiment(client, experiment, artifacts)
    there = {run.info.run_name: run for run in _all_runs(client, place)}
    written = kept = 0
    for run in runs:
        mark = digest([run.name, dict(run.settings), dict(run.facts), repr(run.scalars), run.outcome])
        old = there.get(run.name)
        if old is not None and old.data.tags.get(_DIGEST) == mark:
            kept += 1
            continue
        if old is not None:
            client.delete_run(old.info.run_id)
        _log(client, place, run, mark)
        written += 1
    return written, kept


def _experiment(client: Any, name: str, artifacts: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        where = artifacts.absolute().as_uri() if artifacts else None
        return str(client.create_experiment(name, artifact_location=where))
    if found.lifecycle_stage == "deleted":
        raise BenchError(
            f"MLflow: experiment {name} was deleted there; restore it: mlflow experiments restore"
        )
    return str(found.experiment_id)


def _all_runs(client: Any, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _log(client: Any, experiment: str, run: TrackedRun, mark: str) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    made = client.create_run(experiment, start_time=now, run_name=run.name)
    tags = {**{f"bench.{k}": v for k, v in run.facts.items()}, "bench.outcome": run.outcome}
    params = [Param(name, str(value)[:_TEXT]) for name, value in run.settings.items()]
    metrics = (Metric(name, value, now, step) for name, step, value in run.scalars)
    log = client.log_batch
    log(made.info.run_id, tags=[RunTag(name, value[:_TEXT]) for name, value in tags.items()])
    for some in _batches(params, _PARAMS):
        log(made.info.run_id, params=some)
    for some in _batches(metrics, _METRICS):
        log(made.info.run_id, metrics=some)
    client.set_tag(made.info.run_id, _DIGEST, mark)  # last: a run that was cut off is written again
    client.set_terminated(made.info.run_id, _ENDED.get(run.status, "FAILED"))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(itertools.islice(rest, size)):
        yield some
