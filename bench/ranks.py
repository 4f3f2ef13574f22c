"""The further processes of one training: started here by the worker that is rank 0, or already there (srun).

One that dies fails the training with one line; none outlives the worker: its standard input ends with it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from bench import children, distributed, pause
from bench.distributed import LostError, Seat, World
from bench.records import BenchError, Training, plain

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

# Enters the world on a device: what a training does inside, all of its processes do.
Join = Callable[[torch.device], AbstractContextManager[None]]

_GRACE = 5.0  # seconds: a broken connection is noticed before the death that broke it
_assigned: list[Seat] = []


def assign(seat: Seat) -> None:
    """This process is rank 0 of processes that somebody else started: none are started here."""
    _assigned[:] = [seat]


def assigned() -> bool:
    """Whether somebody else starts the processes, and gives each its GPU."""
    return bool(_assigned)


@contextlib.contextmanager
def started(training: Training, name: str, place: dict[str, Any]) -> Iterator[Join]:
    """The processes of a training, this one being rank 0; they work while the block lasts.

    :param name: of the training, by which all know that they mean the same.
    :raises LostError: another process died or failed.
    """
    if training.processes == 1:
        yield lambda _: contextlib.nullcontext()
        return
    seat = _assigned[0] if _assigned else Seat(World(0, training.processes))
    if seat.world.size != training.processes:
        raise BenchError(
            f"this job has {seat.world.size} processes and the training asks for {training.processes}: "
            "ask for as many tasks"
        )
    store, seat = distributed.opened(seat)
    store.set("training", name)
    message = {"training": plain(training), "place": place}
    peers = [] if _assigned else [_start(seat, rank, message) for rank in range(1, training.processes)]
    failed = True
    try:
        yield lambda where: distributed.joined(seat, store, where, lambda: _look(peers, store))
        failed = False
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _blame(error, peers, store, training.processes)
        raise
    finally:
        _end(peers, at_once=failed)


def follow(seat: Seat, name: str, over: Callable[[], bool]) -> tuple[TCPStore, Join] | None:
    """Another rank's way to rank 0: its store and how to join, or nothing when ``over`` says so first."""

    def waiting() -> None:
        if over():
            raise _OverError

    try:
        store = distributed.found(seat, name, waiting)
    except _OverError:
        return None
    return store, lambda where: distributed.joined(seat, store, where, pause.check)


class _OverError(Exception):
    """Rank 0 does not train: it had nothing to do, or has gone on."""


def _start(seat: Seat, rank: int, message: dict[str, Any]) -> subprocess.Popen[str]:
    own = Seat(World(rank, seat.world.size), rank, seat.address, seat.ports)
    process = subprocess.Popen(  # noqa: S603 - our own words
        children.python("bench.join"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            **children.environment(),
            **own.environment(),
        },  # one line tells, not all
    )
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it died at once: told where it is missed
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
    return process


def _look(peers: Sequence[subprocess.Popen[str]], store: Store) -> None:
    """Called while the others are awaited.

    :raises LostError: one of them is gone.
    """
    pause.check()
    if any(peer.poll() is not None for peer in peers):
        _judge(peers, store, len(peers) + 1)


def _blame(error: RuntimeError, peers: Sequence[subprocess.Popen[str]], store: Store, size: int) -> None:
    """Was it this process's own error, or the end of another one?

    :raises LostError: another one.
    """
    until = time.monotonic() + _GRACE
    while time.monotonic() < until:
        if any(peer.poll() is not None for peer in peers) or distributed.told(store, size):
            time.sleep(0.5)  # who broke it may end after who noticed
            _judge(peers, store, size)
        time.sleep(0.05)
    if _is_connection(error):
        raise LostError("killed", f"another process of this training was lost ({_first_line(error)})")


def _judge(peers: Sequence[subprocess.Popen[str]], store: Store, size: int) -> None:
    """Name the rank that ended first, not those who only lost their connection to it.

    :raises LostError: always, unless all ended well.
    """
    words = distributed.told(store, size)
    for rank, peer in enumerate(peers, 1):
        code = peer.poll()
        if code and rank not in words:
            how = f"died (signal {-code})" if code < 0 else f"stopped (exit code {code})"
            raise LostError("killed", f"rank {rank} of {size} {how}")
    for rank, word in sorted(words.items(), key=lambda item: item[1]["reason"].startswith("RuntimeError")):
        raise LostError(word["status"], f"rank {rank} of {size}: {word['reason']}")


def _is_connection(error: RuntimeError) -> bool:
    words = ("Connection closed", "Connection reset", "Broken pipe", "NCCL", "gloo")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _end(peers: Sequence[subprocess.Popen[str]], *, at_once: bool) -> None:
    """None is left: those who have not ended by themselves are ended."""
    until = time.monotonic() + (0.0 if at_once else _GRACE)
    for peer in peers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            peer.wait(max(0.0, until - time.monotonic()))
        peer.kill()
        with contextlib.suppress(OSError):
            if peer.stdin:
                peer.stdin.close()
        peer.wait()
