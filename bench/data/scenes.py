"""Rendered scenes of twelve classes: upright objects in color on textured ground and sky.

Embedded, so that everything runs anywhere. Color and background alone give little away; rotation,
position and context can be learned. What is rendered once is kept in ``BENCH_CACHE``.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.contracts import Dataset, Samples
from bench.data._files import content_name, known_split
from bench.data._layout import CLASSES
from bench.data._render import VERSION, Rendered, render_all
from bench.data.sources import Resident
from bench.records import BenchError

_SEEDS = {"train": 1, "val": 2, "test": 3}
_VALIDATION = 1000


@dataclass(frozen=True)
class Scenes(Dataset):
    """``side`` pixels; ``train`` and ``test`` images; one object an image, or 1 to ``objects`` smaller ones.

    Class labels run from 0 to 11 (with several objects: the one of which most is seen), as do those of the
    boxes; a mask holds label + 1. Boxes are pixel edges: left, top, right, bottom.
    """

    name: ClassVar[str] = "scenes"
    classes: ClassVar[int] = len(CLASSES)
    class_names: ClassVar[tuple[str, ...]] = CLASSES
    annotations: ClassVar[tuple[str, ...]] = ("class", "multilabel", "boxes", "mask")
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    side: int = 64
    train: int = 6000
    test: int = 2000
    objects: int = 1

    def __post_init__(self) -> None:
        for key, least, most in (
            ("side", 8, 1024),
            ("train", 1, 10**6),
            ("test", 1, 10**6),
            ("objects", 1, 8),
        ):
            if not least <= getattr(self, key) <= most:
                raise BenchError(f"scenes: {key} must lie in {least} to {most}, not {getattr(self, key)}")

    def load(self, split: str, root: Path) -> Samples:
        """One split, rendered unless it is kept already; ``root`` is not read."""
        known_split(self, split)
        count = {"train": self.train, "val": _VALIDATION, "test": self.test}[split]
        # A split does not hang on the size of the others: what is kept serves all of them.
        path = (
            cache_folder() / "scenes" / f"v{VERSION}-{split}-{count}-{self.side}px-{self.objects}.safetensors"
        )
        scene = _kept(path, count, self.side)
        if scene is None:
            scene = render_all(_SEEDS[split], count, self.side, self.objects)
            _keep(path, scene)
        return _samples(content_name(self, split, VERSION), scene)


def cache_folder() -> Path:
    """Where what can be made again is kept: ``BENCH_CACHE``, else the user's cache folder."""
    base = os.environ.get("BENCH_CACHE")
    return Path(base) if base else Path.home() / ".cache" / "representation-bench"


def _samples(name: str, scene: Rendered) -> Samples:
    counts: list[int] = scene.counts.tolist()
    parts = [torch.split(t, counts) for t in (scene.boxes, scene.labels, scene.difficult)]
    boxes = [{"boxes": b, "labels": c, "difficult": d} for b, c, d in zip(*parts, strict=True)]
    main = [
        c[a.argmax()] if len(c) else torch.tensor(-1)
        for c, a in zip(parts[1], torch.split(scene.areas, counts), strict=True)
    ]
    return Samples(
        name,
        Resident(scene.images),
        labels=torch.stack(main),
        multilabel=_multilabel(scene),
        boxes=boxes,
        masks=list(scene.masks.unbind()),
    )


def _multilabel(scene: Rendered) -> Tensor:
    """int8 (N, 12): +1 present, 0 present but difficult, -1 absent, as in VOC."""
    image = torch.arange(len(scene.counts)).repeat_interleave(scene.counts)
    out = torch.full((len(scene.counts), len(CLASSES)), -1, dtype=torch.int8)
    for difficult, value in ((True, 0), (False, 1)):
        rows = scene.difficult == difficult
        out[image[rows], scene.labels[rows]] = value
    return out


def _checksums(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: zlib.crc32(t.contiguous().numpy().tobytes()) for name, t in sorted(tensors.items())}


def _kept(path: Path, count: int, side: int) -> Rendered | None:
    """What was rendered before, or None where there is nothing or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {})["crc32"])
            tensors = {field.name: file.get_tensor(field.name) for field in fields(Rendered)}
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    if _checksums(tensors) != found or tensors["images"].shape != (count, 3, side, side):
        return None
    return Rendered(**tensors)


def _keep(path: Path, scene: Rendered) -> None:
    tensors = {name: t.contiguous() for name, t in asdict(scene).items()}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"crc32": json.dumps(_checksums(tensors))})
        temporary.replace(path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):  # what cannot be kept costs time, nothing else
            temporary.unlink(missing_ok=True)
