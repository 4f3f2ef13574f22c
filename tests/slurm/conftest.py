"""A real SLURM of one's own: munge, slurmctld, several slurmd's with made-up GPUs, slurmdbd and MariaDB if wanted.

All of it lies in one temporary folder, speaks on loopback only and is gone at the end. Use::

    def test_it(slurm):
        cluster = slurm(accounting=False, max_array=51)   # SLURM_CONF is set from here on
        cluster.kill_node("node2")

The processes of a cluster are told by their environment: ``SLURM_CONF`` is the file in its folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

_PREFIX = "bench-slurm-"
_NEEDED = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
_ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core"}
_DAEMONS = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmscriptd", "slurmd", "slurmstepd"}
_LIVE_AT_ONCE = 2  # clusters; the one that was used longest ago makes room for a third

_CONF = """\
ClusterName=bench
SlurmctldHost={host}({address})
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job is held back (default 120 s)
AuthInfo=socket={dir}/munge/sock,cred_expire={hold}
SlurmctldPort={ctld}
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/%n.pid
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/%n.log
{bind}
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
# nodes may declare more than this machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdTimeout={node_timeout}
SlurmctldTimeout=60
KillWait=3
MinJobAge={min_job_age}
ReturnToService=2
JobRequeue={requeue:d}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
{preempt_signal}
PreemptType=preempt/partition_prio
PreemptMode={preempt}
MaxArraySize={max_array}
MaxJobCount=20000
{strict}
GresTypes=gpu
{accounting}
{nodes}
PartitionName=bench Nodes=ALL Default=YES State=UP MaxTime=INFINITE DefaultTime=10 \
DefMemPerCPU={memory} PriorityTier=1 PreemptMode={preempt_here} GraceTime={grace} {shared} {admits}
PartitionName=urgent Nodes=ALL Default=NO State=UP MaxTime=INFINITE DefaultTime=10 \
DefMemPerCPU={memory} PriorityTier=10 PreemptMode=OFF {shared}
{more}
"""

_CONF_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={dir}/munge/sock
{enforce}"""

_DBD = """\
AuthType=auth/munge
AuthInfo=socket={dir}/munge/sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
LogFile={dir}/log/slurmdbd.log
PidFile={dir}/run/slurmdbd.pid
DebugLevel=info
"""


@dataclass(frozen=True)
class Shape:
    """What a cluster is made of; memory in MB a node, times in seconds."""

    accounting: bool = True
    max_array: int = 1001
    nodes: int = 4
    cpus: int = 2
    mem: int = 16000
    gpus: int = 2
    node_timeout: int = 10  # SlurmdTimeout: so long a silent node counts as there
    min_job_age: int = 300  # so long the controller remembers a job that ended
    hold: int = 5  # so long a requeued job waits before it starts again
    grace: int = 5  # so long a preempted job may go on
    requeue: bool = True  # JobRequeue
    preempt: str = "REQUEUE"  # or CANCEL, SUSPEND
    max_submit: int = 0  # jobs that the user's association admits at a time; 0: no limit
    lab: bool = False  # a partition "lab" that alone admits the account "lab"; the others admit "staff"
    gpu_type: str = ""  # as GPUs must be asked for


class NoClusterError(Exception):
    """It did not come up; the message says which part, with the end of its log."""


# ---- packages and processes --------------------------------------------------------------------


