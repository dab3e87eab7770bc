"""Which rung takes the next block of an answer that may end soon: one as long as what is left of it.

What rungs are worth (`rung_choice.py`) is that of a long answer. Near its end a block is too long for what is left, and
its slots are paid for all the same. How much is left is not known, but what answers of such requests had is. So the
rung that is worth most for the long run is the base, and a block of another rung of the same quality is taken before
it, or instead of it, where on the average of those lengths that costs the engine less until the answer ends and takes
no more forwards, so that nobody waits longer for it. That is one step of policy improvement (a rollout: Bertsekas,
Tsitsiklis and Wu 1997).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engine.decoding.rung_choice import Ladder, Worth

Floats = NDArray[np.float64]

LEAST_SEEN = 20
"""Answers longer than this one is already from which on they say how much is left. Fewer say nothing,
because the next one may be longer than all of them: then a block must be long enough for all that may follow."""
WORTH_IT = 0.01
"""The least share of what is left to pay by which another block must be cheaper."""


class Blocks(NamedTuple):
    """Blocks of a ladder's rungs.

    Attributes:
        table: float64 `[4, rungs]`: slots of a block; tokens that come of one on average, at most as many; forwards
            that it takes; and seconds that it costs the engine.
        equal: int64, rungs of equal quality, as the ladder's `groups`, but those of AR: its rung, once chosen, stays
            for several tokens (`canvas.AR_BORDERS`), which are no block to end with.
    """

    table: Floats
    equal: tuple[NDArray[np.int64], ...]


def blocks_of(ladder: Ladder, worth: Worth, price: float) -> Blocks:
    """The blocks of a ladder's rungs in the present crowd.

    A forward costs what the sequence adds to it and its share of the base. That share is what the best rung's tokens
    are worth beyond what they add: at the best price the values of all pay for the base (`rung_choice.throughput`).

    Args:
        price: tokens that a second of the engine is worth, above 0.
    """
    length = np.array(ladder.lengths, dtype=np.float64)
    tokens = np.array(worth.tokens)
    forwards = np.minimum(length / tokens, ladder.most_forwards)
    charged_s = np.array(worth.charged_s)
    best = list(ladder.groups[0])
    base_s = max(0.0, float((np.array(worth.gained) / price - charged_s)[best].max()))
    kept = np.minimum(length, tokens * forwards)
    table = np.stack([length, kept, forwards, forwards * (charged_s + base_s)])
    equal = ([index for index in group if ladder.lengths[index] > 1] for group in ladder.groups)
    return Blocks(table, tuple(np.array(group, dtype=np.int64) for group in equal))


def next_block(blocks: Blocks, group: int, base: int, seen: Floats, made: int, most: int) -> int:
    """The index of the rung for the next block.

    Args:
        group: the quality, as a place among the ladder's `groups`. base: of its rungs the one for the long run.
        seen: lengths of answers of such requests, in output tokens. made: what the answer has. most: what it may have.
    """
    # Here and not at import, as in `engine/pace.py`.
    from engine.decoding.last_blocks_arithmetic import cheapest_start

    return cheapest_start(blocks.table, blocks.equal[group], base, seen, made, most, LEAST_SEEN, WORTH_IT)
