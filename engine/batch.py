"""The ragged batch of one forward: token ids, positions, K/V slots, reach, and the rows whose logits are wanted.

Rows are ordered by attention group, so that every group is contiguous. Padding rows follow at the end: they write to
the null page and nobody reads them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from engine.model.linear import UNKNOWN_ROWS, ProductRows
from kernels.attention import MIN_PRODUCT_ROWS, AttentionGroup, folded_rows, folding, padded_keys, reach_mask
from kernels.reach_work import ReachWork

NUMBERS_BITS = 5
"""Leading bits in which the numbers of rows with code of their own differ: 16 of them between two powers of two, at
most 6% apart. Of a forward's five products with each of them up to a few thousand rows, oneDNN keeps all (1,024). To
make them anew for every other number took 2 ms of a forward of 12 (160 slots of stepdial-tiny, AMD EPYC)."""
WORTH_A_CALL = 8_192
"""Products of a query row of one head with a key that take about as long as another attention call with its gathers."""


def padded_rows(rows: int, products: ProductRows = UNKNOWN_ROWS) -> int:
    """`rows` rounded up so that a row's bits do not depend on its batch, and to few numbers where each has its code.

    Products in float32 need `fewest` rows, others a multiple of 8 and 8 a thread: MKL takes other code paths for fewer
    rows, and with two threads it splits a product in halves (seen bitwise on AVX-512 with torch 2.13).
    """
    if products.fewest is None:
        fewest, step = MIN_PRODUCT_ROWS * torch.get_num_threads(), MIN_PRODUCT_ROWS
    else:
        fewest, step = products.fewest, 1
    if products.compiled:
        step = max(step, 1 << max(rows.bit_length() - NUMBERS_BITS, 0))
    return max(fewest, -(-rows // step) * step)


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
    pages: Seq[int]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(slots=True)
class ForwardBatch:
    """What the model runs on. T tokens after padding, R wanted rows after padding.

    Attributes:
        token_ids, positions, slots: int64 `[T]`; slot = page * page_size + offset.
        groups: attention groups in row order.
        draft_rows: int64, rows the adapter applies to, padded; `draft_count` of them are real. None without drafts, and
            where `draft_mask` says it: `[T, 1]` of the model's type, 1 in the rows the adapter applies to, 0 in others.
        logit_rows: int64 `[R]`; the first `wanted` are real, segment after segment in the order they were given.
        work: reach attention's work list, in place of the groups, where a kernel runs it (`engine/device_batch.py`).
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
    work: ReachWork | None = None
    draft_mask: Tensor | None = None


