"""A replica's open requests: the exact load at admission, and whether a newcomer would make an admitted one late."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from deployments.load import ReplicaLoad
from deployments.prediction import PRIOR_TAIL, Size, expected_forwards
from engine.plan import Rung


@dataclass(slots=True)
class Open:
    """An admitted request.

    Attributes:
        rung: the one it started on. due_s: its deadline on the replica's clock; None without an SLO.
        settled: output tokens so far.
    """

    rung: Rung
    size: Size
    due_s: float | None
    settled: int = 0

    def forwards_left(self, load: ReplicaLoad) -> float:
        left = max(1, self.size.output_tokens - self.settled)
        return expected_forwards(self.rung, left, load.tokens_per_forward)


class OpenRequests:
    """All open requests of a replica, those included that the engine's loop has not taken in yet."""

    def __init__(self) -> None:
        self._open: dict[str, Open] = {}

    def add(self, request_id: str, request: Open) -> None:
        self._open[request_id] = request

    def settle(self, request_id: str, tokens: int) -> None:
        """Counts output tokens."""
        self._open[request_id].settled += tokens

    def remove(self, request_id: str) -> None:
        self._open.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def slots(self) -> int:
        """Query tokens that the open requests put into one forward."""
        return sum(request.rung.block_length for request in self._open.values())

    @property
    def context(self) -> int:
        """Key positions that they look at."""
        return sum(request.size.prompt_tokens + request.settled for request in self._open.values())

    def unseen_s(self, seen: Collection[str], load: ReplicaLoad) -> float:
        """Seconds of work in requests that are not in `seen`, the ids that the engine's own estimate covers."""
        return sum(
            _slot_seconds(request.rung, request.size, load)
            for request_id, request in self._open.items()
            if request_id not in seen
        )

    def endangered(self, rung: Rung, size: Size, load: ReplicaLoad, now_s: float) -> int:
        """How many open requests would miss deadlines that they keep without the newcomer (p95).

        A newcomer takes part in as many of their forwards as both have left, and its prompt is read in between.
        """
        prompt_s = load.per_token_s * size.prompt_tokens + load.base_s
        forwards = expected_forwards(rung, size.output_tokens, load.tokens_per_forward)
        shared_s = load.base_s + load.engine_s + load.per_token_s * self.slots + load.per_context_s * self.context
        late = 0
        for request in self._open.values():
            if request.due_s is None:
                continue
            left_s = request.due_s - now_s
            own = request.forwards_left(load)
            tail = load.latency_tail.get(request.rung.decoding.value, PRIOR_TAIL)
            without_s = own * shared_s * tail
            added_s = (min(own, forwards) * load.per_token_s * rung.block_length + prompt_s) * tail
            late += without_s <= left_s < without_s + added_s
        return late


def _slot_seconds(rung: Rung, size: Size, load: ReplicaLoad) -> float:
    """What a request adds to forwards that run anyway."""
    forwards = expected_forwards(rung, size.output_tokens, load.tokens_per_forward)
    return load.per_token_s * (size.prompt_tokens + forwards * rung.block_length)
