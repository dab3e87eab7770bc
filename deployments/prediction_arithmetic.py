"""How long a request takes on one rung at one replica, for all of them: the arithmetic of `prediction.py`, compiled."""

from __future__ import annotations

import math
from typing import NamedTuple

from deployments.prediction_tables import Floats, LoadRecord, Records, RungRecord
from kernels.compiled import compiled

UNKNOWN = 1e-12
"""Tokens per forward of which nothing is known: so few that the most forwards possible are what counts."""
LEAST_ROOM = 1e-3
"""Of a forward's base: less room counts as that, so that a refusal always has a deadline to offer, however far."""
MOST_TIMED = 0.9
"""The share of the time that deadlines take, at most: a queue that grows has no end that could be predicted."""


@compiled
def fill_predictions(
    found: Floats,
    rungs: Records,
    loads: Records,
    measured: Floats,
    tails: Floats,
    timed: bool,
    within_room: bool,
    prompt_tokens: float,
    cached_tokens: Floats,
    median_tokens: Floats,
    reckoned_tokens: Floats,
    safety: float,
    kept_margin: float,
) -> None:
    """`predict_all` into `found`, float64 `[fields of Predictions, rungs, met]`.

    Args:
        rungs: `RungRecord`s. loads, measured, tails, timed, within_room: as of `LoadTable`.
        safety, kept_margin: `SAFETY` and `KEPT`.
    """
    for place in range(found.shape[2]):
        load = place % len(loads)
        at = _met(loads[load], place >= len(loads), within_room, not timed)
        unread = max(1.0, prompt_tokens - cached_tokens[load])
        chunks = math.ceil(unread / at.chunk)
        read_s = at.token_s * unread
        prompt_s = chunks * at.alone_s + read_s
        longer_s = at.context_s / 2  # by a token of the answer
        for row in range(len(rungs)):
            rung, tail, median, reckoned = rungs[row], tails[row, place], median_tokens[row], reckoned_tokens[row]
            rate = _rate(rung.calibrated, measured[row, load])
            own_s = at.alone_s + at.token_s * rung.length + at.context_s * prompt_tokens
            forwards = _forwards(rung, median, rate)
            forward_s, longest_s = own_s + longer_s * median, own_s + longer_s * reckoned
            together_s = _together_s(at, prompt_s, chunks, forwards, forward_s)
            # One forward's tail averages out over many; a mode's own spread does not.
            machine = max(tail, 1.0 + at.machine / math.sqrt(forwards + chunks))
            long_s = _together_s(at, prompt_s, chunks, _forwards(rung, reckoned, rate), longest_s)
            spread = math.hypot(math.log(max(long_s / together_s, 1.0)), math.log(machine))
            p95_s = _with_entry_s(at, together_s, math.exp(spread))
            read = min(unread, at.chunk)
            accelerator_s = (prompt_s + chunks * at.others_s) * read / (at.slots + read)
            accelerator_s += forwards * (forward_s + at.others_s) * rung.length / (at.slots + rung.length)
            # As the engine reckons: everybody rides along, forwards of one length, the prompt's chunks among them. What
            # rides in only some of them makes the mean one longer by that share, which has to fit into the room that
            # others leave.
            kept = _admitted_forwards(rung, reckoned, rate) + chunks
            full_s, added_s = longest_s + at.others_s, longest_s - at.base_s + read_s / kept
            crowded_s = 0.0
            if added_s > at.room_s:
                crowded_s = kept_margin * (at.base_s + at.others_s) * added_s / at.room_s
            first = min(forwards, rung.first_forwards)
            first_tail = max(tail, 1.0 + at.machine / math.sqrt(first + chunks))
            first_s = _with_entry_s(at, _together_s(at, prompt_s, chunks, first, own_s), first_tail)
            first_full_s = max(safety * (full_s + read_s / kept), crowded_s)
            found[0, row, place] = at.entry_s / 2 + together_s
            found[1, row, place] = p95_s
            found[2, row, place] = max(safety * (kept * full_s + read_s), kept * crowded_s) + at.slip_s
            found[3, row, place] = min(first_s, p95_s)
            found[4, row, place] = (max(first, 1.0) + chunks) * first_full_s + read_s + at.slip_s
            found[5, row, place] = accelerator_s


