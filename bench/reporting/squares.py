"""The squares of a table: text, interval, what is missing and why, which is best, differences to a baseline."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from bench.records import BenchError
from bench.registry import suggest
from bench.reporting import statistics
from bench.reporting.columns import Key, codes, combine
from bench.reporting.render import Entry, Line
from bench.reporting.selection import Query, Selection
from bench.reporting.wording import decimals, name_of

DASH = "—"
_REASONS = 3
_RANDOM = {"random", "random_rescaled"}  # the methods that learn nothing from images
_TOO_GOOD = "warning: random weights are best here: was the rest trained, and were its weights loaded?"


@dataclass
class Footnotes:
    """Numbered texts, each once."""

    texts: list[str] = field(default_factory=list)

    def __call__(self, text: str) -> int:
        """The number of a footnote."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


@dataclass
class Column:
    """A column of measured numbers; ``what`` is said where a run has no such number."""

    head: str
    key: Key
    source: Selection
    lower: bool
    what: str
    best: bool = False


@dataclass
class Grid:
    """The measured part of a table as it is filled in."""

    rows: list[Key]
    columns: list[Column]
    entries: dict[Key, list[Entry]]
    heads: list[str]
    footnotes: Footnotes
    digits: int | None
    told: list[str] = field(default_factory=list)
    decimals: dict[tuple[str, Key], int] = field(default_factory=dict)  # of a column, by its head and key

    @property
    def query(self) -> Query:
        """What was asked for."""
        return self.columns[0].source.query

    def runs(self, row: Key, column: Column) -> dict[Key, float]:
        """The values of a square by run."""
        return column.source.runs.get((row, column.key), {})

    def lines(self) -> list[Line]:
        """The finished rows."""
        counts = {row: max((e.expected for e in self.entries[row]), default=0) for row in self.rows}
        several = max(counts.values(), default=0) > 1
        found = []
        for row in self.rows:
            single = several and counts[row] == 1 and any(e.n for e in self.entries[row])
            marks = (self.footnotes("one model: a single run is planned"),) if single else ()
            found.append(Line(name_of(row, self.query.rows), tuple(self.entries[row]), marks=marks))
        return found

    def sentences(self) -> list[str]:
        """How the numbers are to be read."""
        kinds = {k for c in self.columns for k in _kinds(c)}
        found = []
        if kinds == {"one run"}:
            found.append("One run each: no interval.")
        elif kinds:
            bca = "; [low, high]: BCa bootstrap interval, from 20 runs up" if "bca" in kinds else ""
            found.append(f"Mean ± half of the Student-t 95% interval over runs (seed and label split){bca}.")
        if any(e.status == "partial" for line in self.entries.values() for e in line):
            found.append("(k/n): k of n planned runs have a number.")
        if any(e.bold for line in self.entries.values() for e in line):
            found.append(
                "Bold: best of its column, and those whose paired difference to it is not significant."
            )
        return [*found, *self.told]

    # ---- differences ------------------------------------------------------------------------------

    def add_differences(self, baseline: str) -> None:
        """A column with the paired difference to the baseline: of the best layer where it is shown, else of each."""
        shown = [i for i, c in enumerate(self.columns) if c.best] or list(range(len(self.columns)))
        bases = {row: self._base(row, baseline) for row in self.rows}
        places = [(row, i) for i in shown for row in self.rows]
        compared = {
            p: self._difference(p[0], bases[p[0]], self.columns[p[1]]) for p in places if p[0] != bases[p[0]]
        }
        family = [
            p for p in compared if self.entries[p[0]][p[1]].status not in {"skipped", "absent", "unplanned"}
        ]
        adjusted = dict(zip(family, statistics.holm([compared[p].p for p in family]), strict=True))
        for row, i in places:
            significant = adjusted.get((row, i), 1.0) < 1 - statistics.LEVEL
            self.entries[row].append(
                self._difference_entry(compared.get((row, i)), self.columns[i], star=significant)
            )
        many = len(shown) > 1
        self.heads += [f"Δ {self.columns[i].head}" if many else f"Δ {baseline}" for i in shown]
        self.told.append(
            f"Δ: paired difference to {baseline} with its Student-t 95% interval; * excludes 0 with at least "
            f"{statistics.CLAIM_PAIRS} pairs, after Holm over the {len(family)} differences of this table."
        )

    def _base(self, row: Key, baseline: str) -> Key:
        at = self.query.rows.index("label") if "label" in self.query.rows else 0
        known = [r for r in self.rows if r[at] == baseline]
        if not known:
            names = {r[at] for r in self.rows}
            raise BenchError(
                f"{self.query.place}: baseline {baseline!r} is not a row{suggest(baseline, names)}"
            )
        return max(known, key=lambda r: sum(a == b for a, b in zip(r, row, strict=True)))

    def _difference(self, row: Key, base: Key, column: Column) -> statistics.Difference:
        return statistics.paired(self.runs(row, column), self.runs(base, column))

    def _difference_entry(self, d: statistics.Difference | None, column: Column, *, star: bool) -> Entry:
        if d is None:
            return Entry("baseline", status="difference")
        if d.pairs == 0:
            return Entry(DASH, status="difference", marks=(self.footnotes("no pair of runs"),))
        digits = _digits(self, column)
        if d.half is None:
            mark = self.footnotes("one pair of runs: no interval")
            return Entry(f"{d.mean:+.{digits}f}", d.mean, n=1, status="difference", marks=(mark,))
        text = f"{d.mean:+.{digits}f} ± {d.half:.{digits}f}{'*' if star and d.claim else ''}"
        return Entry(text, d.mean, d.low, d.high, d.pairs, status="difference")