def missing(accounting: bool) -> list[str]:
    """Debian packages that are not here."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    wanted = _NEEDED | (_ACCOUNTING if accounting else {})
    return sorted({package for command, package in wanted.items() if not shutil.which(command, path=path)})


def provide(accounting: bool) -> None:
    """Install what is missing, where that is possible; else the test is skipped and says why."""
    with (Path(tempfile.gettempdir()) / f"{_PREFIX}install-{os.getuid()}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two test processes, one installation
        packages = missing(accounting)
        if not packages:
            return
        if os.getuid() or not shutil.which("apt-get"):
            pytest.skip(f"no SLURM here: {' '.join(packages)} must be installed, by root with apt-get")
        with _no_daemons_started():
            if _apt("install", *packages) and (_apt("update") or _apt("install", *packages)):
                pytest.skip(f"no SLURM here: apt-get cannot install {' '.join(packages)}")


def _apt(*words: str) -> int:
    options = ["-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        ["apt-get", *options, *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False
    ).returncode


@contextlib.contextmanager
def _no_daemons_started():
    """Packages start their daemons unless policy-rc.d forbids it."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _environ(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(line.partition("=")[::2] for line in text.split("\0"))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _opened(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(link.readlink() == path for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _kill(pids, number=signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _until(condition, seconds: float, what: str, pause: float = 0.05):
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise NoClusterError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)
    return found


def _listens(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((address, port)) == 0


def _free_ports(count: int) -> int:
    """The first of ``count`` ports in a row, below those that the system hands out by itself."""
    for _ in range(200):
        first = random.SystemRandom().randrange(17000, 32000 - count)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise NoClusterError("no free ports")


def _resolved() -> str:
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname().partition(".")[0])
    return ""


# ---- the cluster -------------------------------------------------------------------------------


