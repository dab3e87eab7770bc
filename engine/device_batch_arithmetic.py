"""A batch's rows for an accelerator (`engine/device_batch.py`), filled in by machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.compiled import compiled

Numbers = NDArray[np.int64]


@compiled
def fill_rows(
    segments: Numbers,
    tokens: Numbers,
    wanted: Numbers,
    pages: Numbers,
    page_size: int,
    one: int,
    token_ids: Numbers,
    positions: Numbers,
    slots: Numbers,
    logit_rows: Numbers,
    draft_mask: NDArray[Any],
) -> None:
    """Fills the last five arrays, whatever is in them: of every row its token, position, K/V slot, and whether it is a
    draft; and the rows that are wanted. Rows behind the last one are token 0 at position 0 in the null page; behind the
    wanted ones the first is repeated, or row 0.

    Args:
        segments: `[6, segments]`: rows, first position, causal, drafted, and how many of `wanted` (offsets) and of
            `pages` are its own.
        tokens: of all rows. one: what says in `draft_mask`, `[rows, 1]`, that a row is a draft.
    """
    row = first_page = first_wanted = 0
    for segment in range(segments.shape[1]):
        rows, start, drafted = segments[0, segment], segments[1, segment], segments[3, segment]
        for offset in range(rows):
            position = start + offset
            token_ids[row + offset] = tokens[row + offset]
            positions[row + offset] = position
            slots[row + offset] = pages[first_page + position // page_size] * page_size + position % page_size
            draft_mask[row + offset, 0] = one if drafted else 0
        for index in range(first_wanted, first_wanted + segments[4, segment]):
            logit_rows[index] = row + wanted[index]
        row += rows
        first_wanted += segments[4, segment]
        first_page += segments[5, segment]
    token_ids[row:] = 0
    positions[row:] = 0
    slots[row:] = 0
    draft_mask[row:] = 0
    logit_rows[first_wanted:] = logit_rows[0] if first_wanted else 0
