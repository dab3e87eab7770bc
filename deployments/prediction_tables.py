"""What of rungs and of replicas' loads enters a prediction (`prediction.py`), as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deployments.history import PRIOR_TAIL
from engine.plan import Rung

if TYPE_CHECKING:
    from deployments.load import ReplicaLoad

Floats = NDArray[np.float64]

LEAST_ROOM = 1e-3
"""Of a forward's base: less room counts as that, so that a refusal always has a deadline to offer, however far."""
MOST_TIMED = 0.9
"""The share of the time that deadlines take, at most: a queue that grows has no end that could be predicted."""
UNKNOWN = 1e-12
"""Tokens per forward of which nothing is known: so few that the most forwards possible are what counts."""


def policy_name(rung: Rung) -> str:
    """The name under which replicas report what they measured of a rung."""
    return str(rung.policy())


class RungTable:
    """What of some rungs enters a prediction, as arrays `[rungs, replicas]` of equal columns, worked out once.

    Attributes:
        names: of their policies, as replicas name what they measured. modes: their decodings' names.
        fixed: whether the number of forwards follows from the budget alone.
        first_forwards: after the prompt up to the first text, at most: a diffusion block, or the prompt's own token.
    """

    def __init__(self, rungs: Sequence[Rung], replicas: int = 1) -> None:
        self.names = [policy_name(rung) for rung in rungs]
        self.modes = [rung.decoding.value for rung in rungs]
        self._rungs = rungs
        self._widths: dict[int, RungTable] = {replicas: self}

        def column(values: Iterable[float]) -> Floats:
            return np.repeat(np.array([*values], dtype=np.float64)[:, None], replicas, axis=1)

        single = column(rung.block_length == 1 for rung in rungs) > 0
        unaudited = column(rung.audit in ("off", "score") for rung in rungs) > 0
        diffusion = column(rung.is_diffusion for rung in rungs) > 0
        early = column(rung.threshold is not None for rung in rungs) > 0
        self.length = column(rung.block_length for rung in rungs)
        self._steps = column(rung.most_forwards_per_block for rung in rungs)
        # A round settles at least a token where an audit may cut it, else the whole block, in at most K + 1 forwards.
        self._settled: Floats = np.where(unaudited & ~single, self.length, 1.0)
        self._calibrated = column(rung.expected_tokens_per_forward or 0.0 for rung in rungs)
        self._least = column(rung.least_tokens_per_forward for rung in rungs)
        self.fixed: NDArray[np.bool_] = single | (diffusion & ~early & unaudited)
        self.first_forwards: Floats = np.where(diffusion, self._steps, 0.0)
        self._half: Floats = np.where(single, 0.0, 0.5)

    def across(self, replicas: int) -> RungTable:
        """The same for so many replicas: on arrays of one shape numpy works two to four times as fast."""
        table = self._widths.get(replicas)
        if table is None:
            table = self._widths[replicas] = RungTable(self._rungs, replicas)
        return table

    def most_forwards(self, output_tokens: Floats) -> Floats:
        """Forwards after the prompt that the rungs cannot exceed."""
        rounds: Floats = np.ceil(output_tokens / self._settled)
        return rounds * self._steps

    def rates(self, measured: Sequence[Mapping[str, float]], times: int = 1) -> Floats:
        """Tokens per forward, calibrated and measured, `[rungs, replicas]`; 0 where they are neither.

        `times`: how often the replicas come one after the other.
        """
        if not any(measured):
            return self._calibrated
        seen = np.array([[values.get(name, 0.0) for values in measured] * times for name in self.names])
        both: Floats = np.where(self._calibrated > 0, (self._calibrated + seen) / 2, seen)
        return np.where(seen > 0, both, self._calibrated)

    def forwards(self, output_tokens: Floats, rates: Floats) -> Floats:
        """Forwards after the prompt, from what `rates` returned, within what is possible."""
        known: Floats = np.where(self.fixed, UNKNOWN, np.maximum(rates, UNKNOWN))
        forwards: Floats = np.minimum(self.most_forwards(output_tokens), np.maximum(1.0, output_tokens / known))
        return forwards

    def admitted_forwards(self, output_tokens: Floats, rates: Floats) -> Floats:
        """Forwards after the prompt as the engine's admission reckons them: with half of a last block for nothing."""
        known: Floats = np.where(rates > 0, rates, self._least)
        rest = self._half * np.minimum(self.length / known, self._steps)
        forwards: Floats = np.maximum(1.0, output_tokens / known + rest)
        return forwards


