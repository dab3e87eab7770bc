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

from kernels.attention import AttentionGroup, group_rows, padded_keys, reach_mask

MIN_ROWS = 16
"""Rows of a product are padded to a multiple of 8 and at least 16: then a row's bits do not depend on its batch,
with one thread (8 would do) and with two, where a product is split in halves (seen bitwise on AVX-512 with MKL)."""


def padded_rows(rows: int) -> int:
    """`rows` rounded up so that matrix products come out bit-identical in any batch."""
    return max(MIN_ROWS, -(-rows // 8) * 8)


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
    positions: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    groups: list[AttentionGroup] = []
    first_row = [0] * len(segments)
    draft_rows: list[np.ndarray] = []
    within_page = np.arange(page_size)
    for (rows, keys), members in order.items():
        start_row = len(tokens)
        padded = group_rows(rows, heads_per_kv_head)
        table = np.zeros((len(members), -(-keys // page_size)), dtype=np.int64)
        reach = np.empty((len(members), padded), dtype=np.int64)
        for place, index in enumerate(members):
            segment = segments[index]
            pages = segment.pages[: table.shape[1]]
            table[place, : len(pages)] = pages
            row = start_row + place * rows
            first_row[index] = row
            tokens.extend(segment.tokens)
            position = np.arange(segment.start, segment.end)
            positions.append(position)
            slots.append(table[place][position // page_size] * page_size + position % page_size)
            reach[place, :rows] = position + 1 if segment.causal else segment.end
            reach[place, rows:] = reach[place, 0]
            if segment.drafted:
                draft_rows.append(np.arange(row, row + rows))
        key_slots = (table[:, :, None] * page_size + within_page).reshape(len(members), -1)[:, :keys]
        groups.append(
            AttentionGroup(
                start=start_row,
                sequences=len(members),
                rows=rows,
                key_slots=torch.from_numpy(np.ascontiguousarray(key_slots).reshape(-1)),
                mask=reach_mask(torch.from_numpy(reach), keys, dtype)[:, None],
            )
        )
    count = len(tokens)
    padding = padded_rows(count) - count
    wanted = [first_row[index] + offset for index, segment in enumerate(segments) for offset in segment.wanted]
    drafts = np.concatenate(draft_rows) if draft_rows else None
    return ForwardBatch(
        token_ids=torch.tensor(tokens + [0] * padding),
        positions=torch.from_numpy(np.concatenate([*positions, np.zeros(padding, dtype=np.int64)])),
        slots=torch.from_numpy(np.concatenate([*slots, np.zeros(padding, dtype=np.int64)])),
        groups=groups,
        draft_rows=None if drafts is None else torch.from_numpy(_repeat_first(drafts, padded_rows(len(drafts)))),
        draft_count=0 if drafts is None else len(drafts),
        logit_rows=torch.from_numpy(_repeat_first(np.array(wanted, dtype=np.int64), padded_rows(len(wanted)))),
        wanted=len(wanted),
        last_position=max(segment.end for segment in segments) - 1,
        query_tokens=count,
        context_tokens=sum(segment.end for segment in segments),
    )


def _repeat_first(rows: np.ndarray, count: int) -> np.ndarray:
    """`rows` with its first entry (or row 0) repeated up to `count` entries."""
    first = rows[0] if len(rows) else 0
    return np.concatenate([rows, np.full(count - len(rows), first, dtype=np.int64)])
