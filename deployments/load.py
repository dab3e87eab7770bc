"""A replica's load as it travels: with every event of a stream, and as routing stats in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from engine.cost_model import ForwardCost

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
        timed_s, timed_others_s: seconds of work in requests with a deadline, and what they add to the mean forward when
            they ride as often as they need: what has none, or a loose one, gives way to a tight newcomer.
        timed_room_s: what a newcomer may add to it before one of them is worse off; None where nobody would be.
        slip_s: by how much its admission takes deadlines to be earlier than they are (`engine/outlook.py`).
        step_s: of a recent forward, or of those that no newcomer interrupts, with all the engine's own work: what a
            newcomer may have to wait for; 0 where there was none.
        timed_share: of its time of late, what went to requests with a deadline.
        cost: the fitted cost of a forward. tail_ratio: its p95 over its median.
        prefill_chunk: most prompt tokens of one sequence in a forward.
        latency_tail: p95 of actual over predicted latency, by mode, as this replica measured it.
        tokens_per_forward: as measured here, by `str(rung.policy())`.
    """

    replica: str
    at_s: float = 0.0
    queue_s: float = 0.0
    running: int = 0
    waiting: int = 0
    sequences: int = 0
    slots: float = 0.0
    context: float = 0.0
    timed_s: float = 0.0
    timed_others_s: float = 0.0
    timed_room_s: float | None = None
    slip_s: float = 0.0
    step_s: float = 0.0
    timed_share: float = 0.0
    cost: ForwardCost = field(default_factory=ForwardCost)
    tail_ratio: float = 1.5
    prefill_chunk: int = 256
    latency_tail: dict[str, float] = field(default_factory=dict)
    tokens_per_forward: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ReplicaLoad:
        return ReplicaLoad(**{**data, "cost": ForwardCost.from_dict(data["cost"])})

    @property
    def others_s(self) -> float:
        """What the open requests add to a forward that they all take part in."""
        cost = self.cost
        return cost.seconds(self.slots, self.context, self.sequences) - cost.base_s

    def idle(self) -> ReplicaLoad:
        """The same replica with nothing to do: what decides whether an SLO is feasible at all.

        Without its measured tails, which come from times with others.
        """
        return ReplicaLoad(
            replica=self.replica,
            cost=self.cost,
            tail_ratio=self.tail_ratio,
            prefill_chunk=self.prefill_chunk,
            tokens_per_forward=self.tokens_per_forward,
        )


def load_met(before: ReplicaLoad, after: ReplicaLoad, latency_s: float) -> ReplicaLoad:
    """The load that an answer of `latency_s` met: the mean of those at its start and at its end.

    Who came later was not to be foreseen, and is judged by its own admission.
    """
    return replace(
        before,
        slots=(before.slots + after.slots) / 2,
        sequences=(before.sequences + after.sequences) // 2,
        context=(before.context + after.context) / 2,
        queue_s=max(before.queue_s, latency_s),
        timed_share=0.0,
    )


class LoadMeter:
    """Turns an engine's stats into a load."""

    def __init__(self, replica: str, prefill_chunk: int, ladder: Sequence[Rung] = ()) -> None:
        """Only `ladder`'s measured tokens per forward are passed on: clients can pin any number of other rungs."""
        self.replica = replica
        self.prefill_chunk = prefill_chunk
        self._rungs = {str(rung.policy()) for rung in ladder}

    def read(self, stats: EngineStats, now_s: float, latency_tail: dict[str, float]) -> ReplicaLoad:
        """The load at `now_s`."""
        return ReplicaLoad(
            replica=self.replica,
            at_s=now_s,
            queue_s=stats.queue_s,
            running=stats.running,
            waiting=stats.waiting,
            sequences=stats.running + stats.waiting,
            slots=stats.open_slots,
            context=stats.open_context,
            timed_s=stats.timed_s,
            timed_others_s=max(0.0, stats.timed_forward_s - stats.cost_model["cost"]["base_s"]),
            timed_room_s=stats.timed_room_s,
            slip_s=stats.slip_s,
            step_s=stats.step_s,
            timed_share=stats.timed_share,
            cost=ForwardCost.from_dict(stats.cost_model["cost"]),
            tail_ratio=stats.cost_model["tail_ratio"],
            prefill_chunk=self.prefill_chunk,
            latency_tail=dict(latency_tail),
            tokens_per_forward={name: value for name, value in stats.tokens_per_forward.items() if name in self._rungs},
        )
