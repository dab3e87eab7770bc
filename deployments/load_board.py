"""What one process knows about the load of every replica, fed by stream events and by Serve's routing stats."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from deployments.load import ReplicaLoad

PLACED_KEPT = 10_000
SUSPECT_S = 10.0
"""How long a replica that failed is left alone, should Serve still list it."""


@dataclass(slots=True)
class _Sent:
    """What was sent to a replica since its last report."""

    work_s: float = 0.0
    slots: int = 0
    requests: int = 0


class LoadBoard:
    """The newest load of every running replica, as this process knows it, with what was sent there since.

    Serve creates one request router per handle, in the handle's process and in a loop of its own; the board is where it
    and the planner of the same process meet. All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads: dict[str, ReplicaLoad] = {}
        self._sent: dict[str, _Sent] = {}
        self._placed: dict[str, str] = {}
        self._failed_at_s: dict[str, float] = {}

    def report(self, load: ReplicaLoad) -> None:
        """Takes a load unless a newer one of the same replica is known."""
        with self._lock:
            known = self._loads.get(load.replica)
            if time.monotonic() - self._failed_at_s.get(load.replica, -SUSPECT_S) < SUSPECT_S:
                return
            if known is None or load.at_s > known.at_s:
                self._loads[load.replica] = load
                self._sent.pop(load.replica, None)

    def keep_only(self, replicas: set[str]) -> None:
        """Forgets replicas that are gone and makes room for new ones."""
        with self._lock:
            for replica in list(self._loads):
                if replica not in replicas:
                    self._drop(replica)
            now = time.monotonic()
            for replica in replicas:
                if now - self._failed_at_s.get(replica, -SUSPECT_S) >= SUSPECT_S:
                    self._loads.setdefault(replica, ReplicaLoad(replica))

    def forget(self, replica: str) -> None:
        """A replica failed: nothing is planned for it while Serve finds out (`SUSPECT_S`)."""
        with self._lock:
            self._failed_at_s[replica] = time.monotonic()
            self._drop(replica)

    def _drop(self, replica: str) -> None:
        self._loads.pop(replica, None)
        self._sent.pop(replica, None)

    def sent(self, replica: str, request_id: str, work_s: float, slots: int) -> None:
        """Counts work that the replica's last report cannot contain yet."""
        with self._lock:
            sent = self._sent.setdefault(replica, _Sent())
            sent.work_s += work_s
            sent.slots += slots
            sent.requests += 1
            self._placed[request_id] = replica
            while len(self._placed) > PLACED_KEPT:
                self._placed.pop(next(iter(self._placed)))

    def place_of(self, request_id: str) -> str | None:
        """The replica that a request was last sent to."""
        with self._lock:
            return self._placed.get(request_id)

    def done(self, request_id: str) -> None:
        with self._lock:
            self._placed.pop(request_id, None)

    def queue_s(self, replica: str) -> float:
        with self._lock:
            load, sent = self._loads.get(replica), self._sent.get(replica)
            return (0.0 if load is None else load.queue_s) + (0.0 if sent is None else sent.work_s)

    def loads(self) -> list[ReplicaLoad]:
        """All known loads, work sent since their reports included."""
        with self._lock:
            return [self._with_sent(load) for load in self._loads.values()]

    def _with_sent(self, load: ReplicaLoad) -> ReplicaLoad:
        sent = self._sent.get(load.replica)
        if sent is None:
            return load
        return replace(
            load,
            queue_s=load.queue_s + sent.work_s,
            slots=load.slots + sent.slots,
            sequences=load.sequences + sent.requests,
        )


BOARD = LoadBoard()
"""The board of this process; Serve builds request routers itself, so there is no other way to hand it to them."""
