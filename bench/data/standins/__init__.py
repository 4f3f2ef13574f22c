"""Stand-ins: small, made-up datasets in the published sets' own form on disk, so that whatever reads them can be tried.

A stand-in's folders carry ``STANDIN.json``, which nothing else has: it is never taken for the real set.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.data.standins import tables, trees, voc
from bench.records import BenchError

MARKER = "STANDIN.json"
VERSION = 1  # of what is drawn: raised when the same command writes other pixels

Writer = Callable[[Path, int, str], None]  # (root, training images a class, form)


@dataclass(frozen=True)
class _Set:
    folders: tuple[str, ...]  # below the data root, all that may hold this set
    images_per_class: int  # that suffice for the labels and validation images of the built-in suites
    write: Writer
    forms: tuple[str, ...] = ()


_SETS = {
    "cifar10": _Set(
        ("cifar-10-batches-py", "cifar-10-batches-bin"), 1400, tables.cifar10, ("python", "binary")
    ),
    "cifar100": _Set(("cifar-100-python", "cifar-100-binary"), 140, tables.cifar100, ("python", "binary")),
    "svhn": _Set(("svhn",), 1600, tables.svhn),
    "stl10": _Set(("stl10_binary",), 50, tables.stl10),
    "imagenet": _Set(("imagenet",), 3, trees.imagenet),
    "places205": _Set(("places205",), 3, trees.places205),
    "places365": _Set(("places365",), 3, trees.places365),
    "voc2007": _Set(("VOCdevkit/VOC2007",), 8, voc.voc2007),
    "voc2012": _Set(("VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"), 8, voc.voc2012),
}
NAMES: tuple[str, ...] = tuple(_SETS)


def write(name: str, root: Path, *, images_per_class: int | None = None, form: str = "") -> Path:
    """A stand-in of dataset ``name`` below ``root``, which is then its data root; returns the folder that holds it.

    :param images_per_class: of the training set; None: enough for the labels of the built-in suites. Test sets are
        smaller.
    :param form: of those in which the set is published: "python" or "binary" for CIFAR; "": the first.
    :raises BenchError: there is no stand-in or form of this name, too few images, or the set's folder holds
        something else.
    """
    if name not in _SETS:
        raise BenchError(f"there is no stand-in of {name!r}; there are: {', '.join(NAMES)}")
    made = _SETS[name]
    count = made.images_per_class if images_per_class is None else images_per_class
    if count < 2:
        raise BenchError(f"{name}: a stand-in needs at least 2 images a class, not {count}")
    if form not in {"", *made.forms}:
        raise BenchError(f"{name}: there is no form {form!r}; write {' or '.join(made.forms) or 'none'}")
    form = form or next(iter(made.forms), "")
    for folder in made.folders:
        _refuse_others(root / folder)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".standin-") as place:
        made.write(Path(place), count, form)
        written = [folder for folder in made.folders if (Path(place) / folder).is_dir()]
        for folder in written:
            _mark(Path(place) / folder, name, form, count)
        for folder in made.folders:
            if (root / folder).exists():
                shutil.rmtree(root / folder)
        for folder in written:
            (root / folder).parent.mkdir(parents=True, exist_ok=True)
            (Path(place) / folder).rename(root / folder)
    return root / written[0]


def folders(name: str) -> tuple[str, ...]:
    """Below the data root, all that may hold dataset ``name``; () where there is no stand-in of it."""
    return _SETS[name].folders if name in _SETS else ()


def is_standin(name: str, root: Path) -> bool:
    """Whether what lies below ``root`` as dataset ``name`` is a stand-in, or is one in part."""
    return name in _SETS and any((root / folder / MARKER).is_file() for folder in _SETS[name].folders)


def _mark(folder: Path, name: str, form: str, count: int) -> None:
    told = {"standin": name, "form": form, "version": VERSION, "images_per_class": count}
    text = json.dumps({**told, "files": _sizes(folder)}, indent=0)
    (folder / MARKER).write_text(text, "utf-8")


def _sizes(folder: Path) -> dict[str, int]:
    """Each file's size, but for the marker's."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {str(p.relative_to(folder)): p.lstat().st_size for p in files if p != folder / MARKER}


def _refuse_others(folder: Path) -> None:
    """Nothing is removed but what an earlier call wrote, file by file."""
    if not folder.exists() and not folder.is_symlink():
        return
    try:
        known = json.loads((folder / MARKER).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    odd = "" if known and not folder.is_symlink() else "it"
    odd = odd or next((name for name, size in _sizes(folder).items() if known.get(name) != size), "")
    if odd:
        what = "is there already" if odd == "it" else f"holds {odd}, which is not a stand-in's"
        raise BenchError(f"{folder}: {what}; nothing is written over it: name another folder")
