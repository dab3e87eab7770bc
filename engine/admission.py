"""Who may come in: a newcomer's rung among all that are there, and the earliest deadline that could be kept.

Pure: reads a `Company` (`engine/outlook.py`) and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from engine.decoding.rung_choice import ladder_of
from engine.pace import MOST_RESERVE, Pacing, Riders, StepTable

if TYPE_CHECKING:
    from engine.outlook import Company, Outlook
    from engine.plan import Plan, Rung

LONGEST_S = 24 * 3600.0
CLOSE = 0.03
"""How close to the earliest deadline the one that is offered is: each halving costs as much as an admission."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A request at the door.

    Attributes:
        output_tokens: length to reckon with. left_s, first_left_s: seconds until its deadlines; None = none.
        share: of the time until its deadline that forwards may take; below 1 for tiers that leave room to others.
        reserve: as a `Sequence` of it would get.
    """

    plan: Plan
    prompt_tokens: int
    output_tokens: float
    left_s: float | None = None
    first_left_s: float | None = None
    share: float = 1.0
    reserve: float = MOST_RESERVE

    def due_in(self, seconds: float) -> Newcomer:
        """The same request with another deadline: of its whole answer, or of its first text where it has only that."""
        return replace(self, first_left_s=seconds) if self.left_s is None else replace(self, left_s=seconds)

    def after(self, seconds: float, reserve: float) -> Newcomer:
        """The same request, so much later, with that reserve."""
        return replace(
            self,
            reserve=reserve,
            left_s=None if self.left_s is None else self.left_s - seconds,
            first_left_s=None if self.first_left_s is None else self.first_left_s - seconds,
        )


class Admission:
    """The last word on who is let in."""

    def __init__(self, outlook: Outlook) -> None:
        self.outlook = outlook

    def rung_for(self, newcomer: Newcomer, company: Company) -> Rung | None:
        """The rung that a new request with a deadline can start on so that it is in time and makes nobody late.

        The best quality first, from the plan's own start on; None where the request cannot be kept on any rung.
        """
        plan = newcomer.plan
        ladder = ladder_of((plan.first,) if plan.pinned else plan.ladder)
        group = 0 if plan.pinned else ladder.group_of[plan.start]
        steps = company.prices.steps(ladder, group)
        # As many riders as there are steps to start on: it may leave more room, to itself and to the others, from a
        # later one than on the way there.
        starts = Pacing(self._riders(newcomer, len(steps)), StepTable([steps]), company.fixed_s)
        for first in starts.may_fit(company.forward_s, company.most_s):
            together_s = company.curve.with_changes(starts.changes(slice(first, first + 1))).rest_s(company.fixed_s)
            if together_s > min(starts.most_s[first], company.most_s):
                continue
            mine = starts.ride(together_s)
            if not mine.tight[first]:
                return ladder.rungs[steps[int(mine.places[first])].rung]
        return None

    def earliest_s(self, newcomer: Newcomer, company: Company) -> float:
        """The shortest deadline, in seconds from now, that `rung_for` would accept; inf where none is."""
        own_s = newcomer.first_left_s if newcomer.left_s is None else newcomer.left_s
        low, high = 0.0, max(own_s or 0.0, 0.01)
        while self.rung_for(newcomer.due_in(high), company) is None:
            low, high = high, 2 * high
            if high > LONGEST_S:
                return inf
        while high - low > CLOSE * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.rung_for(newcomer.due_in(middle), company) else (middle, high)
        return high

    def _riders(self, newcomer: Newcomer, steps: int) -> Riders:
        """The newcomer as so many riders, each with another first step."""
        cost, slip_s = self.outlook.cost, self.outlook.slip_s
        prompt_tokens = newcomer.prompt_tokens
        numbers = (  # as `Riders` has them
            float(newcomer.output_tokens),
            inf if newcomer.left_s is None else newcomer.left_s - slip_s,
            inf if newcomer.first_left_s is None else newcomer.first_left_s - slip_s,
            cost.per_context_s * (prompt_tokens + newcomer.output_tokens / 2),
            float(-(-prompt_tokens // self.outlook.prefill_chunk)),
            cost.per_token_s * prompt_tokens,
            newcomer.share,
            newcomer.reserve,
        )
        columns = np.repeat(np.array(numbers)[:, None], steps, axis=1)
        return Riders(np.zeros(steps, dtype=np.int64), np.arange(steps), *columns)
