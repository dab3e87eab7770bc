"""What is ahead of the engine's sequences: work left, what deadlines ask for, and the rungs that follow from it.

Reads sequences and changes none. The arithmetic is `engine/pace.py` and `engine/decoding/rung_choice.py`; here it meets
the sequences' state, the fitted cost of a forward and the measured tokens per forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine.answer_lengths import NOTHING_SEEN, AnswerLengths
from engine.curve import Curve
from engine.decoding.last_blocks import next_block
from engine.decoding.rung_choice import (
    Crowd,
    Ladder,
    Load,
    TokensPerForward,
    Worth,
    preferred,
    throughput,
    worth_of,
)
from engine.pace import NO_CURVE, NO_PACING, NO_STEPS, NOBODY, Pacing, Ride, Riders, StepTable, longest_s
from engine.prices import Prices
from engine.scheduler import HOLD, PATIENCE
from engine.sequence import TERMS

if TYPE_CHECKING:
    from engine.cost_model import ForwardCost, ForwardCostModel
    from engine.plan import Rung
    from engine.sequence import Sequence

VIEW_HOLDS, STEADY = 8, 0.05
"""Looks ahead for which a view without deadlines holds while nobody comes or goes, and by how much the cost of a
forward may move meanwhile: what it rests on moves slowly."""
A_BLOCK = 32
"""Slots of a long block, for comparing costs."""
SLIPPED = 0.01
"""The share of deadlines that may be missed: `slip_s` comes to rest where it is so many."""
SLIPPING = 1.0
"""The `slip_s`, in bases of a forward, from which on forwards are held to the tightest pace."""
MOST_SLIP = 16.0
"""The longest `slip_s`, in bases of a forward."""


@dataclass(frozen=True, slots=True)
class View:
    """The sequences with a deadline as riders of one forward.

    Attributes:
        timed: the sequences, `riders` and `pacing` in their order. curve: what they add to a forward. fixed_s: the rest
            of one, whoever rides: its base, and the share of those without a deadline that have waited too long.
        prices: what rungs are worth among them.
        best: the rung (index) of each ladder's best quality for those without a deadline.
    """

    timed: list[Sequence]
    riders: Riders
    table: StepTable
    pacing: Pacing
    curve: Curve
    ride: Ride
    fixed_s: float
    prices: Prices
    best: dict[Ladder, int]


@dataclass(frozen=True, slots=True)
class Company:
    """Those with a deadline whom a newcomer would join.

    Attributes:
        curve: what they add to a forward. forward_s: their mean one. most_s: the longest in which all are as well off.
        fixed_s, prices: as in `View`.
    """

    curve: Curve
    forward_s: float
    most_s: float
    fixed_s: float
    prices: Prices

    @property
    def room_s(self) -> float:
        """What a newcomer may add to the mean forward; inf where nobody minds.

        A longer forward makes others ride more often, so that the most is not what lies between `forward_s` and
        `most_s`, but what the others leave of the forward between them that they leave most of.
        """
        return inf if self.most_s == inf else self.curve.room_s(self.fixed_s, self.forward_s, self.most_s)


class NextBlock(NamedTuple):
    """What a sequence opens at a border: a block of `rung`; `fitted` to an end that the answer may have in it, and so
    not of the rung for the long run (`engine/decoding/last_blocks.py`)."""

    rung: Rung
    fitted: bool = False


class Backlog(NamedTuple):
    """What sequences have ahead of them.

    Attributes:
        queue_s, timed_s: predicted seconds of forwards until all are done, and until those with a deadline are.
        unread: prompt tokens. slots, context: query tokens and key positions of a forward in which all take part.
    """

    queue_s: float
    timed_s: float
    unread: int
    slots: int
    context: int


@dataclass(frozen=True, slots=True)
class _Survey:
    """The sequences, counted.

    Attributes:
        timed, fixed_s, crowd: as in `View`. lengths, rows: of `timed`, in tokens, and as places among `kinds`.
        kinds: the ladders and first qualities of `timed` that occur. ladders: of all that do.
        free: of those whose plans leave the rung open, per ladder: how many, and what their contexts add to a forward.
        pinned: what the others add to it.
    """

    timed: list[Sequence]
    lengths: list[int]
    rows: list[int]
    kinds: Iterable[tuple[Ladder, int]]
    fixed_s: float
    crowd: Crowd
    ladders: set[Ladder]
    free: dict[Ladder, tuple[int, float]]
    pinned: Load


@dataclass(slots=True)
class HeldView:
    """A view without deadlines, for whom and at which cost of a forward it was made, and how often it was used."""

    sequences: list[Sequence]
    cost: ForwardCost
    view: View
    uses: int = 0

    def holds(self, sequences: Seq[Sequence], cost: ForwardCost) -> bool:
        """Whether it holds for these, once more. None of them gets a deadline that had none before."""
        self.uses += 1
        before = self.cost
        return (
            self.uses < VIEW_HOLDS
            and self.sequences == sequences
            and abs(cost.base_s - before.base_s) <= STEADY * before.base_s
            and all(
                abs(cost.own_s(slots, 0) - before.own_s(slots, 0)) <= STEADY * before.own_s(slots, 0)
                for slots in (1, A_BLOCK)
            )
        )


class Outlook:
    """Predicts what sequences still need.

    Attributes:
        meter: tokens per forward of every rung, as measured here. lengths: of answers.
        slip_s: by how much a newcomer's deadline is taken to be earlier than it is. What makes deadlines slip is seen
            only when it happens (stalls, other threads, bursts), so every miss adds a forward's base and every deadline
            that was kept takes a hundredth of that away again.
    """

    def __init__(self, cost_model: ForwardCostModel, prefill_chunk: int) -> None:
        self.cost_model = cost_model
        self.prefill_chunk = prefill_chunk
        self.meter = TokensPerForward()
        self.lengths = AnswerLengths()
        self.slip_s = 0.0
        self._held: HeldView | None = None
        self._in_use: dict[Ladder, int] = {}  # the rung of each ladder that was worth most the last time

    @property
    def cost(self) -> ForwardCost:
        return self.cost_model.cost

    @property
    def hold(self) -> float:
        """How many times the tightest pace still counts as tight (`share_slots`): less while deadlines slip."""
        slipping = min(1.0, self.slip_s / max(SLIPPING * self.cost.base_s, 1e-9))
        return HOLD - (HOLD - 1.0) * slipping

    def ended(self, in_time: bool | None) -> None:
        """Learns from a finished answer whether its deadline was kept (None: it had none)."""
        if in_time is not None:
            base_s = self.cost.base_s
            step_s = -SLIPPED * base_s if in_time else base_s
            self.slip_s = min(max(self.slip_s + step_s, 0.0), MOST_SLIP * base_s)

    def view(self, sequences: Seq[Sequence], now: float) -> View:
        """What the deadlines of `sequences` ask of the coming forwards."""
        held = self._held
        if held is not None and held.holds(sequences, self.cost):
            return held.view
        survey = self._survey(sequences)
        worth = {ladder: self.worth(ladder, survey.crowd) for ladder in survey.ladders}
        price = throughput(survey.free, worth, survey.pinned)
        prices = Prices(lambda ladder: worth.get(ladder) or self.worth(ladder, survey.crowd), price)
        best = {ladder: self._best(ladder, values, price) for ladder, values in worth.items()}
        # Without anybody, as on every border of those without a deadline, nothing of it is worked out.
        riders, table, pacing, curve, forward_s = NOBODY, NO_STEPS, NO_PACING, NO_CURVE, survey.fixed_s
        if survey.timed:
            table, riders = _table(survey, prices), self._riders(survey, now)
            pacing = Pacing(riders, table, survey.fixed_s)
            curve = Curve(pacing.changes())
            forward_s = curve.rest_s(survey.fixed_s)
        ride = pacing.ride(forward_s)
        view = View(survey.timed, riders, table, pacing, curve, ride, survey.fixed_s, prices, best)
        self._held = None if survey.timed else HeldView(list(sequences), self.cost, view)
        return view

    def next_blocks(self, borders: Iterable[Sequence], view: View) -> dict[Sequence, NextBlock]:
        """The next block of every sequence in `borders`, whose plans leave it open."""
        self._in_use |= view.best
        asked = {}
        for sequence, row, place in zip(
            view.timed, view.riders.ladder.tolist(), view.ride.places.tolist(), strict=True
        ):
            asked[sequence] = view.table.steps[row][place].rung
        return {sequence: self._next_block(sequence, asked.get(sequence), view) for sequence in borders}

    def _next_block(self, sequence: Sequence, asked: int | None, view: View) -> NextBlock:
        """The next block; `asked`: the rung (index) that its deadline asks for, None without one."""
        ladder, limits = sequence.ladder, sequence.limits
        base = view.best[ladder] if asked is None else asked
        group = ladder.group_of[base]
        # What deadlines ask for reckons with whole blocks of one rung: their answers say whether that is right.
        if sequence.timed or len(ladder.groups[group]) == 1:
            return NextBlock(ladder.rungs[base])
        most, made = limits.max_tokens, sequence.output_tokens
        seen = self.lengths.like(most) if limits.stop_ids else NOTHING_SEEN
        chosen = next_block(view.prices.blocks(ladder), group, base, seen, made, most)
        return NextBlock(ladder.rungs[chosen], fitted=chosen != base)

    def paces(self, view: View) -> dict[Sequence, float]:
        """The longest forward that each sequence with a deadline can afford on the rung that it should use, seconds."""
        return dict(zip(view.timed, view.ride.pace_s.tolist(), strict=True))

    def company(self, view: View, since: Seq[Sequence] = (), now: float = 0.0) -> Company:
        """The riders of `view`, and those that have come `since` and may ride from `now` on."""
        parts, curve, forward_s = [view.pacing], view.curve, view.ride.forward_s
        came = self._survey(since)
        if came.timed:
            pacing = Pacing(self._riders(came, now), _table(came, view.prices), view.fixed_s)
            parts.append(pacing)
            curve = curve.with_changes(pacing.changes())
            forward_s = curve.rest_s(view.fixed_s)
        return Company(curve, forward_s, longest_s(parts, forward_s), view.fixed_s, view.prices)

    def backlog(self, sequences: Iterable[Sequence]) -> Backlog:
        """What is left to do for `sequences`.

        What a sequence adds to a forward is paid for each of its forwards; the base of a forward is shared by all that
        ride in it, so it is paid for as many forwards as the longest sequence needs.
        """
        cost, meter = self.cost, self.meter
        # As `ForwardCost.own_s`, without a call for each of hundreds of sequences.
        bare_s, per_token_s, per_context_s = cost.own_s(0, 0), cost.per_token_s, cost.per_context_s
        rates: dict[int, float] = {}  # by the rung's identity: hundreds of sequences share a few
        mean_output = self.lengths.mean
        unread = slots = context = 0
        work_s = timed_work_s = longest = timed_longest = 0.0
        for sequence in sequences:
            rung, length, limits = sequence.rung, len(sequence.tokens), sequence.limits
            block_length = rung.block_length
            rate = rates.get(id(rung))
            if rate is None:
                rate = rates[id(rung)] = max(meter.expected(rung), 1e-3)
            # As much as recent answers had in all, however long it is already (what has not ended yet is no nearer to
            # its end), at most max_tokens; a sequence that nothing stops goes up to max_tokens.
            left = limits.max_tokens - length + sequence.prompt_tokens
            ahead = mean_output if mean_output < left and limits.stop_ids else left
            forwards = ahead / rate
            if forwards < 1.0:
                forwards = 1.0
            to_read = length - sequence.has_pending - sequence.cached
            own_s = bare_s + per_token_s * block_length + per_context_s * length
            seconds = forwards * own_s + per_token_s * to_read
            unread += to_read
            slots += block_length
            context += length
            work_s += seconds
            if forwards > longest:
                longest = forwards
            if sequence.timed:
                timed_work_s += seconds
                if forwards > timed_longest:
                    timed_longest = forwards
        base_s = cost.base_s
        return Backlog(
            queue_s=base_s * longest + work_s,
            timed_s=base_s * timed_longest + timed_work_s,
            unread=unread,
            slots=slots,
            context=context,
        )

    def _riders(self, survey: _Survey, now: float) -> Riders:
        # Here and not at import, as in `pace.py`.
        from engine.pace_arithmetic import fill_riders

        # Attribute by attribute: it is done before every forward, and a row for each sequence takes a third longer.
        timed, count = survey.timed, len(survey.timed)
        terms = np.frombuffer(b"".join([one.terms for one in timed])).reshape(count, TERMS.size // 8)
        read = np.array([one.cached + one.has_pending for one in timed], dtype=np.float64)
        waits = terms[:, 4].min() < inf
        shown = np.array([one.report.ttft_ms is not None for one in timed] if waits else [], dtype=np.bool_)
        numbers = np.empty((8, count))
        cost, length = self.cost, np.array(survey.lengths, dtype=np.float64)
        fill_riders(
            numbers, terms, length, read, shown, float(self.lengths.mean), float(now),
            cost.per_token_s, cost.per_context_s, float(self.prefill_chunk),
        )  # fmt: skip
        rows = np.array(survey.rows, dtype=np.int64)
        return Riders(rows, np.zeros(count, dtype=np.int64), *numbers)

    def _survey(self, sequences: Seq[Sequence]) -> _Survey:
        """Counts the sequences, in one pass: it runs before every forward."""
        cost = self.cost
        own_s, per_token_s, per_context_s = cost.own_s(0, 0), cost.per_token_s, cost.per_context_s
        timed: list[Sequence] = []
        lengths: list[int] = []
        rows: list[int] = []
        kinds: dict[tuple[Ladder, int], int] = {}
        ladders: set[Ladder] = set()
        free: dict[Ladder, tuple[int, int]] = {}
        keys = untimed = 0
        pinned_tokens, pinned_s, untimed_s = 0.0, cost.base_s, 0.0
        for sequence in sequences:
            ladder, length = sequence.ladder, len(sequence.tokens)
            ladders.add(ladder)
            keys += length
            # Those that still read their prompts count: a block that begins now is shared with them.
            if sequence.pinned:
                pinned_tokens += self.meter.expected(sequence.rung)
                pinned_s += cost.own_s(sequence.rung.block_length, length)
            else:
                count, tokens = free.get(ladder, (0, 0))
                free[ladder] = (count + 1, tokens + length)
            if sequence.timed:
                timed.append(sequence)
                lengths.append(length)
                rows.append(kinds.setdefault((ladder, sequence.first_group), len(kinds)))
            else:
                untimed += 1
                untimed_s += own_s + per_token_s * sequence.rung.block_length + per_context_s * length
        count = max(len(sequences), 1)
        return _Survey(
            timed=timed,
            lengths=lengths,
            rows=rows,
            kinds=kinds,
            # Of those without a deadline `share_slots` takes one that is overdue.
            fixed_s=cost.base_s + untimed_s / max(untimed, PATIENCE),
            crowd=Crowd(count, per_context_s * keys / count),
            ladders=ladders,
            free={ladder: (count, per_context_s * tokens) for ladder, (count, tokens) in free.items()},
            pinned=Load(pinned_s, pinned_tokens),
        )

    def worth(self, ladder: Ladder, crowd: Crowd) -> Worth:
        """Of a ladder's rungs in such a crowd, for answers as long as recent ones."""
        return worth_of(ladder, self.cost, self.meter, self.lengths.mean, self.cost_model.deviations, crowd)

    def _best(self, ladder: Ladder, worth: Worth, price: float) -> int:
        """The rung of the best quality for those without a deadline."""
        return preferred(worth, ladder.groups[0], price, self._in_use.get(ladder))


def _table(survey: _Survey, prices: Prices) -> StepTable:
    """The steps of every ladder and first quality that occurs, a row each."""
    return StepTable([prices.steps(ladder, group) for ladder, group in survey.kinds])
