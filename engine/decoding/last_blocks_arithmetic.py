"""What the end of an answer costs with one block or another next: the arithmetic of `last_blocks.py`, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.compiled import compiled

Floats = NDArray[np.float64]


@compiled
def cheapest_start(
    table: Floats,
    equal: NDArray[np.int64],
    base: int,
    seen: Floats,
    made: int,
    most: int,
    least_seen: int,
    worth_it: float,
) -> int:
    """The index of the rung for the next block (`last_blocks.next_block`).

    What is no longer than a block is made of such blocks alone: of one, if all of it is kept. Where an audit cuts
    blocks, so that they end anywhere, the last of several is half in vain.

    Args:
        table: of `Blocks`. equal: rungs to choose among, besides `base`.
    """
    length, kept, forwards, seconds = table
    longer = 0
    for tokens in seen:
        longer += tokens > made
    known = longer >= least_seen
    best, best_s, base_forwards = base, 0.0, 0.0
    for place in range(-1, len(equal)):
        # The base first: the others are compared with it.
        rung = base if place < 0 else equal[place]
        if not known and length[rung] < most - made and rung != base:
            continue
        all_s, all_forwards = 0.0, 0.0
        for index in range(len(seen) if known else 1):
            left = min(seen[index], float(most)) - made if known else float(most - made)
            if left <= 0.0:
                continue
            times, more = 1.0, 0.0
            if left > length[rung]:
                after = left - kept[rung]
                more = np.ceil(after / length[base])
                if after > kept[base]:
                    more = max(more, after / kept[base] + 0.5 * (1.0 - kept[base] / length[base]))
            elif left > kept[rung]:
                times = left / kept[rung] + 0.5 * (1.0 - kept[rung] / length[rung])
            all_s += times * seconds[rung] + more * seconds[base]
            all_forwards += times * forwards[rung] + more * forwards[base]
        if place < 0:
            base_forwards = all_forwards
            best_s = all_s * (1.0 - worth_it)
        elif all_s < best_s and all_forwards <= base_forwards * (1.0 + 1e-9):
            best, best_s = rung, all_s
    return best
