"""Rank 0's side of a tensor-parallel group: it starts the workers, tells them every batch, and notices when one ends.

The ranks are processes of one machine. They meet in a private directory: a Unix socket for messages and a file for
torch's rendezvous, so that nothing listens on a network except gloo, on the loopback address. A socket's end of file is
how each side learns that the other has died.
"""

from __future__ import annotations

import logging
import select
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.errors import RankFailed
from engine.group.wire import Channel, Kind, RankSpec, read_number

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

log = logging.getLogger("stepdial.group")
SOCKET = "ranks"
STORE = "store"
JOIN_S = 120.0
"""Seconds for all workers to start and join; loading takes as long as it takes."""
POLL_S = 0.2
REASONS_S = 0.5
"""So long the first failure waits for what other ranks say, so that the message names the one that began it."""


class Worker(Protocol):
    """A started process of another rank, as its launcher knows it."""

    def ended(self) -> str | None:
        """Why it has ended ("its process ended with status 1"), None while it lives."""

    def stop(self) -> None:
        """Makes sure that it ends, soon; its socket is closed already."""


class Launcher(Protocol):
    """Starts the process of `rank`, which is to call `engine.group.worker.run_worker(directory, rank)`."""

    def __call__(self, directory: str, rank: int) -> Worker: ...


