"""A finished table, and its forms: terminal, Markdown, LaTeX, HTML, CSV. The same table gives the same bytes."""

from __future__ import annotations

import csv as csv_module
import html as html_module
import io
import textwrap
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One square: ``text`` as printed, the numbers behind it, and the footnotes that it points to."""

    text: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    expected: int = 0
    bold: bool = False
    status: str = "ok"  # ok, partial, a status of records.STATUSES, absent, unplanned, published, difference
    marks: tuple[int, ...] = ()

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Line:
    """One row; published ones stand below a rule."""

    name: str
    entries: tuple[Entry, ...]
    published: bool = False
    marks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table: ``about`` are sentences on data and statistics, ``footnotes`` are numbered from 1."""

    name: str
    title: str
    corner: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    about: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[Line, ...]:
        """The rows that were measured here."""
        return tuple(line for line in self.lines if not line.published)

    @property
    def published(self) -> tuple[Line, ...]:
        """The rows that a paper printed."""
        return tuple(line for line in self.lines if line.published)


_RULE = "published (not measured here)"


def terminal(table: Table) -> str:
    """For a terminal: box-drawing lines, bold as an escape code (which a pipe strips)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(title=None, box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column(table.corner, no_wrap=True)
    for column in table.columns:
        grid.add_column("\n".join(textwrap.wrap(column, 16)) or column, justify="right", no_wrap=True)
    for line in table.measured:
        grid.add_row(*_terminal_cells(line, Text))
    if table.published:
        grid.add_section()
        grid.add_row(Text(_RULE, style="italic"))
        for line in table.published:
            grid.add_row(*_terminal_cells(line, Text))
    buffer = io.StringIO()
    console = Console(
        file=buffer, width=1000, force_terminal=True, color_system="standard", legacy_windows=False
    )
    console.print(grid)
    drawn = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).strip("\n")
    notes = [textwrap.fill(a, 100) for a in table.about]
    notes += [
        textwrap.fill(f"[{i}] {n}", 100, subsequent_indent="    ") for i, n in enumerate(table.footnotes, 1)
    ]
    return "\n".join([table.title, drawn, "", *notes]) + "\n"


def _terminal_cells(line: Line, text: Any) -> list[Any]:
    marks = [("".join(f"[{m}]" for m in e.marks), e) for e in line.entries]
    name = line.name + "".join(f"[{m}]" for m in line.marks)
    return [text(name), *(text(e.text + m, style="bold" if e.bold else "") for m, e in marks)]


def markdown(table: Table) -> str:
    """For README and reports."""
    head = [table.corner, *table.columns]
    lines = [f"**{_md(table.title)}**", "", _md_row([_md(h) for h in head])]
    lines.append("|" + "|".join([" :-- ", *(" --: " for _ in table.columns)]) + "|")
    lines += [_md_line(line) for line in table.measured]
    if table.published:
        lines.append(_md_row([f"*{_RULE}*", *("" for _ in table.columns)]))
        lines += [_md_line(line) for line in table.published]
    notes = [_md(a) for a in table.about] + [
        f"<sup>{i}</sup> {_md(n)}" for i, n in enumerate(table.footnotes, 1)
    ]
    return "\n".join([*lines, "", "  \n".join(notes)]).rstrip() + "\n"


def _md(text: str) -> str:
    for sign in "\\|*_<>`[]":
        text = text.replace(sign, "\\" + sign)
    return text


def _md_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_line(line: Line) -> str:
    def sup(marks: tuple[int, ...]) -> str:
        return f"<sup>{','.join(map(str, marks))}</sup>" if marks else ""

    cells = [f"**{_md(e.text)}**" if e.bold else _md(e.text) for e in line.entries]
    cells = [c + sup(e.marks) for c, e in zip(cells, line.entries, strict=True)]
    return _md_row([_md(line.name) + sup(line.marks), *cells])


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "—": "---",
    "·": r"$\cdot$",
    "Δ": r"$\Delta$",
}


def latex(table: Table) -> str:
    """For a paper; needs the package booktabs."""
    width = len(table.columns) + 1
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
    ]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, [table.corner, *table.columns])) + r" \\", r"\midrule"]
    lines += [_tex_line(line) for line in table.measured]
    if table.published:
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_tex(_RULE)}}}}} \\"]
        lines += [_tex_line(line) for line in table.published]
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\smallskip",
        r"\begin{minipage}{\linewidth}\footnotesize",
    ]
    lines += [_tex(a) + r" \\" for a in table.about]
    lines += [rf"$^{{{i}}}$ {_tex(n)} \\" for i, n in enumerate(table.footnotes, 1)]
    lines[-1] = lines[-1].removesuffix(r" \\")
    return "\n".join([*lines, r"\end{minipage}", r"\end{table}"]) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def _tex_line(line: Line) -> str:
    def sup(marks: tuple[int, ...]) -> str:
        return f"$^{{{','.join(map(str, marks))}}}$" if marks else ""

    cells = [rf"\textbf{{{_tex(e.text)}}}" if e.bold else _tex(e.text) for e in line.entries]
    cells = [c + sup(e.marks) for c, e in zip(cells, line.entries, strict=True)]
    return " & ".join([_tex(line.name) + sup(line.marks), *cells]) + r" \\"


def html(table: Table) -> str:
    """For a page: one <table> with caption and scopes, notes below; no style of its own."""
    told = html_module.escape
    lines = [f'<figure class="table" id="{told(table.name)}">', "<table>"]
    lines += [f"<caption>{told(table.title)}</caption>", "<thead>"]
    heads = "".join(f'<th scope="col">{told(head)}</th>' for head in (table.corner, *table.columns))
    lines += [f"<tr>{heads}</tr>", "</thead>", "<tbody>", *map(_html_line, table.measured), "</tbody>"]
    if table.published:
        width = len(table.columns) + 1
        head = f'<tr><th scope="rowgroup" colspan="{width}">{told(_RULE)}</th></tr>'
        lines += ['<tbody class="published">', head, *map(_html_line, table.published), "</tbody>"]
    lines += ["</table>", "<figcaption>", *(f"<p>{told(a)}</p>" for a in table.about)]
    if table.footnotes:
        lines += ["<ol>", *(f"<li>{told(n)}</li>" for n in table.footnotes), "</ol>"]
    return "\n".join([*lines, "</figcaption>", "</figure>"]) + "\n"


def _html_line(line: Line) -> str:
    def sup(marks: tuple[int, ...]) -> str:
        return f"<sup>{','.join(map(str, marks))}</sup>" if marks else ""

    told = html_module.escape
    cells = [f"<b>{told(e.text)}</b>" if e.bold else told(e.text) for e in line.entries]
    cells = [f"<td>{c}{sup(e.marks)}</td>" for c, e in zip(cells, line.entries, strict=True)]
    return f'<tr><th scope="row">{told(line.name)}{sup(line.marks)}</th>{"".join(cells)}</tr>'


_FIELDS = (
    "table",
    "row",
    "column",
    "mean",
    "low",
    "high",
    "n",
    "expected",
    "status",
    "bold",
    "published",
    "text",
    "note",
)


def csv(table: Table) -> str:
    """One line a square, with unrounded numbers."""
    buffer = io.StringIO()
    writer = csv_module.writer(buffer, lineterminator="\n")
    writer.writerow(_FIELDS)
    for line in table.lines:
        for column, e in zip(table.columns, line.entries, strict=True):
            notes = "; ".join(table.footnotes[m - 1] for m in (*line.marks, *e.marks))
            numbers = ["" if v is None else repr(v) for v in (e.mean, e.low, e.high)]
            flags = [str(e.bold).lower(), str(line.published).lower()]
            writer.writerow(
                [table.name, line.name, column, *numbers, e.n, e.expected, e.status, *flags, e.text, notes]
            )
    return buffer.getvalue()
