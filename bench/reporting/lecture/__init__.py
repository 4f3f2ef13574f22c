"""The lecture's tables and figures from whatever results there are, measured beside published.

``lecture.toml`` says what they are. What is not there yet is named, with the reason.
"""

from bench.reporting.lecture.document import document
from bench.reporting.lecture.figures import Drawn, figure, image
from bench.reporting.lecture.parts import Rows
from bench.reporting.lecture.specs import Spec, find, names, specs
from bench.reporting.lecture.tables import Shown, table

__all__ = ["Drawn", "Rows", "Shown", "Spec", "document", "figure", "find", "image", "names", "specs", "table"]