class Group:
    """The other ranks, as rank 0 sees them. They start, fail and end together.

    Attributes:
        size: ranks, rank 0 included. store: file at which the ranks meet.
        failure: why the group is of no use any more, None while it is.
    """

    def __init__(self, size: int, launcher: Launcher) -> None:
        self.size = size
        self.failure: str | None = None
        self._launcher = launcher
        self._directory = Path(tempfile.mkdtemp(prefix="stepdial-ranks-"))
        self.store = self._directory / STORE
        self._workers: dict[int, Worker] = {}
        self._channels: dict[int, Channel] = {}
        self._watcher: threading.Thread | None = None
        self._listeners: list[Callable[[RankFailed], None]] = []
        self._lock = threading.Lock()
        self._failed = threading.Event()
        self._closing = False

    def start(self, spec: RankSpec) -> None:
        """Starts the workers and tells them what to load. Raises RankFailed when one does not join."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(str(self._directory / SOCKET))
            except OSError as error:
                raise RankFailed(f"no socket for the ranks in {self._directory}: {error}; set TMPDIR") from None
            listener.listen(self.size)
            listener.settimeout(POLL_S)
            for rank in range(1, self.size):
                self._workers[rank] = self._launcher(str(self._directory), rank)
            self._accept(listener)
        self.tell(Kind.SPEC, spec.to_bytes())

    def await_all(self, wanted: Kind) -> None:
        """Waits until every worker has said `wanted`. Raises RankFailed with every reason when one cannot."""
        waiting = dict(self._channels)
        while waiting:
            ready = _readable(waiting, POLL_S)
            for rank in ready:
                reason = self._read(rank, wanted)
                if reason is not None:
                    raise RankFailed(self._reasons(rank, reason, "could not start"))
                del waiting[rank]
            if not ready:
                self._check_lives(waiting)

    def tell(self, kind: Kind, payload: bytes | memoryview = b"") -> None:
        """Sends all workers a message. Raises RankFailed when one is gone."""
        for rank, channel in self._channels.items():
            try:
                channel.send(kind, payload)
            except OSError as error:
                known = self.known_failure()
                raise known or RankFailed(f"rank {rank} of {self.size} does not answer: {error}") from None

    def watch(self, on_failure: Callable[[RankFailed], None]) -> None:
        """From now on, calls `on_failure` (in a thread of its own) once a worker ends; who asked last is told first.

        Nothing else is read from the workers any more.
        """
        with self._lock:
            self._listeners.insert(0, on_failure)
            failure = self.failure
        if failure is not None:
            on_failure(RankFailed(failure))
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="stepdial-ranks", daemon=True)
            self._watcher.start()

    def known_failure(self) -> RankFailed | None:
        """What made a send or a collective fail, if it was the end of a rank; None if none has ended."""
        if self._watcher is not None:
            # The watcher hears of it at about the same time, and knows more.
            self._failed.wait(2 * REASONS_S)
        return None if self.failure is None else RankFailed(self.failure)

    def close(self) -> None:
        """Ends all workers and removes the directory. May be called twice."""
        self._closing = True
        for channel in self._channels.values():
            channel.shut()
        for worker in self._workers.values():
            worker.stop()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
        for channel in self._channels.values():
            channel.socket.close()
        self._channels, self._workers = {}, {}
        self.remove_directory()

    def remove_directory(self) -> None:
        """Once the ranks have met: what is removed now is not left behind by a kill."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _accept(self, listener: socket.socket) -> None:
        until = time.monotonic() + JOIN_S
        while len(self._channels) < self.size - 1:
            missing = [rank for rank in self._workers if rank not in self._channels]
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                self._check_lives(missing)
                if time.monotonic() > until:
                    ranks = ", ".join(str(rank) for rank in missing)
                    raise RankFailed(
                        f"rank {ranks} of {self.size} did not join within {JOIN_S:.0f} s of its start"
                    ) from None
                continue
            accepted.settimeout(None)
            channel = Channel(accepted)
            try:
                _, rank = channel.receive()
            except EOFError:
                # Which one it was shows in that it never joins.
                continue
            self._channels[read_number(rank)] = channel

    def _check_lives(self, ranks: Seq[int] | dict[int, Channel]) -> None:
        for rank in ranks:
            ended = self._workers[rank].ended()
            if ended is not None and not _readable({r: c for r, c in self._channels.items() if r == rank}, 0):
                raise RankFailed(f"rank {rank} of {self.size} could not start: {ended}")

    def _read(self, rank: int, wanted: Kind | None) -> str | None:
        """Reads one message of a worker: None if it is `wanted`, else why the worker is of no use."""
        try:
            kind, payload = self._channels[rank].receive()
        except EOFError:
            # A process takes a moment from closing its socket to its end.
            for _ in range(10):
                if (ended := self._workers[rank].ended()) is not None:
                    return ended
                time.sleep(0.02)
            return "it left the group"
        if kind is wanted:
            return None
        return payload.decode() if kind is Kind.FAILED else f"it said {kind.name} out of turn"

    def _watch(self) -> None:
        ready = _readable(self._channels, None)
        if self._closing:
            return
        rank = ready[0]
        failure = self._reasons(rank, self._read(rank, None) or "it left the group", "failed")
        with self._lock:
            self.failure = failure
            listeners = list(self._listeners)
        self._failed.set()
        log.error("%s", failure)
        # What still waits in a forward for the rank that is gone ends too.
        for channel in self._channels.values():
            channel.shut()
        for listener in listeners:
            listener(RankFailed(failure))

    def _reasons(self, rank: int, reason: str, verb: str) -> str:
        """The first failure, and what other ranks say within a moment."""
        said = [f"rank {rank} of {self.size} {verb}: {reason}"]
        others = {other: channel for other, channel in self._channels.items() if other != rank}
        until = time.monotonic() + REASONS_S
        while others and (left := until - time.monotonic()) > 0:
            for other in _readable(others, left):
                said.append(f"rank {other} of {self.size} {verb}: {self._read(other, None) or 'it left the group'}")
                del others[other]
        return "; ".join(said)


def _readable(channels: dict[int, Channel], timeout_s: float | None) -> list[int]:
    """Ranks whose socket has a message or an end."""
    poll = select.poll()
    rank_of = {channel.socket.fileno(): rank for rank, channel in channels.items()}
    for file in rank_of:
        poll.register(file, select.POLLIN | select.POLLRDHUP)
    return [rank_of[file] for file, _ in poll.poll(None if timeout_s is None else timeout_s * 1e3)]
