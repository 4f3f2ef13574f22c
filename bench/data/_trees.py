"""Images in folders or in tars, and where the splits of a dataset lie: what can be said without torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data import _listing
from bench.data._tars import Index, indexed
from bench.facts import Facts
from bench.records import BenchError


def expanded(text: str, where: str) -> Path:
    """A path with ``~`` and environment variables written out.

    :raises BenchError: a variable that is not set here.
    """
    found = os.path.expandvars(text)
    if "$" in found:
        raise BenchError(f"{where} = {text!r}: a variable in it is not set here; set it, or write the folder")
    return Path(found).expanduser()


def tars_of(place: Path) -> list[Path]:
    """The tars of a place: itself, what its wildcards match, or those in a folder that holds nothing else.

    Of ``train``, also ``train.tar`` and the shards ``train-*.tar`` or ``train_*.tar`` beside it.
    """
    if place.suffix == ".tar" or any(sign in place.name for sign in "*?["):
        found = sorted(place.parent.glob(place.name))
    elif place.is_dir():
        found = [] if _listing.folders(place) else sorted(place.glob("*.tar"))
    else:
        shapes = (f"{place.name}.tar", f"{place.name}-*.tar", f"{place.name}_*.tar")
        found = [tar for shape in shapes for tar in sorted(place.parent.glob(shape))]
    return [tar for tar in found if not tar.name.startswith(".")]


def is_there(place: Path) -> bool:
    """Whether a split's folder or tars exist."""
    return place.is_dir() or bool(tars_of(place))


def in_tars(tars: Sequence[Path]) -> tuple[list[Index], list[str], NDArray[np.int64]]:
    """The indices of some tars; all names in them without common outer folders, and the order of ImageFolder."""
    found = indexed(tars)
    names = [str(name) for index in found for name in index.names]
    depth = _outer([name.split("/") for name in names])
    names = [name.split("/", depth)[depth] for name in names]
    if any((index.labels >= 0).any() for index in found):  # shards say their labels, and are shuffled
        return found, names, np.arange(len(names))
    order = sorted(range(len(names)), key=lambda i: _place(names[i]))
    return found, [names[i] for i in order], np.array(order, np.int64)


def _outer(parts: Sequence[Sequence[str]]) -> int:
    """How many outer folders all names share, a class folder not counted."""
    depth, least = 0, min(map(len, parts))
    while depth < least - 2 and len({part[depth] for part in parts}) == 1:
        depth += 1
    return depth


def _place(name: str) -> tuple[str, str, str]:
    """Sorts as ImageFolder does: by class, then by folder, then by file."""
    folder, _, file = name.rpartition("/")
    return name.partition("/")[0], folder, file


def classes_in(place: Path) -> list[str]:
    """The names of the classes of a split, sorted; those of shards are numbers.

    :raises BenchError: neither a folder nor tars are there.
    """
    tars = tars_of(place)
    if not tars:
        return _listing.folders(place)
    found, names, _ = in_tars(tars)
    labels = np.concatenate([index.labels for index in found])
    if (labels >= 0).any():
        return [str(label) for label in range(int(labels.max()) + 1)]
    return sorted({name.partition("/")[0] for name in names})


# ---- what settings say -----------------------------------------------------------------------------


def listed_classes(settings: Mapping[str, Any], where: str) -> list[str]:
    """The classes that ``subset`` or ``classes_file`` (the first word of each line) name, sorted; [] is all.

    :raises BenchError: a missing or empty file, a class twice, or both settings.
    """
    subset, file = list(settings.get("subset") or ()), str(settings.get("classes_file") or "")
    if subset and file:
        raise BenchError(f"{where}: write subset or classes_file, not both")
    if file:
        subset = _words(expanded(file, f"{where}.classes_file"))
    twice = next((name for name in subset if subset.count(name) > 1), None)
    if twice is not None:
        raise BenchError(f"{where}: class {twice!r} is named twice; name it once")
    return sorted(subset)


def _words(path: Path) -> list[str]:
    try:
        found = [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: cannot be read as a list of classes, one a line") from error
    if not found:
        raise BenchError(f"{path}: names no class; write one a line")
    return found


def folder_root(settings: Mapping[str, Any], root: Path) -> Path:
    """Where a ``folder`` lies: its root, below the data root unless it is absolute.

    :raises BenchError: there is no such folder.
    """
    found = root / expanded(settings["root"], "folder: root")
    if not found.is_dir():
        raise BenchError(f"{found}: there is no such folder; write the folder of your images as folder.root")
    return found


def folder_places(settings: Mapping[str, Any], root: Path) -> dict[str, Path]:
    """Where the training and the test images of a ``folder`` lie; the same place where a fraction is drawn.

    :raises BenchError: one of them is not there.
    """
    base = folder_root(settings, root)
    if settings["test_fraction"]:
        place = base / settings["train"] if settings["train"] else base
        return {"train": place, "test": place}
    found = {"train": base / (settings["train"] or "train")}
    tests = [
        base / name for name in ([settings["test"]] if settings["test"] else ["test", "val", "validation"])
    ]
    found["test"] = next((place for place in tests if is_there(place)), tests[0])
    for split, place in found.items():
        if not is_there(place):
            raise BenchError(
                f"{place}: missing; expected a folder a class, or tars; write folder.{split} = the name of that "
                "folder, or test_fraction = 0.2 where there is one folder for both"
            )
    return found


def folder_facts(settings: Mapping[str, Any], root: Path | None, known: Facts) -> Facts:
    """Classes of a ``folder``: those that are listed, else its class folders."""
    listed = _said(settings, "folder")
    if root is None:
        return dataclasses.replace(known, classes=len(listed) or None, class_names=tuple(listed))
    place = folder_places(settings, root)["train"]
    names = chosen(listed, classes_in(place), place)
    return dataclasses.replace(known, classes=len(names), class_names=tuple(names))


def subset_facts(settings: Mapping[str, Any], _root: Path | None, known: Facts) -> Facts:
    """Classes of a published set: all, or those that are listed."""
    listed = _said(settings, "subset")
    return dataclasses.replace(known, classes=len(listed) or known.classes, class_names=tuple(listed))


def _said(settings: Mapping[str, Any], where: str) -> list[str]:
    """The listed classes; a list whose file is elsewhere, and only its digest here, says none."""
    file = settings.get("classes_file")
    if file and settings.get("classes_file_sha256") and not expanded(file, where).is_file():
        return []
    return listed_classes(settings, where)


def chosen(listed: Iterable[str], there: Sequence[str], place: Path) -> list[str]:
    """The listed classes, or all that are there.

    :raises BenchError: there are none, or one is not there.
    """
    if not there:
        raise BenchError(f"{place}: no class folders; expected a folder a class, with its images in it")
    names = list(listed)
    missing = sorted(set(names) - set(there))
    if missing:
        raise BenchError(f"{place}: there is no class {missing[0]!r} (of {len(missing)} that are listed)")
    return names or list(there)
