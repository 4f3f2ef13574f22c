"""Outcomes to rows: what lies in the runs folder, as the long table of a suite."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.planning.plan import Planned
from bench.records import COLUMNS, Aim, Cell, Training, Unit, plain

Row = dict[str, Any]

_EMPTY = dict.fromkeys(COLUMNS, "")
_OUTCOME = ("status", "reason", "attempt", "eval_seconds", "device", "commit", "versions")


def collect(suite: str, planned: Iterable[Planned], runs: Path) -> list[Row]:
    """One row a number, and one for every planned cell that has none, with its status and reason."""
    made: dict[Training, _Made] = {}
    rows: list[Row] = []
    refused = artifacts.read_json(artifacts.why_not(runs)) or {}
    for one in planned:
        training = one.cell.training
        if training not in made:
            made[training] = _Made(artifacts.folder(runs, training))
        found = _cell_rows(suite, one, made[training])
        reason = refused.get(artifacts.cell_id(one.cell), "") if refused else ""
        rows += [_explained(row, reason) for row in found] if reason else found
    return rows


class _Made:
    """What lies in a training's folder, looked at once for all of its cells."""

    def __init__(self, files: artifacts.Folder) -> None:
        self.files = files
        self.status: Mapping[str, Any] = artifacts.read_json(files.status) or {}
        self.there = artifacts.tried(files)
        self.rows: dict[
            tuple[str, int | None], Row
        ] = {}  # by label and trial: what all of its cells have in common

    def outcome(self, name: str) -> Mapping[str, Any] | None:
        """How a cell came out, or was last tried."""
        paths = [p for p in (self.files.cell(name), self.files.failed(name)) if p.name in self.there]
        return next((found for path in paths if (found := artifacts.read_json(path))), None)


def _explained(row: Row, reason: str) -> Row:
    """A row of a cell that SLURM does not run: it says why."""
    if row["status"] in {"ok", "skipped"}:
        return row
    return {**row, "status": "failed" if row["status"] == "pending" else row["status"], "reason": reason}


def measured(path: Path) -> dict[str, list[Row]]:
    """The rows of a table that was written before, by cell id: cells of which all came out, nothing where there is none.

    An id holds the digests of settings and code: whoever made the rows, the same cell would be run here.
    """
    return {cell: rows for cell, rows in recorded(path).items() if all(row["status"] == "ok" for row in rows)}


def recorded(path: Path) -> dict[str, list[Row]]:
    """:func:`in_order` by cell id."""
    found: dict[str, list[Row]] = {}
    for cell, row in in_order(path):
        found.setdefault(cell, []).append(row)
    return found