def grid(found: Selection, best: Selection | None, footnotes: Footnotes, digits: int | None) -> Grid:
    """All squares of the measured rows, the best of each column in bold."""
    columns = [_column(found, key) for key in found.columns]
    columns = columns or [
        Column("(no result yet)", ("",) * len(found.query.columns), found, lower=False, what="")
    ]
    if best is not None:
        columns += [_best_column(best, key) for key in best.columns or [()]]
    made = Grid(found.rows, columns, {}, [c.head for c in columns], footnotes, digits)
    for row in found.rows:
        made.entries[row] = [_entry(made, row, column) for column in columns]
    for i, column in enumerate(columns):
        winners = _winners(made, column)
        note = (footnotes(_TOO_GOOD),) if _only_random(found, winners) else ()
        for row in winners:
            entry = made.entries[row][i]
            made.entries[row][i] = dataclasses.replace(entry, bold=True, marks=(*entry.marks, *note))
    return made


# ---- one square ------------------------------------------------------------------------------------


def _column(found: Selection, key: Key) -> Column:
    columns = found.query.columns
    metric = key[columns.index("metric")] if "metric" in columns else "/".join(found.query.metrics)
    what = "no such layer" if "layer" in columns else "this metric was not measured"
    head = name_of(key, columns, "features" if "layer" in columns and found.runs else "(no result yet)")
    return Column(head, key, found, found.query.lower_is_better(metric), what)


def _best_column(best: Selection, key: Key) -> Column:
    query = best.query
    metric = key[query.columns.index("metric")] if "metric" in query.columns else "/".join(query.metrics)
    head = " · ".join(filter(None, (name_of(key, query.columns), "best layer (chosen on validation)")))
    what = "no validation rows: nothing to choose the layer on"
    return Column(head, key, best, query.lower_is_better(metric), what, best=True)


def _entry(made: Grid, row: Key, column: Column) -> Entry:
    runs, planned = made.runs(row, column), column.source.expected(row, column.key)
    missing = Counter(
        why or (column.what if not runs else "no number") for r, why in planned.items() if r not in runs
    )
    if not runs:
        return _gap(made, column, planned, missing)
    found = statistics.interval(list(runs.values()))
    expected = max(len(planned), len(runs))
    notes = [_told(missing, expected)] if missing else []
    notes += column.source.warned.get((row, column.key), [])[:_REASONS]
    marks = tuple(made.footnotes(note) for note in notes)
    text = _number(found, _digits(made, column)) + (f" ({found.n}/{expected})" if missing else "")
    status = "partial" if missing else "ok"
    return Entry(text, found.mean, found.low, found.high, found.n, expected, status=status, marks=marks)


def _gap(made: Grid, column: Column, planned: dict[Key, str], missing: Counter[str]) -> Entry:
    """A dash with its reason."""
    if not planned:
        return Entry(DASH, status="unplanned", marks=(made.footnotes("not planned in this suite"),))
    why = next((w for w in missing if w != column.what), "")
    status = why.partition(":")[0] if why else "absent"
    told = _told(missing, len(planned)) if why else column.what or "no result yet"
    return Entry(DASH, expected=len(planned), status=status, marks=(made.footnotes(told),))


def _told(missing: Counter[str], expected: int) -> str:
    """As "failed: out of labels" or "2 of 5 pending; 1 of 5 failed: ..."."""
    if len(missing) == 1 and missing.total() == expected:
        return next(iter(missing))
    parts = [f"{count} of {expected} {why}" for why, count in list(missing.items())[:_REASONS]]
    return "; ".join(parts) + (f"; and {len(missing) - _REASONS} more" if len(missing) > _REASONS else "")


def _number(found: statistics.Interval, digits: int) -> str:
    text = f"{found.mean:.{digits}f}"
    if found.kind == "bca":
        return f"{text} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return text if found.half is None else f"{text} ± {found.half:.{digits}f}"


def _digits(made: Grid, column: Column) -> int:
    if made.digits is not None:
        return made.digits
    known = column.head, column.key
    if known not in made.decimals:
        values = [abs(v) for row in made.rows for v in made.runs(row, column).values()]
        made.decimals[known] = decimals(max(values, default=100.0))
    return made.decimals[known]


def _kinds(column: Column) -> list[str]:
    lengths = {len(runs) for (_, key), runs in column.source.runs.items() if key == column.key}
    return ["one run" if n == 1 else "bca" if n >= statistics.BCA_RUNS else "t" for n in sorted(lengths)]


def _only_random(found: Selection, winners: list[Key]) -> bool:
    """Whether nothing that learned is as good as random weights, in a column where something is compared."""
    methods: dict[Key, set[str]] = {}
    code, rows = combine(found.frame, found.query.rows)
    method, names = codes(found.frame, "method")
    for r, m in set(zip(code.tolist(), method.tolist(), strict=True)):
        methods.setdefault(rows[r], set()).add(names[m])
    return bool(winners) and all(methods[row] <= _RANDOM for row in winners)


def _winners(made: Grid, column: Column) -> list[Key]:
    """The best row and those that tie with it; nobody wins alone in a column."""
    filled = {row: runs for row in made.rows if (runs := made.runs(row, column))}
    if len(filled) <= 1:
        return []
    sign = -1.0 if column.lower else 1.0
    means = {row: sign * float(np.mean(list(runs.values()))) for row, runs in filled.items()}
    best = max(means, key=lambda row: means[row])

    def ties(row: Key) -> bool:
        d = statistics.paired(filled[best], filled[row])
        return means[row] == means[best] or (d.low is not None and not d.differs)

    return [row for row in filled if row == best or ties(row)]
