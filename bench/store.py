"""Outcomes to rows: what lies in the runs folder, as the long table of a suite."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import artifacts
from bench.planning.plan import Planned
from bench.records import COLUMNS, Cell, Training, Unit, plain

Row = dict[str, Any]

_OUTCOME = ("status", "reason", "attempt", "eval_seconds", "device", "commit", "versions")


def collect(suite: str, planned: Iterable[Planned], runs: Path) -> list[Row]:
    """One row a number, and one for every planned cell that has none, with its status and reason."""
    statuses: dict[Training, dict[str, Any]] = {}
    rows: list[Row] = []
    refused = artifacts.read_json(artifacts.why_not(runs)) or {}
    for one in planned:
        training = one.cell.training
        if training not in statuses:
            statuses[training] = artifacts.read_json(artifacts.folder(runs, training).status) or {}
        found = _cell_rows(suite, one, statuses[training], runs)
        reason = refused.get(artifacts.cell_id(one.cell), "") if refused else ""
        rows += [_explained(row, reason) for row in found] if reason else found
    return rows


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


def _cell_rows(suite: str, one: Planned, status: Mapping[str, Any], runs: Path) -> list[Row]:
    base = _base(suite, one, status)
    if one.cell.skip:
        return [{**base, "status": "skipped", "reason": one.cell.skip}]
    files, name = artifacts.folder(runs, one.cell.training), artifacts.cell_name(one.cell)
    outcome = artifacts.read_json(files.cell(name)) or artifacts.read_json(files.failed(name))
    if outcome is None:
        training = status.get("status", "pending")
        if training in {"ok", "pending"}:
            return [{**base, "status": "pending"}]
        return [{**base, **{k: status.get(k, "") for k in _OUTCOME}}]
    base |= {k: outcome.get(k, "") for k in _OUTCOME}
    return [{**base, **row} for row in outcome.get("rows", [])] or [base]


def _base(suite: str, one: Planned, status: Mapping[str, Any]) -> Row:
    cell, training = one.cell, one.cell.training
    data = {
        k: v
        for k, v in plain(training.data).items()
        if k not in {"dataset", "labels", "label_split", "label_noise"}
    }
    data["dataset"] = dict(training.data.dataset.settings)
    info = status.get("data", {})
    row: Row = dict.fromkeys(COLUMNS, "")
    row |= {
        "suite": suite,
        "label": one.label,
        "method": training.method.name,
        "method_settings": _json({**dict(training.method.settings), **_processes(training), **_trial(one)}),
        "backbone": _unit_text(training.backbone),
        "variant": cell.variant,
        "train_dataset": training.data.dataset.name,
        "labels": training.data.labels,
        "label_split": training.data.label_split,
        "label_noise": training.data.label_noise,
        "data_settings": _json(data),
        "split_digest": info.get("split_digest", ""),
        "budget": training.budget,
        "seed": training.seed,
        "precision": training.precision,
        "threads": training.threads,
        "protocol": cell.protocol.name,
        "protocol_settings": _json({**dict(cell.protocol.settings), **_aimed(cell)}),
        "dataset": cell.aim.dataset.name,
        "target_labels": cell.aim.labels,
        "target_split": cell.aim.label_split,
        "train_seconds": status.get("train_seconds", ""),
        "images_seen": status.get("images_seen", ""),
        "peak_memory_mb": status.get("peak_memory_mb", ""),
    }
    return row | ids(cell)


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


def _aimed(cell: Cell) -> dict[str, Any]:
    """On which classes alone, by which features, where they were rounded, and by whose labels a protocol judged."""
    names = {"classes": "target_classes", "features": "features"}
    found = {names[key]: value for key, value in plain(cell.aim).items() if key in names}
    listed = {key: cell.aim.dataset.get(key) for key in ("label_file", "root", "subset", "classes_file")}
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