class Cluster:
    """A running SLURM in a folder of its own, and what a test may do to it."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.dir = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        if len(str(self.dir)) > 70:
            self.dir.rmdir()
            self.dir = Path(
                tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
            ).resolve()  # sockets' names are short
        self.conf = self.dir / "slurm.conf"
        self.nodes = [f"node{n + 1}" for n in range(shape.nodes)]
        self.processes: dict[str, subprocess.Popen] = {}
        self.seconds = 0.0  # that it took to come up
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH_", "SRUN_", "SACCT_"))
        }
        path = os.pathsep.join([kept.get("PATH", ""), "/usr/sbin", "/sbin"])
        self.env = {**kept, "PATH": path, "SLURM_CONF": str(self.conf)}
        self.host = socket.gethostname().partition(".")[0]
        # Daemons keep to loopback where the host name is there; elsewhere they would miss each other.
        self.on_loopback = _resolved() == "127.0.0.1"
        self.ports = 0

    # -- up and down

    def start(self) -> None:
        """Bring all of it up and wait until every node is idle."""
        began = time.monotonic()
        try:
            self._files()
            self._munge()
            if self.shape.accounting:
                self._database()
            self.start_controller(fresh=True)
            for node in self.nodes:
                self.start_slurmd(node)
            self.wait_nodes()
            if self.shape.max_submit or self.shape.lab:
                self._associations()
            if self.shape.accounting:
                _until(lambda: self.run("sacct", "-n", "-X", check=False).returncode == 0, 20, "sacct")
        except BaseException as error:
            logs = self.logs()
            self.stop()
            raise NoClusterError(f"{error}\n{logs}") from error
        self.seconds = time.monotonic() - began

    def stop(self) -> None:
        """Stop everything that belongs to this folder, and the folder."""
        self._kill_jobs()
        for name in reversed(list(self.processes)):
            self._end(name, gently=name == "mariadbd")
        _kill(self._pids(lambda pid, _: _command(pid) in _DAEMONS))
        shutil.rmtree(self.dir, ignore_errors=True)

    def _files(self) -> None:
        for name in ("run", "munge", "state", "spool", "log", "mysql", "tmp"):
            (self.dir / name).mkdir()
        (self.dir / "munge").chmod(0o755)
        (self.dir / "owner").write_text(str(os.getpid()))
        self.ports = _free_ports(3 + self.shape.nodes)
        words = {
            "dir": self.dir,
            "host": self.host,
            "address": "127.0.0.1",
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "ctld": self.ports,
            "dbd": self.ports + 1,
            "database": self.ports + 2,
            "password": secrets.token_hex(12),
            "bind": "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" if self.on_loopback else "",
            "memory": self.shape.mem // self.shape.cpus // 4,
            **self._site(),
        }
        self.password = words["password"]
        accounting = _CONF_ACCOUNTING.format(**words) if self.shape.accounting else ""
        shape = {k: v for k, v in vars(self.shape).items() if k not in {"accounting", "nodes", "preempt"}}
        self.conf.write_text(_CONF.format(**shape, **words, accounting=accounting, nodes=self._node_lines()))
        dbd = self.dir / "slurmdbd.conf"
        dbd.touch(mode=0o600)
        dbd.write_text(_DBD.format(**words))

    def _site(self) -> dict[str, str]:
        """What an ordinary site has set otherwise."""
        shape = self.shape
        suspends, limited = shape.preempt == "SUSPEND", shape.max_submit or shape.lab
        lab = "PartitionName=lab Nodes=ALL State=UP MaxTime=INFINITE DefaultTime=10 AllowAccounts=lab"
        return {
            # without it a preempted job does not get the signal that --signal names
            "preempt_signal": "SlurmctldParameters=preempt_send_user_signal"
            if shape.preempt == "REQUEUE"
            else "",
            "preempt": "SUSPEND,GANG" if suspends else shape.preempt,
            "preempt_here": shape.preempt,
            "shared": "OverSubscribe=FORCE:1" if suspends else "",
            "enforce": "AccountingStorageEnforce=associations,limits" if limited else "",
            "strict": "EnforcePartLimits=ALL" if shape.lab else "",
            "admits": "AllowAccounts=staff" if shape.lab else "",
            "more": lab if shape.lab else "",
        }

    def _associations(self) -> None:
        """The accounts of the user, and what they admit."""
        user = pwd.getpwuid(os.getuid()).pw_name
        for account in ("staff", "lab"):
            self.run("sacctmgr", "--immediate", "add", "account", account)
            self.run("sacctmgr", "--immediate", "add", "user", user, f"account={account}")
        self.run("sacctmgr", "--immediate", "modify", "user", user, "set", "defaultaccount=staff")
        if self.shape.max_submit:
            limit = f"maxsubmitjobs={self.shape.max_submit}"
            self.run("sacctmgr", "--immediate", "modify", "user", user, "set", limit)

    def _node_lines(self) -> str:
        """A GPU needs a character device of its own; any will do, as nothing opens it."""
        names = ("null", "zero", "full", "random", "urandom", "ptmx", "tty")
        devices = [d for d in (Path("/dev", n) for n in names) if d.is_char_device()][: self.shape.gpus]
        kind = f"Type={self.shape.gpu_type} " if self.shape.gpu_type else ""
        gpus = [f"NodeName={n} Name=gpu {kind}File={d}" for n in self.nodes for d in devices]
        (self.dir / "gres.conf").write_text("\n".join(gpus) + "\n")
        typed = f"{self.shape.gpu_type}:" if self.shape.gpu_type else ""
        gres = f"Gres=gpu:{typed}{len(devices)}" if devices else ""
        cpus = f"CPUs={self.shape.cpus} Sockets=1 CoresPerSocket={self.shape.cpus} ThreadsPerCore=1"
        return "\n".join(
            f"NodeName={node} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={self.ports + 3 + n} {cpus} "
            f"RealMemory={self.shape.mem} {gres} State=UNKNOWN"
            for n, node in enumerate(self.nodes)
        )

    def _munge(self) -> None:
        place = self.dir / "munge"
        key = place / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        files = [f"--socket={place / 'sock'}", f"--key-file={key}", f"--seed-file={place / 'seed'}"]
        files += [
            f"--log-file={self.dir / 'log' / 'munged.log'}",
            f"--pid-file={self.dir / 'run' / 'munged.pid'}",
        ]
        self._spawn("munged", "munged", "--foreground", "--force", "--num-threads=10", *files)
        asked = ("munge", "-n", "-S", str(place / "sock"))
        _until(lambda: self.run(*asked, check=False).returncode == 0, 10, "munged")

    def _database(self) -> None:
        """A fresh MariaDB with the one user that slurmdbd is; then slurmdbd."""
        tables = next(p for p in Path("/usr/share").glob("m*/mysql_system_tables.sql")).parent
        parts = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")
        users = [f"'slurm'@'{place}'" for place in ("127.0.0.1", "localhost")]
        lines = ["create database mysql;", "use mysql;", "set @auth_root_socket=null;"]
        lines += [(tables / part).read_text() for part in parts]
        lines += ["flush privileges;", "create database slurm_acct_db;"]
        lines += [f"create user {user} identified by '{self.password}';" for user in users]
        lines += [f"grant all on slurm_acct_db.* to {user};" for user in users]
        options = ["--no-defaults", f"--datadir={self.dir / 'mysql'}", "--skip-log-bin"]
        # A server that starts clears this folder, of another server's tables too.
        options += [f"--tmpdir={self.dir / 'tmp'}"]
        options += ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M"]
        options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]
        options += ["--user=root"] if os.getuid() == 0 else []
        self.run("mariadbd", *options, "--bootstrap", input="\n".join(lines), timeout=120)
        port, socket_file = self.ports + 2, self.dir / "run" / "mysql.sock"
        options += [f"--socket={socket_file}", "--bind-address=127.0.0.1", f"--port={port}"]
        self._spawn("mariadbd", "mariadbd", *options)
        self._until_listens("mariadbd", port)
        self._spawn("slurmdbd", "slurmdbd", "-D")  # reads slurmdbd.conf beside $SLURM_CONF
        self._until_listens("slurmdbd", self.ports + 1)

    def _until_listens(self, name: str, port: int) -> None:
        def listens():
            if self.processes[name].poll() is not None:
                raise NoClusterError(f"{name} stopped at once")
            return _listens(port)

        _until(listens, 60, name)

    def _spawn(self, name: str, *command: str) -> None:
        with (self.dir / "log" / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command,
                env=self.env,
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
            )

    def _end(self, name: str, *, gently: bool = False) -> None:
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGTERM if gently else signal.SIGKILL)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # -- its processes

    def _pids(self, chosen) -> list[int]:
        """Processes of this cluster for which ``chosen(pid, environment)`` holds; never this one."""
        found = []
        for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()):
            env = _environ(pid) if pid != os.getpid() else {}
            if env.get("SLURM_CONF") == str(self.conf) and chosen(pid, env):
                found.append(pid)
        return found

    def tasks(self, job: str = "", node: str = "") -> list[int]:
        """Pids of what jobs run (``"12"``, ``"12_3"``; all by default), batch scripts included."""

        def ours(pid, env):
            names = {
                env.get("SLURM_JOB_ID"),
                f"{env.get('SLURM_ARRAY_JOB_ID')}_{env.get('SLURM_ARRAY_TASK_ID')}",
            }
            told = "SLURM_JOB_ID" in env and "SLURMD_NODENAME" in env and _command(pid) not in _DAEMONS
            return told and (not job or job in names) and (not node or node == env["SLURMD_NODENAME"])

        return self._pids(ours)

    def steps(self, node: str) -> list[int]:
        """Pids of a node's slurmstepd's: they write into the node's log."""
        log = self.dir / "log" / f"{node}.log"
        return [
            pid
            for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())
            if _command(pid) == "slurmstepd" and _opened(pid, log)
        ]

    def _kill_jobs(self) -> None:
        for node in self.nodes:
            self._end(node)
            _kill(self.steps(node))
        _kill(self.tasks())

    # -- what a test may do to it

    def run(self, *command: str, check: bool = True, timeout: float = 30, **more):
        """One command in the cluster's environment; stdout and stderr as text."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=timeout, check=False, **more
        )
        if check and done.returncode:
            raise NoClusterError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout[-2000:]}")
        return done

    def sbatch(self, script: str, *options: str) -> str:
        """Submit lines of shell; the id of the job."""
        text = f"#!/bin/sh\n{script}\n"
        out = ("--output=/dev/null",) if not any(o.startswith("--output") for o in options) else ()
        return self.run("sbatch", "--parsable", *out, *options, input=text).stdout.strip().partition(";")[0]

    def squeue(self) -> list[tuple[str, str, str]]:
        """Id, state and node of every job, one line a task."""
        printed = self.run("squeue", "--noheader", "--all", "--array", "--format=%i|%T|%N").stdout
        return [tuple(line.split("|", 2)) for line in printed.splitlines()]

    def wait_idle(self, seconds: float = 120) -> None:
        """Until no job is left."""
        _until(lambda: not self.squeue(), seconds, "the queue is empty", pause=0.25)

    def wait_state(self, job: str, *words: str, seconds: float = 60) -> str:
        """Until squeue says one of these of a job; ``""`` is: it is not there."""

        def reached():
            word = {name: state for name, state, _ in self.squeue()}.get(job, "")
            return (word,) if word in words else None

        return _until(reached, seconds, f"job {job} is {' or '.join(words)}", pause=0.1)[0]

    def wait_nodes(self, seconds: float = 60) -> None:
        """Until every node is there and idle."""

        def idle():
            said = self.run("sinfo", "-h", "-N", "-p", "bench", "-o", "%N %t", check=False).stdout.split("\n")
            return {line for line in said if line} == {f"{node} idle" for node in self.nodes}

        _until(idle, seconds, "all nodes are idle", pause=0.1)

    def kill_slurmd(self, node: str) -> None:
        """The daemon alone: its jobs go on as orphans."""
        self._end(node)

    def kill_node(self, node: str) -> None:
        """The daemon with its steps and their tasks, as if the machine lost power."""
        self._end(node)
        _kill(self.steps(node))
        _kill(self.tasks(node=node))

    def start_slurmd(self, node: str) -> None:
        """A node that was killed comes back."""
        (self.dir / "spool" / node).mkdir(exist_ok=True)
        self._spawn(node, "slurmd", "-D", "-f", str(self.conf), "-N", node)

    def stop_controller(self, *, hard: bool = False) -> None:
        """Stop slurmctld, which saves its state first unless it is killed ``hard``."""
        self._end("slurmctld", gently=not hard)

    def start_controller(self, *, fresh: bool = False) -> None:
        self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.conf), *(["-i"] if fresh else []))
        _until(self._answers, 30, "slurmctld")

    def restart_controller(self, *, hard: bool = False, pause: float = 0.0) -> None:
        """slurmctld goes and comes back ``pause`` seconds later."""
        self.stop_controller(hard=hard)
        time.sleep(pause)
        self.start_controller()

    @contextlib.contextmanager
    def frozen_controller(self):
        """slurmctld is there and takes connections, but answers nobody."""
        self.processes["slurmctld"].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.processes["slurmctld"].send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def failing_launches(self):
        """No node can launch a job: SLURM holds the job and drains the node that tried."""
        script, text = self.dir / "prolog", self.conf.read_text()
        script.write_text("#!/bin/sh\nexit 1\n")
        script.chmod(0o755)
        self.conf.write_text(f"{text}Prolog={script}\n")
        self.run("scontrol", "reconfigure")
        try:
            yield
        finally:
            self.conf.write_text(text)
            self.run("scontrol", "reconfigure")
            self.resume_nodes()

    def resume_nodes(self) -> int:
        """As an administrator would, what is drained or down; how many."""
        said = self.run("sinfo", "-h", "-N", "-p", "bench", "-o", "%N %t", check=False).stdout
        bad = [node for node, word in map(str.split, said.splitlines()) if "dr" in word or "down" in word]
        for node in bad:
            self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return len(bad)

    def _answers(self) -> bool:
        if not _listens(self.ports):
            return False
        return "is UP" in self.run("scontrol", "ping", check=False).stdout

    def requeue(self, job: str) -> None:
        """As an administrator would."""
        self.run("scontrol", "requeue", job)

    def preempt(self, node: str, seconds: float = 2) -> str:
        """A job of the urgent partition takes a whole node for so long; its id."""
        options = (
            "--partition=urgent",
            "--no-requeue",
            "--exclusive",
            f"--nodelist={node}",
            f"--mem={self.shape.mem // 2}",
        )
        return self.sbatch(f"sleep {seconds:g}", *options)

    def heal(self) -> None:
        """No jobs, everything up: as it was at first. What is killed or asleep is started again."""
        if self.processes.get("slurmctld") is None or self.processes["slurmctld"].poll() is not None:
            self.start_controller()
        for node in self.nodes:  # first: a job on a node that is away is not over before the node timed out
            if node not in self.processes or self.processes[node].poll() is not None:
                _kill(self.steps(node))
                self.start_slurmd(node)
        self._cancel_all()
        _kill(self.tasks())
        self.resume_nodes()
        self.wait_nodes()

    def _cancel_all(self) -> None:
        for _ in range(3):  # a job that is being requeued needs a second one
            if not self.cancel_some():
                return
            with contextlib.suppress(NoClusterError):
                self.wait_idle(10)

    def cancel_some(self) -> bool:
        """Cancel what squeue shows, and tell whether there was anything."""
        jobs = sorted({job.partition("_")[0] for job, _, _ in self.squeue()})
        if jobs:
            self.run("scancel", *jobs, check=False, timeout=60)
        return bool(jobs)

    def logs(self, lines: int = 25) -> str:
        """The end of each daemon's log."""
        parts = []
        for path in sorted((self.dir / "log").iterdir()):
            if path.suffix == ".out" and path.with_suffix(".log").exists():
                continue  # says the same
            with contextlib.suppress(OSError):
                if tail := path.read_text(errors="replace").splitlines()[-lines:]:
                    parts.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(parts)


