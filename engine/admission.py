"""Who may come in: a newcomer's rung among all that are there, and the earliest deadline that could be kept.

Pure: reads a `Company` (`engine/outlook.py`) and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from engine.decoding.rung_choice import ladder_of
from engine.pace import MOST_RESERVE, Pacing, Riders, StepTable, mean_forward_s

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
        group = 0 if plan.pinned else ladder.group_of(plan.start)
        steps = company.prices.steps(ladder, group)
        table = StepTable([steps])
        alone = self._rider(newcomer)
        own = Pacing(alone, table)
        for first in own.may_fit(company.forward_s, company.most_s):
            if first:
                # It may leave more room, to itself and to the others, from the start than on the way there.
                alone.first[0] = first
                own = Pacing(alone, table)
            most_s = min(own.most_s[0], company.most_s)
            together_s = mean_forward_s((*company.parts, own), company.fixed_s, company.forward_s, most_s)
            mine = own.ride(together_s)
            if not mine.tight[0]:
                return ladder.rungs[steps[int(mine.places[0])].rung]
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

    def _rider(self, newcomer: Newcomer) -> Riders:
        """The newcomer as the only one."""
        cost, slip_s = self.outlook.cost, self.outlook.slip_s
        prompt_tokens = newcomer.prompt_tokens
        return Riders(
            ladder=np.array([0]),
            first=np.array([0]),
            tokens=np.array([float(newcomer.output_tokens)]),
            left_s=np.array([inf if newcomer.left_s is None else newcomer.left_s - slip_s]),
            first_left_s=np.array([inf if newcomer.first_left_s is None else newcomer.first_left_s - slip_s]),
            context_s=np.array([cost.per_context_s * (prompt_tokens + newcomer.output_tokens / 2)]),
            prompt_forwards=np.array([float(-(-prompt_tokens // self.outlook.prefill_chunk))]),
            prompt_s=np.array([cost.per_token_s * prompt_tokens]),
            share=np.array([newcomer.share]),
            reserve=np.array([newcomer.reserve]),
        )
