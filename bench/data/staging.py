"""Files copied to a node's own disk, once a node, and read from there: for clusters whose file system counts files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.data._telling import Telling
from bench.data._trees import expanded
from bench.records import BenchError

_COPIERS = 16  # threads: a network's latency is hidden, its bandwidth shared
_LOOKED_AT = 1000  # files whose size and time tell whether a finished copy is still one


def staged(base: Path, names: Sequence[str], stage: str, where: str) -> Path:
    """The folder below ``stage`` in which ``names`` lie as they do below ``base``.

    The first process of a node copies, others wait; an interrupted copy goes on where it was.

    :param stage: a folder, environment variables in it written out: ``$SLURM_TMPDIR``; "": no copy, ``base`` itself.
    :param where: the setting, which begins the error line.
    :raises BenchError: a variable that is not set, a disk that is full, a file that cannot be read.
    """
    if not stage:
        return base
    known = hashlib.sha256(str(base.absolute()).encode()).hexdigest()[:10]
    target = expanded(stage, where) / f"bench-{known}" / base.name
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent / "lock"):
            done = target.parent / f"{_mark(base, names)}.done"
            if not done.exists():
                _copy(base, names, target)
                done.touch()
    except OSError as error:
        raise BenchError(
            f"{where}: {error.filename or base} cannot be copied to {target} ({error.strerror}); name a folder "
            "with room for the data set, or leave stage out"
        ) from error
    return target


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mark(base: Path, names: Sequence[str]) -> str:
    """What a finished copy is known by: all names, and size and time of some of the files."""
    found = hashlib.sha256("\n".join(names).encode(errors="surrogateescape"))
    for name in names[:: max(1, len(names) // _LOOKED_AT)]:
        stat = (base / name).stat()
        found.update(f" {stat.st_size} {stat.st_mtime_ns}".encode())
    return found.hexdigest()[:16]


def _copy(base: Path, names: Sequence[str], target: Path) -> None:
    telling = Telling(f"copying {base} to {target}", len(names))
    for folder in {os.path.dirname(name) for name in names}:  # noqa: PTH120 - a million names
        (target / folder).mkdir(parents=True, exist_ok=True)

    def copy(name: str) -> None:
        _copy_one(base / name, target / name)
        telling.step()

    with ThreadPoolExecutor(_COPIERS) as pool:
        try:
            for _ in pool.map(copy, names):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    telling.end()


def _copy_one(source: Path, target: Path) -> None:
    """Whole or not at all; what is there with the same size and time stays."""
    wanted = source.stat()
    with contextlib.suppress(FileNotFoundError):
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns):
            return
    temporary = target.with_name(f".{uuid.uuid4().hex}")
    try:
        shutil.copyfile(source, temporary)
        os.utime(temporary, ns=(wanted.st_atime_ns, wanted.st_mtime_ns))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
