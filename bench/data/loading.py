"""Data workers: processes that read and frame batches ahead of who trains on them, and outlive an epoch.

They are torch's own loader, told anew what to read at each pass. They come from a fork server, never from a
fork of this process, whose threads may hold locks that nobody would release in the child (cpython#91776).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import util
from typing import Any, Protocol, runtime_checkable

import cloudpickle
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from bench.augment import unit
from bench.contracts import Frame
from bench.distributed import LostError
from bench.draws import Draws
from bench.records import BenchError

SILENT = 30  # seconds, in which this process ran: so long may one image take
_START = 120  # seconds, in which a first process imports torch
_POLL = 5  # seconds between two looks at workers that deliver nothing
_KEPT = 3  # idle groups of workers: training, validation and test images of one evaluation
# Of the server that workers come from; its tracker else tells of what a killed process left, and then removes it.
_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore:resource_tracker"}
_SOCKET = 107 - len("/pymp-12345678/listener-12345678")  # bytes that a socket's folder may have


@runtime_checkable
class Reader(Protocol):
    """Anything that knows its images by number; it is sent to data workers by pickle."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> Tensor:
        """Image ``i`` as uint8 (3, H, W).

        :raises BenchError: a missing or corrupt file, by its path.
        """
        ...


@dataclass(frozen=True)
class Request:
    """One batch to be read: which images, and the draws of which epoch.

    :param frames: the views, pickled once for a whole pass.
    """

    images: tuple[int, ...]
    frames: bytes
    seed: int
    epoch: int


def requests(
    batches: Iterable[Tensor], frames: Sequence[Frame], seed: int, epochs: Iterable[int]
) -> Iterator[Request]:
    """What :func:`batches` reads, in order."""
    packed = cloudpickle.dumps(list(frames))
    return (
        Request(tuple(batch.tolist()), packed, seed, e) for batch, e in zip(batches, epochs, strict=False)
    )


def here(reader: Reader, wanted: Iterable[Request]) -> Iterator[list[Tensor]]:
    """The batches, read by this process: one tensor (n, 3, h, w) a frame for each."""
    for request in wanted:
        yield _read(reader, request)


def ahead(reader: Reader, wanted: Iterable[Request], workers: int, *, pin: bool) -> Iterator[list[Tensor]]:
    """The batches, read ahead by ``workers`` processes, which stay for the next pass over the same reader.

    :raises LostError: a worker died, could not start or was silent.
    """
    group = _taken(reader, workers, pin)
    try:
        yield from group.batches(wanted)
    finally:
        _give_back(group)


def _read(reader: Reader, request: Request, tick: Tensor | None = None) -> list[Tensor]:
    """One batch: one tensor a frame.

    :param tick: int64 (2,): images read so far and the one at hand, for who waits.
    """
    frames = _frames(request.frames)
    views: list[list[Tensor]] = [[] for _ in frames]
    for i in request.images:
        if tick is not None:
            tick[0] += 1
            tick[1] = i
        image, index = reader.read(i)[None], torch.tensor([i])
        for v, frame in enumerate(frames):
            views[v].append(frame(image, Draws(request.seed, request.epoch, index, stream=v))[0])
    return [_stacked(number, view) for number, view in enumerate(views)]


@functools.lru_cache(8)
def _frames(packed: bytes) -> list[Frame]:
    frames: list[Frame] = pickle.loads(packed)  # noqa: S301 - our own, from the process that started us
    return frames


def _stacked(number: int, views: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(view.shape) for view in views})
    if len(shapes) > 1:
        raise BenchError(f"view {number} has images of {shapes[0]} and {shapes[-1]}: crop them to one size")
    if len({view.dtype for view in views}) > 1:  # some came as bytes, where there was nothing to resample
        views = [unit(view) for view in views]
    return torch.stack(views)


# ---- groups of workers ---------------------------------------------------------------------------


class _Batches(TorchDataset[list[Tensor] | BenchError]):
    """What a worker does; an error comes back as a value, since a loader would wrap it in its traceback.

    :param ticks: int64 (workers, 2), shared: see :func:`_read`.
    """

    def __init__(self, reader: Reader, ticks: Tensor) -> None:
        self.packed, self.ticks = (
            cloudpickle.dumps(reader),
            ticks,
        )  # also of a class that the program itself defines

    @functools.cached_property
    def reader(self) -> Reader:
        reader: Reader = pickle.loads(self.packed)  # noqa: S301 - our own, from the process that started us
        return reader

    def __getitem__(self, request: Request) -> list[Tensor] | BenchError:
        worker = torch.utils.data.get_worker_info()
        try:
            return _read(self.reader, request, self.ticks[worker.id] if worker else None)
        except BenchError as error:
            return error


class _Wanted:
    """A sampler that is told what to yield before each pass, and knows whether all of it was delivered."""

    def __init__(self) -> None:
        self.tell(())

    def tell(self, wanted: Iterable[Request]) -> None:
        self.wanted, self.open, self.exhausted = wanted, 0, False

    def __iter__(self) -> Iterator[Request]:
        for request in self.wanted:
            self.open += 1
            yield request
        self.exhausted = True

    @property
    def done(self) -> bool:
        return self.exhausted and not self.open


