"""Several processes that train one model: who they are, how they meet, and how they share rows and decisions.

A process finds its seat in its environment (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``,
``MASTER_PORT``; under srun SLURM's own), meets the others at a store that rank 0 opens, and joins the group.
Outside of :func:`joined` every process is a world of one, and nothing here costs anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from bench.records import BenchError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

PATIENCE = dt.timedelta(minutes=10)  # the longest that a process may keep the others waiting
LOOPBACK = "127.0.0.1"
_POLL = 0.05  # seconds between two looks at the store
_CALL = dt.timedelta(seconds=5)  # how long one knock at a port may take
_FAREWELL = 10.0  # seconds that rank 0 waits at the end for those who still read
_PORTS = 16  # tried one after the other, where the first is somebody else's
_FIRST_PORT, _PORT_SPAN = 20_000, 12_000  # below the ports that systems hand out themselves


@dataclass(frozen=True)
class World:
    """How many processes train the model at hand, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Files are rank 0's business."""
        return self.rank == 0


ALONE = World()
_joined = [ALONE]  # the innermost is where this process is


def current() -> World:
    """The world that this process is in; alone unless it has joined others."""
    return _joined[-1]


# ---- sharing -------------------------------------------------------------------------------------


def share(rows: Tensor) -> Tensor:
    """This rank's equal slice of a global batch (N, ...), whose N the number of ranks divides."""
    world = current()
    count = len(rows) // world.size
    return rows if world.size == 1 else rows[world.rank * count : (world.rank + 1) * count]


@torch.no_grad()
def gathered(rows: Tensor, parts: Sequence[int] = ()) -> Tensor:
    """The rows of all ranks in the order of the global batch: (n, ...) to (n * size, ...), without gradient.

    :param parts: how many rows of each part that was shared out by itself (labeled ones, the others).
    """
    world = current()
    if world.size == 1:
        return rows
    sent = rows.detach().contiguous()
    if flags := sent.dtype == torch.bool:  # gloo knows no truth values
        sent = sent.to(torch.uint8)
    found = [torch.empty_like(sent) for _ in range(world.size)]
    dist.all_gather(found, sent)
    pieces = [one.split(list(parts) or [len(rows)]) for one in found]  # type: ignore[no-untyped-call]
    whole = torch.cat([piece[i] for i in range(len(parts) or 1) for piece in pieces])
    return whole.bool() if flags else whole


