"""The ragged batch of one forward: token ids, positions, K/V slots, reach, and the rows whose logits are wanted.

Rows are ordered by attention group, so that every group is contiguous. Padding rows follow at the end: they write to
the null page and nobody reads them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.attention import MIN_PRODUCT_ROWS, AttentionGroup, folded_rows, padded_keys, reach_mask


def padded_rows(rows: int) -> int:
    """`rows` rounded up so that a row's bits do not depend on its batch: a multiple of 8, and at least 8 a thread.

    Matrix products with fewer rows take other code paths in MKL, and with two threads a product is split in halves
    (seen bitwise on AVX-512 with torch 2.13).
    """
    return max(MIN_PRODUCT_ROWS * torch.get_num_threads(), -(-rows // MIN_PRODUCT_ROWS) * MIN_PRODUCT_ROWS)


@dataclass(slots=True)
class Segment:
    """One sequence's part of a forward.

    Attributes:
        tokens: query token ids, at positions `start`, `start + 1`, ...
        causal: token at position p sees p + 1 keys; else every token sees up to the segment's end.
        drafted: the draft adapter applies.
        wanted: offsets in `tokens` whose logits are wanted, in order.
        pages: the sequence's pages, covering the segment's end.
    """

    tokens: list[int]
    start: int
    causal: bool
    drafted: bool
    wanted: list[int]
    pages: list[int]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(slots=True)
class ForwardBatch:
    """What the model runs on. T tokens after padding, R wanted rows after padding.

    Attributes:
        token_ids, positions, slots: int64 `[T]`; slot = page * page_size + offset.
        groups: attention groups in row order.
        draft_rows: int64, rows the adapter applies to, padded; `draft_count` of them are real. None without drafts.
        logit_rows: int64 `[R]`; the first `wanted` are real, segment after segment in the order they were given.
        last_position: the largest position. query_tokens, context_tokens: real tokens, and the sum of the segments'
            key positions, as the cost model counts them.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    groups: list[AttentionGroup]
    draft_rows: Tensor | None
    draft_count: int
    logit_rows: Tensor
    wanted: int
    last_position: int
    query_tokens: int
    context_tokens: int


def build_batch(segments: Seq[Segment], page_size: int, heads_per_kv_head: int, dtype: torch.dtype) -> ForwardBatch:
    """Lays the segments out as one ragged batch (on the CPU)."""
    order: dict[tuple[int, int], list[int]] = {}
    for index, segment in enumerate(segments):
        order.setdefault((len(segment.tokens), padded_keys(segment.end)), []).append(index)
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    drafts: list[int] = []
    groups: list[AttentionGroup] = []
    first_row = [0] * len(segments)
    for (rows, keys), members in order.items():
        start_row = len(tokens)
        repeats = folded_rows(rows, heads_per_kv_head) - rows * heads_per_kv_head
        table = np.zeros((len(members), -(-keys // page_size)), dtype=np.int64)
        reach: list[list[int]] = []
        for place, index in enumerate(members):
            segment = segments[index]
            start, end, pages = segment.start, segment.end, segment.pages
            held = min(len(pages), table.shape[1])
            table[place, :held] = pages[:held]
            row = first_row[index] = len(tokens)
            tokens += segment.tokens
            positions += range(start, end)
            slots += [pages[at // page_size] * page_size + at % page_size for at in range(start, end)]
            seen = list(range(start + 1, end + 1)) if segment.causal else [end] * rows
            reach.append(seen * heads_per_kv_head + seen[:1] * repeats)
            if segment.drafted:
                drafts += range(row, row + rows)
        key_slots = (table[:, :, None] * page_size + np.arange(page_size)).reshape(len(members), -1)[:, :keys]
        groups.append(
            AttentionGroup(
                start=start_row,
                sequences=len(members),
                rows=rows,
                key_slots=torch.from_numpy(key_slots.reshape(-1)),
                mask=reach_mask(torch.tensor(reach), keys, dtype)[:, None],
            )
        )
    count = len(tokens)
    padding = [0] * (padded_rows(count) - count)
    wanted = [first_row[index] + offset for index, segment in enumerate(segments) for offset in segment.wanted]
    return ForwardBatch(
        token_ids=torch.tensor(tokens + padding),
        positions=torch.tensor(positions + padding),
        slots=torch.tensor(slots + padding),
        groups=groups,
        draft_rows=torch.tensor(_repeat_first(drafts)) if drafts else None,
        draft_count=len(drafts),
        logit_rows=torch.tensor(_repeat_first(wanted)),
        wanted=len(wanted),
        last_position=max(positions),
        query_tokens=count,
        context_tokens=sum(segment.end for segment in segments),
    )


def _repeat_first(rows: list[int]) -> list[int]:
    """`rows` padded with their first entry (or row 0), see `padded_rows`."""
    return rows + (rows[:1] or [0]) * (padded_rows(len(rows)) - len(rows))
