"""A replica's load as it travels: with every event of a stream, and as routing stats in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.plan import Rung
    from engine.stats import EngineStats


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What a planner needs to know about one replica.

    Attributes:
        replica: its id. at_s: when this was true, on the replica's clock; only compared with the same replica's.
        queue_s: predicted seconds of forwards waiting plus running.
        running, waiting: sequences with and without K/V.
        slots, context: query tokens and key positions that the open requests put into a forward.
        base_s, per_token_s, per_context_s: the fitted cost of a forward. tail_ratio: its p95 over its median.
        engine_s: seconds a forward costs beside the model (scheduling, sampling, sending).
        prefill_chunk: most prompt tokens of one sequence in a forward.
        latency_tail: p95 of actual over predicted latency, by mode, as this replica measured it.
        tokens_per_forward: as measured here, by `str(rung.policy())`.
    """

    replica: str
    at_s: float = 0.0
    queue_s: float = 0.0
    running: int = 0
    waiting: int = 0
    slots: float = 0.0
    context: float = 0.0
    base_s: float = 4e-3
    per_token_s: float = 1e-4
    per_context_s: float = 1e-7
    tail_ratio: float = 1.5
    engine_s: float = 0.0
    prefill_chunk: int = 256
    latency_tail: dict[str, float] = field(default_factory=dict)
    tokens_per_forward: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ReplicaLoad:
        return ReplicaLoad(**data)

    def idle(self) -> ReplicaLoad:
        """The same replica with nothing to do: what decides whether an SLO is feasible at all.

        Without its measured tails, which come from times with others.
        """
        return ReplicaLoad(
            replica=self.replica,
            base_s=self.base_s,
            per_token_s=self.per_token_s,
            per_context_s=self.per_context_s,
            tail_ratio=self.tail_ratio,
            engine_s=self.engine_s,
            prefill_chunk=self.prefill_chunk,
            tokens_per_forward=self.tokens_per_forward,
        )


class LoadMeter:
    """Turns an engine's counters into a load; the engine's own cost is a mean over the forwards of a window."""

    def __init__(self, replica: str, prefill_chunk: int, ladder: Sequence[Rung] = (), window_s: float = 0.25) -> None:
        """Only `ladder`'s measured tokens per forward are passed on: clients can pin any number of other rungs."""
        self.replica = replica
        self.prefill_chunk = prefill_chunk
        self.window_s = window_s
        self._rungs = {str(rung.policy()) for rung in ladder}
        self._from: tuple[float, int, float] = (0.0, 0, 0.0)
        self._engine_s = 0.0

    def read(
        self, stats: EngineStats, now_s: float, slots: float, context: float, latency_tail: dict[str, float]
    ) -> ReplicaLoad:
        """The load at `now_s`, with the slots and context of the open requests."""
        since, forwards, engine_s = self._from
        if now_s - since >= self.window_s and stats.forwards > forwards:
            self._engine_s = max(0.0, (stats.busy_s - stats.forward_s - engine_s) / (stats.forwards - forwards))
            self._from = (now_s, stats.forwards, stats.busy_s - stats.forward_s)
        cost = stats.cost_model
        return ReplicaLoad(
            replica=self.replica,
            at_s=now_s,
            queue_s=stats.queue_s,
            running=stats.running,
            waiting=stats.waiting,
            slots=slots,
            context=context,
            base_s=cost["base_s"],
            per_token_s=cost["per_token_s"],
            per_context_s=cost["per_context_s"],
            tail_ratio=cost["tail_ratio"],
            engine_s=self._engine_s,
            prefill_chunk=self.prefill_chunk,
            latency_tail=dict(latency_tail),
            tokens_per_forward={name: value for name, value in stats.tokens_per_forward.items() if name in self._rungs},
        )
