"""The lecture's tables and figures from whatever results there are, measured beside published.

``bench/lecture.toml`` says what they are. What is not there yet is named, with the reason.
"""

from bench.lecture.document import document
from bench.lecture.figures import Drawn, figure, image
from bench.lecture.parts import Rows
from bench.lecture.specs import Spec, find, names, specs
from bench.lecture.tables import Shown, table

__all__ = ["Drawn", "Rows", "Shown", "Spec", "document", "figure", "find", "image", "names", "specs", "table"]