@torch.no_grad()
def averaged(value: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, without gradient; in a world of one the tensor itself."""
    world = current()
    if world.size == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world.size


def agreed(flag: bool) -> bool:
    """Whether any rank says so: all get the same answer."""
    if current().size == 1:
        return flag
    votes = torch.tensor(int(flag), dtype=torch.int32)  # on the CPU: no device has to wait for it
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes)


def everyones(number: int) -> list[int]:
    """A number of each rank, in the order of the ranks."""
    if current().size == 1:
        return [number]
    return [int(n) for n in gathered(torch.tensor([number], dtype=torch.int64))]


# ---- seats ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seat:
    """A process's place before it has joined.

    :param local: which of its machine's processes, and so which of its GPUs.
    :param address: of rank 0's machine; ``ports``: where rank 0 may open its store, 0: any free one.
    """

    world: World
    local: int = 0
    address: str = LOOPBACK
    ports: tuple[int, ...] = (0,)

    def environment(self) -> dict[str, str]:
        """The variables from which :func:`from_environment` reads it again."""
        return {
            "RANK": str(self.world.rank),
            "WORLD_SIZE": str(self.world.size),
            "LOCAL_RANK": str(self.local),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.ports[0]),
        }


def from_environment(environment: Mapping[str, str] = os.environ) -> Seat:
    """The seat that torch's usual variables describe.

    :raises BenchError: a variable is missing or no number.
    """
    rank, size, local, port = (
        _number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    )
    return Seat(World(rank, size), local, environment.get("MASTER_ADDR", LOOPBACK), (port,))


def from_slurm(environment: Mapping[str, str] = os.environ) -> Seat:
    """The seat of a task of ``srun``: a rank for each task, rank 0's store on the first node of the step.

    The port follows from the job's and the step's numbers; where it is taken, the next ones are tried.

    :raises BenchError: not a task of srun, or the step's nodes cannot be named.
    """
    rank, size, local, job = (
        _number(environment, name)
        for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID")
    )
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    spread = job * 31 + int(environment.get("SLURM_STEP_ID", "0")) * _PORTS
    first = _FIRST_PORT + spread % _PORT_SPAN
    return Seat(World(rank, size), local, _first_host(nodes), tuple(range(first, first + _PORTS)))


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdigit():
        raise BenchError(f"{name} must be a number for a process that trains with others, not {value!r}")
    return int(value)


def _first_host(nodes: str) -> str:
    """An address of the first of SLURM's list of nodes: its own tool reads the brackets.

    Where a node's name is no machine's, SLURM's own address of it is taken.
    """
    if not nodes:
        raise BenchError("SLURM_JOB_NODELIST is empty: start the processes of a training by srun")
    try:
        name = _scontrol("hostnames", nodes).split()[0]
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            facts = dict(word.split("=", 1) for word in _scontrol("node", name).split() if "=" in word)
            return facts.get("NodeAddr", name)
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise BenchError(f"scontrol cannot name the nodes {nodes!r}: {error}") from error
    return name


def _scontrol(*words: str) -> str:
    """What SLURM's tool shows of something."""
    command = ["scontrol", "show", *words]
    done = subprocess.run(  # noqa: S603 - the words come from SLURM itself
        command, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


# ---- meeting -------------------------------------------------------------------------------------


class LostError(Exception):
    """Another process of this training ended badly: what it told, or that it died.

    :param outcome: ``status`` and ``reason`` of the training.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = {"status": status, "reason": reason}


def opened(seat: Seat) -> tuple[TCPStore, Seat]:
    """Rank 0's store, and the seat with the port that was free.

    :raises BenchError: every port of the seat is taken.
    """
    for port in seat.ports:
        try:
            # A socket of our own: torch's would listen on all networks, even where all ranks are here.
            host = LOOPBACK if seat.address == LOOPBACK else ""
            listening = socket.create_server((host, port))
        except OSError:
            continue
        found = listening.getsockname()[1]
        store = dist.TCPStore(  # type: ignore[attr-defined]  # where torch was built with it
            LOOPBACK,
            found,
            is_master=True,
            wait_for_workers=False,
            timeout=PATIENCE,
            master_listen_fd=listening.detach(),
        )
        return store, dataclasses.replace(seat, ports=(found,))
    raise BenchError(f"no port of {seat.ports[0]} to {seat.ports[-1]} is free on {seat.address}")


def found(seat: Seat, name: str, waiting: Callable[[], None]) -> TCPStore:
    """The store of rank 0 for the training ``name``, as soon as it is there.

    :param waiting: called between two tries; raises to give up.
    """
    while True:
        for port in seat.ports:
            waiting()
            with contextlib.suppress(RuntimeError, OSError):  # nobody is there yet, or somebody else
                with socket.create_connection((seat.address, port), _CALL.total_seconds()):
                    pass
                store = dist.TCPStore(seat.address, port, is_master=False, timeout=_CALL)  # type: ignore[attr-defined]
                if store.check(["training"]) and store.get("training").decode() == name:
                    store.set_timeout(PATIENCE)
                    return store
        time.sleep(10 * _POLL)


@contextlib.contextmanager
def joined(seat: Seat, store: Store, where: torch.device, waiting: Callable[[], None]) -> Iterator[None]:
    """Inside, this process is one of the world's, and collectives reach all of them.

    :param waiting: called while others are not there yet; raises to give up.
    :raises LostError: others did not come.
    """
    world = seat.world
    _assemble(store, world, waiting)
    with _loopback(only=seat.address == LOOPBACK):
        dist.init_process_group(
            _backend(where),
            store=dist.PrefixStore("group", store),  # type: ignore[attr-defined]
            rank=world.rank,
            world_size=world.size,
            timeout=PATIENCE,
        )
    _joined.append(world)
    failed = False
    try:
        yield
    except Exception:
        failed = True  # who fails waits for nobody
        raise
    finally:
        _joined.pop()
        if not failed:
            _part(store, world)
        dist.destroy_process_group()


def _backend(where: torch.device) -> str:
    if where.type == "cpu" or torch.device(os.environ.get("BENCH_DEVICE") or "cpu").index is not None:
        return "gloo"  # nccl refuses processes that share a named GPU
    return "cpu:gloo,cuda:nccl"


@contextlib.contextmanager
def _loopback(*, only: bool) -> Iterator[None]:
    """Where all ranks are here, gloo need not ask which network the machine's name stands for."""
    name = next((n for _, n in socket.if_nameindex() if n.startswith("lo")), "")
    set_here = only and bool(name) and "GLOO_SOCKET_IFNAME" not in os.environ
    if set_here:
        os.environ["GLOO_SOCKET_IFNAME"] = name
    try:
        yield
    finally:
        if set_here:
            del os.environ["GLOO_SOCKET_IFNAME"]


def _assemble(store: Store, world: World, waiting: Callable[[], None]) -> None:
    """Wait for all, without a call that blocks: torch's own would not notice that one died on its way."""
    store.add("here", 1)
    until = time.monotonic() + PATIENCE.total_seconds()
    while (here := store.add("here", 0)) < world.size:
        waiting()
        if time.monotonic() > until:
            raise LostError("killed", f"only {here} of {world.size} processes came")
        time.sleep(_POLL)


def _part(store: Store, world: World) -> None:
    """Nobody hangs up while another one may still read: the last collective is over when all are here.

    Rank 0, whose store it is, goes last.
    """
    patience = _FAREWELL if world.leads else PATIENCE.total_seconds()
    until = time.monotonic() + patience
    with contextlib.suppress(RuntimeError):  # rank 0 died, and the store with it
        store.add("over", 1)
        _wait(store, "over", world.size, until)
        store.add("gone", 1)
        if world.leads:
            _wait(store, "gone", world.size, until)


def _wait(store: Store, key: str, count: int, until: float) -> None:
    while store.add(key, 0) < count and time.monotonic() < until:
        time.sleep(_POLL)


# ---- bad ends ------------------------------------------------------------------------------------


def tell(store: Store, rank: int, outcome: Mapping[str, object]) -> None:
    """Leave word at the store of how this rank ended."""
    with contextlib.suppress(RuntimeError):
        store.set(f"told {rank}", json.dumps(dict(outcome)))


def told(store: Store, size: int) -> dict[int, dict[str, str]]:
    """What ranks left word of, by rank."""
    with contextlib.suppress(RuntimeError):
        return {
            rank: json.loads(store.get(f"told {rank}"))
            for rank in range(1, size)
            if store.check([f"told {rank}"])
        }
    return {}