def in_order(path: Path) -> list[tuple[str, Row]]:
    """The rows of a table that was written before, with their cells' ids; of cells with a damaged line, and of a file that is no such table, nothing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            ours = tuple(reader.fieldnames or ()) == COLUMNS
            rows = [(f"{row['training']}/{row['cell']}", row) for row in reader] if ours else []
    except (OSError, csv.Error, UnicodeDecodeError):
        return []
    damaged = {cell for cell, row in rows if _torn(row)}
    return [(cell, row) for cell, row in rows if cell not in damaged]


def _torn(row: Row) -> bool:
    """More or fewer fields than columns."""
    return None in row or None in row.values()


def keeping(rows: Iterable[Row], path: Path) -> list[Row]:
    """``rows``, but what the table at ``path`` has of cells that are pending here stays."""
    rows = list(rows)
    if all(row["status"] != "pending" for row in rows):
        return rows
    before, out = measured(path), []
    for row in rows:
        found = before.get(f"{row['training']}/{row['cell']}", []) if row["status"] == "pending" else []
        # The same cell may stand under two names, or be two trials of a search: its numbers are the same.
        named = {key: row[key] for key in ("suite", "label", "method_settings")}
        own = [one for one in found if _name(one) == _name(row)] or [
            one for one in found if _name(one) == _name(found[0])
        ]
        out += [one | named for one in own] or [row]
    return out


def set_aside(path: Path, planned: Iterable[Planned], runs: Path) -> tuple[Path, int]:
    """Measured rows of the table at ``path`` that no cell here has, nor a run, to a table beside it; how many.

    A suite's settings changed, or code did, since somebody else made them: they would be lost with the next table.
    """
    ids = {artifacts.cell_id(one.cell) for one in planned}
    aside = path.with_name(f"{path.stem}-earlier{path.suffix}")
    gone = {
        cell: rows
        for cell, rows in measured(path).items()
        if cell not in ids and not (runs / cell.partition("/")[0]).is_dir()
    }
    if gone:
        write_csv(aside, [row for rows in (recorded(aside) | gone).values() for row in rows])
    return aside, sum(map(len, gone.values()))


def _name(row: Row) -> tuple[Any, Any]:
    return row["label"], row["method_settings"]


def _cell_rows(suite: str, one: Planned, made: _Made) -> list[Row]:
    key = one.label, one.trial
    if key not in made.rows:
        made.rows[key] = {"suite": suite, **_of_training(one, made.status)}
    base = {**_EMPTY, **made.rows[key], **_of_cell(one.cell), **ids(one.cell)}
    if one.cell.skip:
        return [{**base, "status": "skipped", "reason": one.cell.skip}]
    outcome = made.outcome(base["cell"])
    if outcome is None:
        training = made.status.get("status", "pending")
        if training in {"ok", "pending"}:
            return [{**base, "status": "pending"}]
        return [{**base, **{k: made.status.get(k, "") for k in _OUTCOME}}]
    base |= {k: outcome.get(k, "") for k in _OUTCOME}
    return [{**base, **row} for row in outcome.get("rows", [])] or [base]


def _of_training(one: Planned, status: Mapping[str, Any]) -> Row:
    training = one.cell.training
    data = {
        k: v
        for k, v in plain(training.data).items()
        if k not in {"dataset", "labels", "label_split", "label_noise"}
    }
    data["dataset"] = dict(training.data.dataset.settings)
    return {
        "label": one.label,
        "method": training.method.name,
        "method_settings": _json({**dict(training.method.settings), **_processes(training), **_trial(one)}),
        "backbone": _unit_text(training.backbone),
        "train_dataset": training.data.dataset.name,
        "labels": training.data.labels,
        "label_split": training.data.label_split,
        "label_noise": training.data.label_noise,
        "data_settings": _json(data),
        "split_digest": status.get("data", {}).get("split_digest", ""),
        "budget": training.budget,
        "seed": training.seed,
        "precision": training.precision,
        "threads": training.threads,
        "train_seconds": status.get("train_seconds", ""),
        "images_seen": status.get("images_seen", ""),
        "peak_memory_mb": status.get("peak_memory_mb", ""),
    }


def _of_cell(cell: Cell) -> Row:
    return {
        "variant": cell.variant,
        "protocol": cell.protocol.name,
        "protocol_settings": _judged_text(cell.protocol, cell.aim),
        "dataset": cell.aim.dataset.name,
        "target_labels": cell.aim.labels,
        "target_split": cell.aim.label_split,
    }


@functools.lru_cache(maxsize=10_000)
def _judged_text(protocol: Unit, aim: Aim) -> str:
    return _json({**dict(protocol.settings), **_aimed(aim)})


def ids(cell: Cell) -> Row:
    """The columns that say by which code a row stands where it does."""
    training, _, name = artifacts.cell_id(cell).partition("/")
    init = cell.training.init
    return {
        "cell": name,
        "training": training,
        "init": artifacts.training_id(init) if init else "",
        "code_digest": f"{training[-8:]}:{name[-8:]}",
    }


def _processes(training: Training) -> dict[str, Any]:
    """How many processes made the model, where that was not one: local batch norm depends on it."""
    known = ("processes", "sync_batch_norm")
    return {key: value for key, value in plain(training).items() if key in known}


def _trial(one: Planned) -> dict[str, Any]:
    """Which trial of the suite's search this is: a table chooses among them."""
    return {} if one.trial is None else {"trial": one.trial}


def _aimed(aim: Aim) -> dict[str, Any]:
    """On which classes alone, by which features, where they were rounded, and by whose labels a protocol judged."""
    names = {"classes": "target_classes", "features": "features"}
    found = {names[key]: value for key, value in plain(aim).items() if key in names}
    listed = {key: aim.dataset.get(key) for key in ("label_file", "root", "subset", "classes_file")}
    return found | {f"target_{key}": value for key, value in listed.items() if value}


def _json(value: Any) -> str:
    return json.dumps(plain(value) if not isinstance(value, dict) else value, sort_keys=True, default=list)


def settings_text(unit: Unit) -> str:
    """A unit's settings as JSON text."""
    return _json(dict(unit.settings))


def _unit_text(unit: Unit) -> str:
    return unit.name if not unit.settings else f"{unit.name} {settings_text(unit)}"


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """The rows as CSV, whole or not at all; numbers as their shortest exact text."""
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows(rows)
    artifacts.write_text(path, text.getvalue())
