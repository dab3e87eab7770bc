"""What rungs are worth at the engine's present price: worked out once for all who ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.decoding.last_blocks import Blocks, blocks_of
from engine.decoding.rung_choice import Ladder, Worth, steps_down

if TYPE_CHECKING:
    from engine.pace import Step


class Prices:
    """The steps and blocks of ladders at the price."""

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