def build_batch(
    segments: Seq[Segment],
    page_size: int,
    heads: int,
    kv_heads: int,
    dtype: torch.dtype,
    products: ProductRows = UNKNOWN_ROWS,
) -> ForwardBatch:
    """Lays the segments out as one ragged batch (on the CPU).

    Args:
        heads, kv_heads, products: of the model.
    """
    heads_per_kv_head = heads // kv_heads
    tokens: list[int] = []
    drafts: list[int] = []
    groups: list[AttentionGroup] = []
    order: list[int] = []
    first_row = [0] * len(segments)
    for rows, keys, members in _groups(segments, heads):
        start_row = len(tokens)
        table = np.zeros((len(members), -(-keys // page_size)), dtype=np.int64)
        for place, index in enumerate(members):
            segment = segments[index]
            held = segment.pages[: table.shape[1]]
            table[place, : len(held)] = held
            first_row[index] = len(tokens)
            tokens += segment.tokens
            if segment.drafted:
                drafts += range(first_row[index], len(tokens))
        order += members
        key_slots = (table[:, :, None] * page_size + np.arange(page_size)).reshape(len(members), -1)[:, :keys]
        starts = np.array([segments[index].start for index in members])[:, None]
        causal = [rows > 1 and segments[index].causal for index in members]
        reach = starts + rows
        if any(causal):
            offsets = _folded_offsets(rows, heads_per_kv_head)
            reach = np.where(np.array(causal)[:, None], starts + offsets + 1, reach)
        groups.append(
            AttentionGroup(
                start=start_row,
                sequences=len(members),
                rows=rows,
                fold=folding(len(members), rows, kv_heads, heads_per_kv_head, heads + 2 * kv_heads),
                key_slots=torch.from_numpy(key_slots.reshape(-1)),
                mask=reach_mask(reach, keys, dtype)[:, None],
            )
        )
    count = len(tokens)
    padding = np.zeros(padded_rows(count, products) - count, dtype=np.int64)
    positions, slots = _places([segments[index] for index in order], page_size)
    wanted = [first_row[index] + offset for index, segment in enumerate(segments) for offset in segment.wanted]
    return ForwardBatch(
        token_ids=torch.from_numpy(np.concatenate((tokens, padding))),
        positions=torch.from_numpy(np.concatenate((positions, padding))),
        slots=torch.from_numpy(np.concatenate((slots, padding))),
        groups=groups,
        draft_rows=_padded(drafts) if drafts else None,
        draft_count=len(drafts),
        logit_rows=_padded(wanted, products),
        wanted=len(wanted),
        last_position=max(segment.end for segment in segments) - 1,
        query_tokens=count,
        context_tokens=sum(segment.end for segment in segments),
    )


def _places(segments: Seq[Segment], page_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and K/V slots of the segments' tokens, one after the other: int64 `[tokens]` each."""
    counts = np.array([len(segment.tokens) for segment in segments])
    first_page = [segment.start // page_size for segment in segments]
    held = [
        segment.pages[first : (segment.end - 1) // page_size + 1]
        for first, segment in zip(first_page, segments, strict=True)
    ]
    pages = np.array(list(chain.from_iterable(held)))
    starts = np.array([segment.start for segment in segments])
    # Of each segment: where its tokens and its pages begin among all of them.
    ends = np.cumsum(counts)
    positions = np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts)
    before = np.array([0, *accumulate(len(some) for some in held[:-1])]) - np.array(first_page)
    slots = pages[positions // page_size + np.repeat(before, counts)] * page_size + positions % page_size
    return positions, slots


def _groups(segments: Seq[Segment], heads: int) -> list[tuple[int, int, list[int]]]:
    """Segments that one attention call takes: query rows of each, keys of each, and which they are.

    Equally many rows make a group. Where the contexts' lengths differ, those are joined whose additional padding costs
    less than a call of their own; more padding changes no bits (`padded_keys`).
    """
    by_rows: dict[int, dict[int, list[int]]] = {}
    for index, segment in enumerate(segments):
        by_rows.setdefault(len(segment.tokens), {}).setdefault(padded_keys(segment.end), []).append(index)
    groups = []
    for rows, by_keys in by_rows.items():
        longest = 0
        members: list[int] = []
        for keys in sorted(by_keys, reverse=True):
            if members and (longest - keys) * len(by_keys[keys]) * rows * heads <= WORTH_A_CALL:
                members += by_keys[keys]
                continue
            longest, members = keys, list(by_keys[keys])
            groups.append((rows, longest, members))
    return groups


@lru_cache(maxsize=256)
def _folded_offsets(rows: int, heads_per_kv_head: int) -> np.ndarray:
    """Offset of the query row behind each row of a sequence's products: head after head, then padding."""
    offsets = np.tile(np.arange(rows), heads_per_kv_head)
    return np.concatenate((offsets, np.zeros(folded_rows(rows, heads_per_kv_head) - len(offsets), dtype=np.int64)))


def _padded(rows: list[int], products: ProductRows = UNKNOWN_ROWS) -> Tensor:
    """`rows` with their first entry (or row 0) repeated behind them, see `padded_rows`."""
    padded = rows + (rows[:1] or [0]) * (padded_rows(len(rows), products) - len(rows))
    # NumPy reads a list of a thousand numbers four times as fast as torch.
    return torch.from_numpy(np.array(padded, dtype=np.int64))
