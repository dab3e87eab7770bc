"""CPU seconds of each process of the cluster that listens on a port of this machine, and of the load generator."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import psutil

LOAD_GENERATOR = "load generator"
LOCAL = {"127.0.0.1", "localhost", "::1"}
SERVE_REPLICA = re.compile(r"ServeReplica:[^:]*:(\w+)")
OTHERS = "other processes of Ray"


class CpuMeter:
    """Reads the CPU seconds of a cluster's processes; one that ended keeps what it had used.

    Attributes:
        problem: why only the load generator is measured; None when the cluster was found.
    """

    def __init__(self, host: str) -> None:
        """`host` is the cluster's address, `http://127.0.0.1:8000`."""
        self._names: dict[tuple[int, float], str] = {}
        self._seconds: dict[str, float] = {}
        self._last: dict[tuple[int, float], float] = {}
        self._own = psutil.Process()
        self._root: psutil.Process | None = None
        self.problem: str | None = None
        address = urlsplit(host)
        port = address.port or (443 if address.scheme == "https" else 80)
        if address.hostname not in LOCAL:
            self.problem = f"{address.hostname} is not this machine"
            return
        listening = process_on(port)
        if listening is None:
            self.problem = f"no process of this machine that may be seen listens on port {port}"
            return
        self._root = raylet_above(listening) or listening

    def read(self) -> dict[str, float]:
        """CPU seconds so far by process name (`Replica 4711`: role and process id)."""
        self._count(self._own, LOAD_GENERATOR)
        if self._root is not None:
            for process in self._processes():
                self._count(process)
        return dict(self._seconds)

    def _processes(self) -> list[psutil.Process]:
        root = self._root
        if root is None:
            return []
        try:
            found = [root, *root.children(recursive=True)]
            starter = root.parent()
            if starter is not None and starter.pid != 1:
                found += [child for child in starter.children() if child.name() == "gcs_server"]
        except psutil.NoSuchProcess:
            return []
        return found

    def _count(self, process: psutil.Process, name: str | None = None) -> None:
        try:
            key = (process.pid, process.create_time())
            known = self._names.get(key)
            # A worker of Ray takes its role's title some time after it started.
            if known is None or known == OTHERS:
                known = self._names[key] = name or name_of(process)
            times = process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return
        used = times.user + times.system
        if known == OTHERS:
            self._others(key, used)
        else:
            self._seconds[known] = used

    def _others(self, key: tuple[int, float], used: float) -> None:
        """Several processes share this name, so their sum is kept by what each adds."""
        before = self._last.get(key, 0.0)
        self._last[key] = used
        self._seconds[OTHERS] = self._seconds.get(OTHERS, 0.0) + max(0.0, used - before)


def process_on(port: int) -> psutil.Process | None:
    """The process that listens on a TCP port, as far as this user may see it."""
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None:
            return psutil.Process(connection.pid)
    return None


def raylet_above(process: psutil.Process) -> psutil.Process | None:
    """The raylet that started a worker: every process of a one-machine cluster is under it."""
    return next((parent for parent in process.parents() if parent.name() == "raylet"), None)


def name_of(process: psutil.Process) -> str:
    """Role and process id of a process of Ray, from its title."""
    title = " ".join(process.cmdline())
    replica = SERVE_REPLICA.search(title)
    if replica:
        return f"{replica[1]} {process.pid}"
    for word, role in (("ProxyActor", "HTTP proxy"), ("ServeController", "Serve controller")):
        if word in title:
            return f"{role} {process.pid}"
    name = process.name()
    return f"{name} {process.pid}" if name in ("raylet", "gcs_server") else OTHERS


def role_of(name: str) -> str:
    """The role in a process name: what is left without its id."""
    return re.sub(r" \d+$", "", name)
