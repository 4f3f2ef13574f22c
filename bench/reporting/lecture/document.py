"""The whole lecture as one text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.reporting.lecture.figures import Drawn
from bench.reporting.lecture.specs import Spec
from bench.reporting.lecture.tables import Shown
from bench.reporting.render import markdown


def document(shown: Sequence[Shown], drawn: Sequence[Drawn]) -> str:
    """The whole lecture as one Markdown text, with its figures beside it."""
    lines = [
        "# lecture",
        "",
        "The lecture's tables and figures, measured beside published (`bench lecture`).",
        "",
    ]
    for one in shown:
        lines += [f"## {one.spec.name}", ""]
        lines += [markdown(one.exhibit.table)] if one.exhibit else _absent(one.spec, one.missing)
    for figure_ in drawn:
        lines += [f"## {figure_.spec.name}", ""]
        if figure_.path is None:
            lines += _absent(figure_.spec, [figure_.missing])
        else:
            lines += [f"![{figure_.spec.title}]({figure_.path.name})", "", figure_.spec.about, ""]
    return "\n".join(lines).rstrip() + "\n"


def _absent(spec: Spec, missing: Iterable[str]) -> list[str]:
    return [
        f"**{spec.title}**",
        "",
        spec.about,
        "",
        *(f"Not there: {m}." for m in missing),
        "",
    ]
