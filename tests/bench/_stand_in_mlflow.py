"""As much of MLflow's client as its documentation promises and an export uses, in memory, with MLflow's limits."""

from __future__ import annotations

import itertools
import types
from typing import NamedTuple

LIMIT_METRICS, LIMIT_PARAMS = 1000, 100


class MlflowException(Exception):  # noqa: N818 - as MLflow calls it
    pass


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class RunTag(NamedTuple):
    key: str
    value: str


class Page(list):
    token = None


class Client:
    stores: dict = {}  # noqa: RUF012 - shared as a database is

    def __init__(self, tracking_uri):
        if tracking_uri.startswith("http"):
            raise MlflowException(f"no server at {tracking_uri}\nand more lines")
        self.store = self.stores.setdefault(tracking_uri, {"experiments": {}, "runs": {}})

    def get_experiment_by_name(self, name):
        return self.store["experiments"].get(name)

    def create_experiment(self, name, artifact_location=None):
        number = str(len(self.store["experiments"]) + 1)
        facts = {"experiment_id": number, "lifecycle_stage": "active", "artifact_location": artifact_location}
        self.store["experiments"][name] = types.SimpleNamespace(**facts)
        return number

    def delete_experiment(self, number):
        for one in self.store["experiments"].values():
            one.lifecycle_stage = "deleted" if one.experiment_id == number else one.lifecycle_stage

    def create_run(self, experiment_id, start_time=None, run_name=None):
        number = f"run{len(self.store['runs'])}"
        info = types.SimpleNamespace(
            run_id=number, run_name=run_name, experiment_id=experiment_id, status="RUNNING", deleted=False
        )
        data = types.SimpleNamespace(params={}, metrics={}, tags={})
        self.store["runs"][number] = types.SimpleNamespace(info=info, data=data, history={})
        return self.store["runs"][number]

    def search_runs(self, experiment_ids, max_results=1000, page_token=None):
        found = [r for r in self.store["runs"].values() if r.info.experiment_id in experiment_ids]
        start = int(page_token or 0)
        found = [r for r in found if not r.info.deleted]
        page = Page(itertools.islice(found, start, start + max_results))
        page.token = str(start + max_results) if len(found) > start + max_results else None
        return page

    def delete_run(self, run_id):
        self.store["runs"][run_id].info.deleted = True

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        assert len(metrics) <= LIMIT_METRICS
        assert len(params) <= LIMIT_PARAMS
        run = self.store["runs"][run_id]
        run.data.params |= dict(params)
        run.data.tags |= dict(tags)
        for one in metrics:
            run.history.setdefault(one.key, []).append(one)
            run.data.metrics[one.key] = max(run.history[one.key], key=lambda m: (m.step, m.timestamp)).value

    def set_tag(self, run_id, key, value):
        self.store["runs"][run_id].data.tags[key] = value

    def set_terminated(self, run_id, status):
        self.store["runs"][run_id].info.status = status

    def get_metric_history(self, run_id, key):
        return self.store["runs"][run_id].history[key]


def modules():
    """What ``import mlflow`` finds."""
    Client.stores = {}
    mlflow = types.ModuleType("mlflow")
    mlflow.MlflowClient = Client
    exceptions, entities = types.ModuleType("mlflow.exceptions"), types.ModuleType("mlflow.entities")
    exceptions.MlflowException = MlflowException
    entities.Metric, entities.Param, entities.RunTag = Metric, Param, RunTag
    return {"mlflow": mlflow, "mlflow.exceptions": exceptions, "mlflow.entities": entities}