class _Group:
    """Some workers for one reader, in use by one pass at a time."""

    def __init__(self, reader: Reader, workers: int, *, pin: bool) -> None:
        self.reader, self.workers, self.pin = reader, workers, pin
        self.wanted = _Wanted()
        self.ticks = torch.zeros(workers, 2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.processes: set[Any] = set()
        self.over, self.waiting, self.silence = threading.Event(), False, ""
        self.loader = DataLoader(
            _Batches(reader, self.ticks),
            sampler=self.wanted,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            timeout=_POLL,
            worker_init_fn=_watch_parent,
            multiprocessing_context=_context(),
            generator=torch.Generator(),  # its own: a loader would else advance the global one
            persistent_workers=True,
        )
        threading.Thread(target=self._watch, daemon=True).start()

    def batches(self, wanted: Iterable[Request]) -> Iterator[list[Tensor]]:
        """One pass; see :func:`ahead`."""
        self.wanted.tell(wanted)
        passing = self._begin()
        while (batch := self._next(passing)) is not None:
            self.wanted.open -= 1
            if isinstance(batch, BenchError):
                raise batch
            yield batch

    def _begin(self) -> Iterator[Any]:
        before = set(multiprocessing.active_children())
        try:
            with _surroundings():
                _try_server()
                return iter(self.loader)
        except (OSError, EOFError, RuntimeError) as error:
            raise LostError("killed", f"data workers cannot start ({_line(error)})") from error
        finally:
            self.processes |= set(multiprocessing.active_children()) - before

    def _next(self, passing: Iterator[Any]) -> list[Tensor] | BenchError | None:
        """The next batch, or nothing at the end.

        :raises LostError: see :func:`ahead`.
        """
        while True:
            self.waiting = True
            try:
                batch: list[Tensor] | BenchError | None = next(passing, None)
            except (OSError, EOFError, RuntimeError) as error:
                timed_out = "timed out" in str(error)
                self._look_for_dead(
                    error, 0 if timed_out else 1
                )  # who broke it may be seen after what breaks
                if not timed_out:
                    raise
            else:
                return batch
            finally:
                self.waiting = False

    def _look_for_dead(self, error: BaseException, seconds: float) -> None:
        """Was it a worker's death that made this error?

        :raises LostError: it was.
        """
        for process in self.processes:
            process.join(seconds)
            if process.exitcode is not None:
                raise LostError("killed", self.silence or _death(process.pid, process.exitcode)) from error

    def _watch(self) -> None:
        """In a thread: ends workers that deliver nothing, since who waits may be within a read of what they began."""
        quiet, seen = 0, self.ticks.clone()
        while not self.over.wait(_POLL):
            quiet = quiet + 1 if self.waiting and torch.equal(self.ticks, seen) else 0
            seen = self.ticks.clone()
            if quiet * _POLL >= SILENT:
                at = sorted(set(self.ticks[:, 1].tolist()))
                where = ", ".join(f"image {i}{_path(self.reader, i)}" for i in at)
                self.silence = f"data workers were silent for {SILENT} s at {where}: does the disk answer?"
                self._kill()
                return

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()  # a stopped one hears nothing else

    def end(self) -> None:
        """Its workers are gone when this returns."""
        self.over.set()
        self._kill()
        for process in self.processes:
            process.join(5)


_idle: list[_Group] = []  # the last given back at the end


def _taken(reader: Reader, workers: int, pin: bool) -> _Group:
    for group in _idle:
        if group.reader is reader and (group.workers, group.pin) == (workers, pin):
            _idle.remove(group)
            return group
    return _Group(reader, workers, pin=pin)


def _give_back(group: _Group) -> None:
    if not group.wanted.done:  # what was not taken is in its pipes
        group.end()
        return
    _idle.append(group)
    while len(_idle) > _KEPT:
        _idle.pop(0).end()


@atexit.register
def _end() -> None:
    while _idle:
        _idle.pop().end()


def _death(pid: int, code: int) -> str:
    how = f"died (signal {-code})" if code < 0 else f"stopped (exit code {code})"
    why = {-9: ": memory may be short", -7: ": shared memory (/dev/shm) may be full"}.get(code, "")
    return f"data worker {pid} {how}{why}"


def _path(reader: Reader, i: int) -> str:
    """Where an image lies, where the reader says so."""
    path = getattr(reader, "path", None)
    return f" ({path(i)})" if path else ""


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _as_it_is(batch: Any) -> Any:
    return batch


def _context() -> str:
    """How workers are started: from a server without threads, where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload([__name__])
    return "forkserver"


@functools.cache
def _try_server() -> None:
    """Whether a process can be started at all: a loader that is half made cleans up loudly."""
    one = multiprocessing.get_context(_context()).Process(target=os.getpid)  # type: ignore[attr-defined]  # typeshed
    one.start()
    one.join(_START)
    if one.exitcode is None:
        one.kill()
        raise OSError(f"a first process did not end within {_START} s")
    if one.exitcode:
        raise OSError(f"a first process ended with exit code {one.exitcode}")


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """What workers start in: no module of the working folder stands before the installed ones, sockets have room, and
    the program that runs here is not run again by each of them, as Python would where it has no guard.

    :raises BenchError: no folder for temporary files has a path that is short enough for a socket.
    """
    short = next(filter(_fits, (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")), None)  # noqa: S108 - a folder of our own is made there
    if short is None:
        raise BenchError(
            f"TMPDIR: {tempfile.gettempdir()} is too long for sockets: write a path of at most {_SOCKET} bytes"
        )
    usual, before = tempfile.tempdir, {name: os.environ.get(name) for name in _ENVIRONMENT}
    program, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    tempfile.tempdir = short
    os.environ.update(_ENVIRONMENT)
    try:
        util.get_temp_dir()  # made once a process, and handed on to its workers
        yield
    finally:
        tempfile.tempdir, sys.modules["__main__"] = usual, program
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _fits(folder: str) -> bool:
    return len(os.fsencode(folder)) <= _SOCKET and os.access(folder, os.W_OK | os.X_OK)


def _watch_parent(_: int) -> None:
    """In a worker: nothing outlives who started it, not even a worker that waits to be heard; Ctrl-C is its parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