def sweep() -> None:
    """Stop the clusters of test processes that were killed before they could."""
    for owner in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/owner"):
        with contextlib.suppress(OSError, ValueError):
            if owner.stat().st_uid == os.getuid() and not Path("/proc", owner.read_text()).exists():
                left = Cluster.__new__(Cluster)
                left.dir, left.conf, left.processes = owner.parent, owner.parent / "slurm.conf", {}
                left.nodes = [path.name for path in (owner.parent / "spool").iterdir()]
                left.stop()


# ---- fixtures ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def slurm_clusters():
    """Clusters by shape, kept between tests."""
    made: dict[Shape, Cluster] = {}
    sweep()
    yield made
    for cluster in made.values():
        cluster.stop()


@pytest.fixture
def slurm(slurm_clusters, monkeypatch):
    """A factory: ``slurm(accounting=False, nodes=2, ...)`` gives a whole, idle Cluster and sets SLURM_CONF.

    Clusters of one shape are brought up once. The fields of ``Shape`` are the parameters.
    """
    used: list[Cluster] = []

    def give(**wanted) -> Cluster:
        shape = Shape(**wanted)
        provide(shape.accounting)
        cluster = slurm_clusters.pop(shape, None)
        if cluster is None:
            for old in [s for s, c in slurm_clusters.items() if c not in used][: 1 - _LIVE_AT_ONCE or None]:
                slurm_clusters.pop(old).stop()
            cluster = Cluster(shape)
            cluster.start()
        slurm_clusters[shape] = cluster  # the last is the one used last
        used.append(cluster)
        cluster.heal()
        for name in [n for n in os.environ if n.startswith(("SLURM", "SBATCH_", "SRUN_", "SACCT_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        return cluster

    yield give
    for cluster in used:
        with contextlib.suppress(NoClusterError, subprocess.TimeoutExpired):
            cluster.cancel_some()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that failed shows the ends of the daemons' logs."""
    report = yield
    clusters = item.funcargs.get("slurm_clusters") if hasattr(item, "funcargs") else None
    if report.when == "call" and report.failed and clusters:
        report.sections.append(("SLURM", list(clusters.values())[-1].logs()))
    return report
