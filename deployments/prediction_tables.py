"""What of rungs and of replicas' loads enters a prediction (`prediction.py`), as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deployments.history import PRIOR_TAIL
from engine.plan import Rung

if TYPE_CHECKING:
    from deployments.load import ReplicaLoad

Floats = NDArray[np.float64]
Records = NDArray[Any]


class RungRecord(NamedTuple):
    """What a rung can do.

    Attributes:
        length: of a block. steps: most forwards of one. settled: tokens that they give at least.
        calibrated: tokens per forward, 0 where unknown. least: as few as there can be.
        fixed: 1 where the number of forwards follows from the budget alone, else 0.
        first_forwards: after the prompt up to the first text, at most: a diffusion block, or 0, since AR and
            self-speculation show the prompt's own token.
        half: of a last block's forwards, what is done for nothing on average.
    """

    length: float
    steps: float
    settled: float
    calibrated: float
    least: float
    fixed: float
    first_forwards: float
    half: float


class LoadRecord(NamedTuple):
    """The numbers of a `ReplicaLoad`, under its own names and those of its `ForwardCost`; None becomes nan."""

    base_s: float
    per_sequence_s: float
    per_token_s: float
    per_context_s: float
    queue_s: float
    running: float
    waiting: float
    sequences: float
    slots: float
    context: float
    timed_s: float
    timed_others_s: float
    timed_room_s: float
    slip_s: float
    step_s: float
    timed_share: float
    tail_ratio: float
    prefill_chunk: float


_COST = ("base_s", "per_sequence_s", "per_token_s", "per_context_s")
_read_load = attrgetter(*(f"cost.{name}" if name in _COST else name for name in LoadRecord._fields))
"""Of a load, in the order of `LoadRecord`."""
_RUNG, _LOAD = (np.dtype([(name, np.float64) for name in kind._fields]) for kind in (RungRecord, LoadRecord))


def policy_name(rung: Rung) -> str:
    """The name under which replicas report what they measured of a rung."""
    return str(rung.policy())


class RungTable:
    """What of some rungs enters a prediction, worked out once.

    Attributes:
        records: `RungRecord`s `[rungs]`. names: of their policies, as replicas name what they measured. modes: their
            decodings' names.
    """

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self.names = [policy_name(rung) for rung in rungs]
        self.modes = [rung.decoding.value for rung in rungs]
        self.records: Records = np.array([_rung_record(rung) for rung in rungs], dtype=_RUNG)


class LoadTable:
    """What of some replicas' loads enters a prediction.

    Attributes:
        records: `LoadRecord`s `[loads]`. timed: whether, after the loads as any request meets them, they come once more
            as a request with a deadline does, for which those without one make room.
        within_room: whether that may be refused for want of room (`ReplicaLoad.timed_room_s`).
    """

    def __init__(self, loads: Sequence[ReplicaLoad], timed: bool = False, within_room: bool = False) -> None:
        self.loads = loads
        self.timed = timed
        self.within_room = within_room
        self.records: Records = np.array([_read_load(load) for load in loads], dtype=_LOAD)

    def __len__(self) -> int:
        """How many are met."""
        return len(self.loads) * (1 + self.timed)

    def measured(self, rungs: RungTable) -> Floats:
        """Tokens per forward as measured of the rungs, 0 where they were not, `[rungs, loads]`."""
        rates = [load.tokens_per_forward for load in self.loads]
        return np.array([[values.get(name, 0.0) for values in rates] for name in rungs.names])

    def tails(self, rungs: RungTable) -> Floats:
        """p95 of actual over predicted latency by the rungs' modes, of all that are met, `[rungs, len(self)]`.

        What was learned of latencies is what the engine's scheduling made of them; whether a deadline can be kept is
        reckoned as the engine will reckon it.
        """
        learned = [load.latency_tail for load in self.loads]
        prior = [PRIOR_TAIL] * (len(self) - len(learned))
        by_mode = {mode: [tail.get(mode, PRIOR_TAIL) for tail in learned] + prior for mode in set(rungs.modes)}
        return np.array([by_mode[mode] for mode in rungs.modes])


def _rung_record(rung: Rung) -> RungRecord:
    length = rung.block_length
    single, unaudited = length == 1, rung.audit in ("off", "score")
    fixed = single or (rung.is_diffusion and rung.known_steps and unaudited)
    return RungRecord(
        length=length,
        steps=rung.most_forwards_per_block,
        # A round settles at least a token where an audit may cut it, else the whole block, in at most K + 1 forwards.
        settled=length if unaudited and not single else 1,
        calibrated=rung.expected_tokens_per_forward or 0.0,
        least=rung.least_tokens_per_forward,
        fixed=fixed,
        first_forwards=rung.most_forwards_per_block if rung.is_diffusion else 0,
        half=0.0 if single else 0.5,
    )
