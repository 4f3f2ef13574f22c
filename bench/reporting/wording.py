"""The sentences below a table or figure, and the names of rows and columns."""

from __future__ import annotations

from bench.reporting.columns import Key, codes
from bench.reporting.selection import Selection

EMBEDDED = {"digits": "real handwritten digits", "scenes": "rendered images"}
_PERCENT = 1.5  # what grows larger is taken for percent
_PLAIN = (
    "label",
    "method",
    "backbone",
    "variant",
    "dataset",
    "train_dataset",
    "protocol",
    "layer",
    "metric",
    "split",
)
_CHOICES = {
    "last": "",
    "best_layer": "; the layer of each run is chosen on its validation images",
    "best_step": "; the step of each run is chosen on its validation images",
    "oracle_layer": "; ORACLE: the layer of each run is chosen on the test images, an upper limit and not a result",
    "oracle_step": "; ORACLE: the step of each run is chosen on the test images, an upper limit and not a result",
}


def name_of(key: Key, columns: Key, empty: str = "") -> str:
    """A row's or column's key in words."""
    parts = []
    for value, column in zip(key, columns, strict=True):
        if not value:
            continue
        if column in {"labels", "target_labels"}:
            parts.append(f"{value} labels")
        elif column in _PLAIN:
            parts.append(value)
        else:
            parts.append(f"{column.rpartition(':')[2]}={value}")
    return " · ".join(parts) or empty


def data_sentences(found: Selection) -> list[str]:
    """On what data the numbers were measured, and what they are."""
    trained, judged = (_present(found, c) for c in ("train_dataset", "dataset"))
    same = "Trained and judged on " + _listed(trained)
    data = same if trained == judged else f"Trained on {_listed(trained)}; judged on {_listed(judged)}"
    inside = [f"{d} ({EMBEDDED[d]})" for d in dict.fromkeys((*trained, *judged)) if d in EMBEDDED]
    data += f". Embedded in the package: {_listed(inside)}" if inside else ""
    return [f"{data}.", _metric_sentence(found), *_search_sentence(found), *_mixed_sentences(found)]


def _search_sentence(found: Selection) -> list[str]:
    if not found.trials:
        return []
    told = f"Of {found.trials} trials of each method's settings, the one is shown that is best in the mean over runs"
    if found.query.trials == "oracle":
        return [f"{told} on the TEST images: ORACLE, an upper limit and not a result."]
    several = set(found.query.columns) & {"layer", "metric"}  # of one model: they are shown of one trial
    return [f"{told} on validation images{'' if several else ', for each column'}."]


def _mixed_sentences(found: Selection) -> list[str]:
    return [f"MIXED, as asked for: {told}." for told in found.mixed.values()]


def _metric_sentence(found: Selection) -> str:
    query = found.query
    metrics = query.metrics or tuple(dict.fromkeys(c[query.columns.index("metric")] for c in found.columns))
    ways = {m: "lower" if query.lower_is_better(m) else "higher" for m in metrics if m}
    told = (
        ", ".join(
            f"{m}{' (100 - top1)' if found.mirrored and m == 'error' else ''}, {w} is better"
            for m, w in ways.items()
        )
        or "No number yet"
    )
    name, _, count = query.select.partition(":")
    choice = f"; median of the last {count} steps" if name == "median" else _CHOICES.get(query.select, "")
    return f"{told}; {query.split} images{choice}."


def _present(found: Selection, column: str) -> list[str]:
    code, names = codes(found.frame, column)
    return [names[i] for i in dict.fromkeys(code.tolist()) if names[i]]


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))) or "unknown data"


def decimals(largest: float) -> int:
    """One decimal for percent, three for what lies in [0, 1]."""
    return 1 if largest > _PERCENT else 3