class _Met(NamedTuple):
    """A load as a request meets it.

    Attributes:
        base_s, alone_s: of a forward with nobody, and with the request alone. token_s, context_s: as fitted.
        others_s, queue_s: what the others add to a forward, and all their work. slots: their query tokens.
        entry_s: the forward that a newcomer finds under way. wait_s: for those in line.
        machine: by how much the p95 of a forward is above its median.
        room_s: what it may add to a forward; inf where nobody minds.
        patient, stretch: of the work in front of it the part without a deadline, 0..1, and how many times longer those
            who come later and go first make that and its own.
    """

    base_s: float
    alone_s: float
    token_s: float
    context_s: float
    others_s: float
    queue_s: float
    entry_s: float
    slots: float
    wait_s: float
    chunk: float
    machine: float
    slip_s: float
    room_s: float
    patient: float
    stretch: float


@compiled
def _met(load: LoadRecord, timed: bool, within_room: bool, overtaken: bool) -> _Met:
    """`timed`: by a request with a deadline. `overtaken`: whether those who come later may go first."""
    base_s = load.base_s
    everybody_s = (
        load.per_sequence_s * load.sequences + load.per_token_s * load.slots + load.per_context_s * load.context
    )
    # A newcomer finds a forward under way, as long as recent ones were; not everybody rides in each.
    recent_s = load.step_s * load.tail_ratio
    entry_s = min(base_s + everybody_s, recent_s if recent_s > 0 else math.inf, load.queue_s)
    room_s = math.inf
    if timed and within_room and not math.isnan(load.timed_room_s):
        room_s = max(load.timed_room_s, LEAST_ROOM * base_s)
    in_line = load.waiting / (load.waiting + load.running) if load.waiting and not timed else 0.0
    return _Met(
        base_s,
        base_s + load.per_sequence_s,
        load.per_token_s,
        load.per_context_s,
        load.timed_others_s if timed else everybody_s,
        load.timed_s if timed else load.queue_s,
        entry_s if load.sequences else 0.0,
        load.slots,
        load.queue_s * in_line,
        load.prefill_chunk,
        load.tail_ratio - 1.0,
        load.slip_s,
        room_s,
        1.0 - min(1.0, load.timed_s / load.queue_s) if load.queue_s and overtaken else 1.0,
        1.0 / (1.0 - min(load.timed_share, MOST_TIMED)) if overtaken else 1.0,
    )


@compiled
def _rate(calibrated: float, measured: float) -> float:
    """Tokens per forward, from what is known; 0 where that is nothing."""
    if measured > 0 and calibrated > 0:
        return (calibrated + measured) / 2
    return max(measured, calibrated)


@compiled
def _forwards(rung: RungRecord, output_tokens: float, rate: float) -> float:
    """Forwards after the prompt, within what is possible."""
    known = UNKNOWN if rung.fixed else max(rate, UNKNOWN)
    return min(math.ceil(output_tokens / rung.settled) * rung.steps, max(1.0, output_tokens / known))


@compiled
def _admitted_forwards(rung: RungRecord, output_tokens: float, rate: float) -> float:
    """Forwards after the prompt as the engine's admission reckons them: with half of a last block for nothing."""
    known = rate if rate > 0 else rung.least
    return max(1.0, output_tokens / known + rung.half * min(rung.length / known, rung.steps))


@compiled
def _together_s(at: _Met, prompt_s: float, chunks: float, count: float, forward_s: float) -> float:
    """So many forwards after the prompt, with what others make of them."""
    own = prompt_s + count * forward_s
    others = min(at.wait_s + at.others_s * (count + chunks), at.queue_s)
    return max(own + others, (own + at.patient * others) * at.stretch)


@compiled
def _with_entry_s(at: _Met, forwards_s: float, tail: float) -> float:
    """The p95 of forwards whose own is `tail` times their median, after the one that a newcomer finds under way.

    Half of that is left on average.
    """
    half_entry_s = at.entry_s / 2
    return half_entry_s + forwards_s + math.hypot(half_entry_s, forwards_s * (tail - 1))
