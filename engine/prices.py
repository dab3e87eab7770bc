"""What rungs are worth at the engine's present price: worked out once for all who ask, and for a few forwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.decoding.last_blocks import Blocks, blocks_of
from engine.decoding.rung_choice import Ladder, Worth, steps_down

if TYPE_CHECKING:
    from engine.cost_model import ForwardCost
    from engine.pace import Step

PRICES_HOLD, STEADY = 8, 0.05
"""Looks ahead for which prices hold while nobody comes or goes, and by how much the cost of a forward may move
meanwhile: what they rest on moves slowly."""
A_BLOCK = 32
"""Slots of a long block, for comparing costs."""

Counted = tuple[int, set[Ladder], dict[Ladder, int]]


class Prices:
    """The steps of ladders at the engine's present price, worked out once for all who ask."""

    def __init__(self, worth: Callable[[Ladder], Worth], price: float) -> None:
        """`worth`: of a ladder's rungs in the present crowd. `price`: tokens that a second of the engine is worth."""
        self._worth = worth
        self._price = price
        self._steps: dict[tuple[Ladder, int], tuple[Step, ...]] = {}
        self._blocks: dict[Ladder, Blocks] = {}

    def steps(self, ladder: Ladder, first_group: int) -> tuple[Step, ...]:
        """`steps_down` at the price."""
        key = ladder, first_group
        found = self._steps.get(key)
        if found is None:
            found = self._steps[key] = steps_down(ladder, self._worth(ladder), self._price, first_group)
        return found

    def blocks(self, ladder: Ladder) -> Blocks:
        """`blocks_of` at the price."""
        found = self._blocks.get(ladder)
        if found is None:
            found = self._blocks[ladder] = blocks_of(ladder, self._worth(ladder), self._price)
        return found


@dataclass(slots=True)
class HeldPrices:
    """Those of a crowd, and how often they were used.

    Attributes:
        crowd: how many sequences, all their ladders, and of those whose rung is open how many have which.
        cost: of a forward, from which they were worked out. best: as in `engine.outlook.View`.
    """

    crowd: Counted
    cost: ForwardCost
    prices: Prices
    best: dict[Ladder, int]
    uses: int = 0

    def holds(self, crowd: Counted, cost: ForwardCost) -> bool:
        """Whether they hold for this crowd, once more."""
        before = self.cost
        return (
            self.uses < PRICES_HOLD
            and self.crowd == crowd
            and abs(cost.base_s - before.base_s) <= STEADY * before.base_s
            and all(
                abs(cost.own_s(slots, 0) - before.own_s(slots, 0)) <= STEADY * before.own_s(slots, 0)
                for slots in (1, A_BLOCK)
            )
        )
