"""Who gets the slots of the next forward. Pure: plain data in, plain data out.

The tightest pace goes first, and the forward grows no longer than that. Who is nearly as tight (`HOLD`) takes part in
any case; a looser deadline and then sequences without one fill what is left, these longest waiting first. One that has
waited for `PATIENCE` forwards takes part on top of that: where it took a place from looser deadlines instead, fewer of
them were in time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as Seq
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from engine.cost_model import ForwardCost

PATIENCE = 8
"""Forwards after which a sequence without a deadline takes part in any case: nothing starves."""
HOLD = 3.0
"""A sequence whose pace is this many times the forward's is held back before anybody tighter has to wait. With 1 no
forward is longer than the tightest pace, and more of them pay their base."""
SMALLEST_CHUNK = 16
"""Prompt tokens below which a chunk is not worth its place in a forward."""


class Want(NamedTuple):
    """What a sequence asks of the next forward.

    Attributes:
        name: the caller's, for the sequence.
        tokens: query tokens; a prefill may get fewer, everything else all or nothing.
        prefill: whether it is a prompt (or a recomputed prefix) being read.
        waited: forwards since it last took part.
        arrival: order of arrival.
        context: key positions that it looks at.
        pace_s: the longest forward that keeps its deadline; inf without one.
        weight: of its tier; a larger one waits less.
    """

    name: int
    tokens: int
    prefill: bool
    waited: int
    arrival: float
    context: int = 0
    pace_s: float = inf
    weight: float = 1.0


class Grant(NamedTuple):
    """`tokens` slots for the sequence `name`."""

    name: int
    tokens: int


def share_slots(
    wants: Seq[Want],
    cost: ForwardCost,
    max_tokens: int,
    prefill_chunk: int,
    longest_s: float = inf,
    hold: float = HOLD,
) -> list[Grant]:
    """Fills one forward with up to `max_tokens` slots, and about `longest_s` seconds.

    `hold`: `HOLD`, or less where deadlines slip.

    One prompt chunk (or a quarter of the forward, if that is less) is kept for the first prompt in line, so that a full
    house never stalls a new request. Prompts are cut to what the tightest pace leaves.
    """
    advancing: list[Want] = []
    reading: list[Want] = []
    patient: list[Want] = []
    for want in wants:
        (patient if want.pace_s == inf else reading if want.prefill else advancing).append(want)
    for line in (advancing, reading):
        # The tightest first, then as they arrived; by two numbers at once it takes twice as long.
        line.sort(key=_arrival)
        line.sort(key=_pace)
    patient.sort(key=_turn)
    tightest = [*advancing[:1], *reading[:1]]
    prompts = [*reading, *(want for want in patient if want.prefill)]
    reserved = min(prefill_chunk, max(max_tokens // 4, 1), prompts[0].tokens) if prompts else 0
    limit_s = min([longest_s, *(want.pace_s for want in tightest)])
    forward = _Forward(cost, limit_s, max_tokens, reserved, prefill_chunk)
    # Who is nearly as tight as the tightest goes first, whatever that makes of the forward.
    tight_s = hold * limit_s
    ends = [(line, bisect_right(line, tight_s, key=_pace)) for line in (advancing, reading)]
    for line, end in ends:
        for want in line[:end]:
            forward.add(want, insist=True)
    for line, end in ends:
        for want in line[end:]:
            if forward.full:
                break
            # However long one of them takes alone, a forward has to have somebody in it.
            forward.add(want, insist=not forward.grants)
    overdue = max(patient, key=lambda want: want.waited, default=None)
    if tightest and overdue is not None and overdue.waited >= PATIENCE:
        patient.remove(overdue)
        forward.add(overdue, insist=True)
    for want in patient:
        if forward.full:
            break
        forward.add(want, insist=not forward.grants)
    return forward.grants


_pace, _arrival = attrgetter("pace_s"), attrgetter("arrival")


def _turn(want: Want) -> tuple[bool, float, float]:
    """The order of those without a deadline: whoever waited longest by weight, then prompts as they arrived."""
    waited = 0.0 if want.prefill else -(want.waited + 1) * want.weight
    return (want.prefill, waited, want.arrival)


class _Forward:
    """A forward that is being filled."""

    def __init__(self, cost: ForwardCost, limit_s: float, max_tokens: int, reserved: int, prefill_chunk: int) -> None:
        self.limit_s = limit_s
        # As `ForwardCost.own_s`, without a call for each of hundreds of sequences.
        self._per_sequence_s = cost.per_sequence_s
        self._per_token_s = cost.per_token_s
        self._per_context_s = cost.per_context_s
        self.left = max_tokens
        self.reserved = reserved
        self.prefill_chunk = prefill_chunk
        self.used_s = cost.base_s
        self.grants: list[Grant] = []

    @property
    def full(self) -> bool:
        """Whether nobody is taken in any more, unless it has to be: of hundreds, most come when it is."""
        least_s = self.used_s + self._per_sequence_s + self._per_token_s
        return bool(self.grants) and (self.left < 1 or least_s > self.limit_s)

    def add(self, want: Want, insist: bool = False) -> None:
        """Takes the sequence in if there is room; `insist`: however long the forward becomes."""
        prefill, tokens = want.prefill, want.tokens
        if prefill:
            tokens = self._chunk(want, insist)
        room = self.left if prefill else self.left - self.reserved
        if not 0 < tokens <= room:
            return
        used_s = self.used_s + self._per_sequence_s + self._per_token_s * tokens + self._per_context_s * want.context
        if used_s > self.limit_s and not insist:
            return
        self.grants.append(Grant(want.name, tokens))
        self.left -= tokens
        self.used_s = used_s
        if prefill:
            self.reserved = 0

    def _chunk(self, want: Want, insist: bool) -> int:
        """Prompt tokens that fit; when there is hardly room, the smallest chunk or, unless it has to be, none."""
        most = min(want.tokens, self.prefill_chunk, self.left)
        spare_s = self.limit_s - self.used_s - self._per_sequence_s - self._per_context_s * want.context
        if self._per_token_s * most <= spare_s:
            return most
        fitting = min(most, max(0, int(spare_s / self._per_token_s)))
        smallest = min(SMALLEST_CHUNK, most)
        return fitting if fitting >= smallest else smallest * insist
