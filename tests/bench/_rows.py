"""Rows and tables made by hand."""

from __future__ import annotations

from bench.records import COLUMNS
from bench.reporting import tables

BASE = {
    "suite": "s", "cell": "c", "backbone": "small", "train_dataset": "digits", "labels": 0, "label_split": 0,
    "label_noise": 0.0, "budget": 1000, "seed": 0, "precision": "fp32", "protocol": "linear", "dataset": "digits",
    "target_labels": "all", "target_split": 0, "split": "test", "metric": "top1", "status": "ok",
    "method_settings": "{}", "protocol_settings": "{}", "data_settings": "{}",
}  # fmt: skip
WAITS = {"metric": "", "split": "", "value": ""}


def row(label, **values):
    own = {**BASE, "label": label, "method": label, **values}
    return {**dict.fromkeys(COLUMNS, ""), "training": f"{label}-{own['seed']}", **own}


def made(rows, **block):
    return tables.build(tables.frame(rows), {"name": "t", "metric": "top1", **block}, "s.toml: table")


def texts(table):
    return {line.name: [e.text for e in line.entries] for line in table.lines}
