"""Streams that nothing was promised to move to a replica with much less to do, as a rule one that has just started.

A replica keeps what it was given, so without this a new one would help only those who come later. What moves goes on as
after a failure (`resume.py`): its committed tokens are read again at the new place, and the client sees one answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from deployments.load_board import BOARD

if TYPE_CHECKING:
    from deployments.load import ReplicaLoad

EVERY_S = 0.5
"""How often loads are compared while there are streams that may move."""
LEAST_GAIN_S = 2.0
"""Seconds of work by which two replicas have to differ: what is done soon stays."""
MUCH_LESS = 0.5
"""The part of the fuller one's work that the other may have at most. Replicas that differ by less are left alone, so
that nothing moves back and forth."""
MOST_MOVES = 3
"""Of one stream."""
MOST_AT_ONCE = 16
"""Streams: each is planned again, meanwhile the router does nothing else, and the new place reads their texts."""


class Stream(Protocol):
    """What may move (`Answering`).

    Attributes:
        key: its name on the board. tokens: that came so far. arrived_s: when it was asked for.
    """

    key: str

    @property
    def tokens(self) -> int: ...

    @property
    def arrived_s(self) -> float: ...

    def move(self) -> bool:
        """Leaves its replica for one where it will be done sooner; whether it does."""


class Move(NamedTuple):
    """From one replica to another; `share`: of the streams there that makes both have about the same to do."""

    source: str
    target: str
    share: float


def move_of(loads: Sequence[ReplicaLoad]) -> Move | None:
    """What would level the fullest and the emptiest replica; None where they are level enough. Pure."""
    if len(loads) < 2:
        return None
    full = max(loads, key=lambda load: load.queue_s)
    empty = min(loads, key=lambda load: (load.queue_s, load.sequences))
    differ = full.queue_s - empty.queue_s >= LEAST_GAIN_S and empty.queue_s <= MUCH_LESS * full.queue_s
    if not differ or empty.waiting:
        return None
    return Move(full.replica, empty.replica, (1.0 - empty.queue_s / full.queue_s) / 2)


class Mover:
    """One router's. Every router moves its own streams only, so that together they do not move too many."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._moved_at_s: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, stream: Stream) -> None:
        """The stream may move from now on."""
        self._streams[stream.key] = stream
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.key, None)

    def level(self, loads: Sequence[ReplicaLoad]) -> int:
        """Moves what should be moved now; returns how many."""
        move = move_of(loads)
        if move is None:
            return 0
        at_s = {load.replica: load.at_s for load in loads}
        ends = (move.source, move.target)
        # What moved last is not in loads that are older.
        if any(at_s[replica] <= self._moved_at_s.get(replica, -1.0) for replica in ends):
            return 0
        there = [stream for stream in self._streams.values() if BOARD.place_of(stream.key) == move.source]
        # Those with the least to read again, the last in line first.
        there.sort(key=lambda stream: (stream.tokens, -stream.arrived_s))
        count = min(MOST_AT_ONCE, int(len(there) * move.share))
        moved = sum(stream.move() for stream in there[:count])
        if moved:
            before = {replica: moved_s for replica, moved_s in self._moved_at_s.items() if replica in at_s}
            self._moved_at_s = before | {replica: at_s[replica] for replica in ends}
        return moved

    async def _run(self) -> None:
        while self._streams:
            await asyncio.sleep(EVERY_S)
            self.level(BOARD.loads())
