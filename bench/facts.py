"""What planning asks of a dataset: constants of its class, or what its settings and its folder say. Free of torch."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Facts:
    """A dataset with its settings: ``classes`` is None where only its files know, and these are not here."""

    classes: int | None = None
    color: bool = True
    flip: bool = True
    annotations: tuple[str, ...] = ("class",)
    image_side: int | None = None  # None where sizes vary
    class_names: tuple[str, ...] = ()


# settings, the data root (None: files are not to be looked at), what the class says -> what holds
Teller: TypeAlias = "Callable[[Mapping[str, Any], Path | None, Facts], Facts]"


def tell(teller: str, settings: Mapping[str, Any], root: Path | None, known: Facts) -> Facts:
    """The facts of a dataset with these settings.

    :param teller: ``module:function`` of a :data:`Teller` that loads no torch; "": the class's constants hold.
    :raises BenchError: with a root, what is missing below it or contradicts the settings.
    """
    if "side" in settings:
        known = dataclasses.replace(known, image_side=settings["side"])
    if not teller:
        return known
    module, _, function = teller.partition(":")
    found: Teller = getattr(importlib.import_module(module), function)
    return found(settings, root, known)
