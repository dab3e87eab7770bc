"""First come, first served, where a client asks one thing at a time.

gevent's semaphores let one that comes at the moment of a release pass those that wait (they wake a turn of the event
loop later). In a load test that would be an answer without its wait, and somebody else's wait too long.
"""

from __future__ import annotations

from collections import deque

from gevent.event import Event


class Line:
    """So many places; who leaves one hands it to who has waited longest. A context manager."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[Event] = deque()

    def __enter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn = Event()
        self._waiting.append(turn)
        try:
            turn.wait()
        except BaseException:  # killed: the turn is the next one's
            if turn.is_set():
                self._hand_on()
            else:
                self._waiting.remove(turn)
            raise

    def __exit__(self, *_: object) -> None:
        self._hand_on()

    def _hand_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._free += 1