class _Columns(NamedTuple):
    """The numbers of loads, each of them `[rungs, replicas]`.

    Attributes:
        base_s, bare_s: of a forward with the request alone, and with nobody. token_s, context_s: as fitted.
        others_s, queue_s: what the others add to a forward, and all their work. slots: their query tokens.
        entry_s: the forward that a newcomer finds under way. wait_s: for those in line.
        machine: by how much the p95 of a forward is above its median. chunk, slip_s, room_s: as in `ReplicaLoad`.
        patient, stretch: of the work in front of a request without a deadline the part without one, 0..1, and how many
            times longer those who come later and go first make that and its own.
    """

    base_s: Floats
    token_s: Floats
    context_s: Floats
    others_s: Floats
    queue_s: Floats
    entry_s: Floats
    slots: Floats
    wait_s: Floats
    chunk: Floats
    machine: Floats
    slip_s: Floats
    bare_s: Floats
    room_s: Floats
    patient: Floats
    stretch: Floats


class LoadTable:
    """What of some replicas' loads enters a prediction.

    Attributes:
        loads: those that any request meets. timed: those after them, as a request with a deadline meets them, for which
            those without one make room. overtaken: whether those who come later may go first.
    """

    def __init__(
        self, loads: Sequence[ReplicaLoad], timed: Sequence[ReplicaLoad] = (), within_room: bool = False
    ) -> None:
        """`within_room`: whether what has a deadline may be refused for want of room (`ReplicaLoad.timed_room_s`)."""
        self.loads = loads
        self.timed = timed
        rows = [*(_load_row(load) for load in loads), *(_load_row(load, True, within_room) for load in timed)]
        self._columns = np.array(rows).T[:, None]
        self.overtaken = not timed
        # What was learned of latencies is what the engine's scheduling made of them; whether a deadline can be kept is
        # reckoned as the engine will reckon it.
        self._tails = [load.latency_tail for load in loads]

    def __len__(self) -> int:
        return len(self.loads) + len(self.timed)

    def beside(self, rungs: int) -> _Columns:
        """Every number for so many rungs."""
        return _Columns(*np.repeat(self._columns, rungs, axis=1))

    def rates_of(self, rungs: RungTable) -> Floats:
        """Tokens per forward of the rungs, `[rungs, replicas]`."""
        twice = self.timed is self.loads
        once = self.loads if twice else (*self.loads, *self.timed)
        return rungs.rates([load.tokens_per_forward for load in once], 1 + twice)

    def tails_of(self, rungs: RungTable) -> Floats:
        """p95 of actual over predicted latency by the rungs' modes, `[rungs, replicas]`."""
        prior = [PRIOR_TAIL] * len(self.timed)
        by_mode = {mode: [tail.get(mode, PRIOR_TAIL) for tail in self._tails] + prior for mode in set(rungs.modes)}
        return np.array([by_mode[mode] for mode in rungs.modes])


def _load_row(load: ReplicaLoad, timed: bool = False, within_room: bool = False) -> tuple[float, ...]:
    """The numbers of a load, in the order of `_Columns`."""
    cost = load.cost
    everybody_s = load.others_s
    room_s = load.timed_room_s
    queued = load.waiting and not timed
    # A newcomer finds a forward under way, as long as recent ones were; not everybody rides in each.
    entry_s = min(cost.base_s + everybody_s, load.step_s * load.tail_ratio or math.inf, load.queue_s)
    return (
        cost.base_s + cost.per_sequence_s,
        cost.per_token_s,
        cost.per_context_s,
        load.timed_others_s if timed else everybody_s,
        load.timed_s if timed else load.queue_s,
        entry_s if load.sequences else 0.0,
        load.slots,
        load.queue_s * load.waiting / (load.waiting + load.running) if queued else 0.0,
        load.prefill_chunk,
        load.tail_ratio - 1.0,
        load.slip_s,
        cost.base_s,
        math.inf if room_s is None or not within_room else max(room_s, LEAST_ROOM * cost.base_s),
        1.0 - min(1.0, load.timed_s / load.queue_s) if load.queue_s else 1.0,
        1.0 / (1.0 - min(load.timed_share, MOST_TIMED)),
    )
