"""The ragged batch for an accelerator: no attention groups but a work list, and one copy from pinned memory.

Rows stand in the order of the segments. Everything is laid out on the host with the host's own numbers, so that neither
laying out nor running a batch waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from engine.batch import ForwardBatch, Segment
from engine.packing import moved
from kernels.reach_work import SplitRule, WorkSizes, reach_work, tiles_for

_ROWS = 8
"""Rows of every product are padded to a multiple of this: aligned tensor-core tiles."""


def build_device_batch(
    segments: Seq[Segment],
    page_size: int,
    heads: int,
    kv_heads: int,
    dtype: torch.dtype,
    rule: SplitRule,
    tokens: int | None = None,
    buckets: Seq[WorkSizes] = (),
) -> ForwardBatch:
    """Lays the segments out as one ragged batch with reach attention's work list (on the CPU; see `on_device`).

    Args:
        heads, kv_heads, dtype: of this rank's part of the model; they decide the tiles.
        rule: how long contexts are split.
        tokens: rows to pad to, wanted ones too, for a graph's bucket (`engine/graphs.py`); else multiples of 8.
        buckets: sizes of the work list to pad to, the first that the batch fits.

    Raises ValueError if the batch has more than `tokens`.
    """
    rows = np.array([len(segment.tokens) for segment in segments])
    starts = np.array([segment.start for segment in segments])
    causal = np.array([segment.causal for segment in segments])
    first = np.cumsum(rows) - rows
    count = int(rows.sum())
    total = _padded(count) if tokens is None else tokens
    if total < count:
        raise ValueError(f"batch has {count} tokens; its bucket has {total}")

    token_ids, positions, slots = (np.zeros(total, dtype=np.int64) for _ in range(3))
    token_ids[:count] = _integers((segment.tokens for segment in segments), count)
    positions[:count] = np.repeat(starts - first, rows) + np.arange(count)
    page_counts = np.array([len(segment.pages) for segment in segments])
    pages = np.concatenate([segment.pages for segment in segments])
    first_page = np.cumsum(page_counts) - page_counts
    position = positions[:count]
    slots[:count] = pages[np.repeat(first_page, rows) + position // page_size] * page_size + position % page_size

    drafted = np.array([segment.drafted for segment in segments])
    draft_mask = torch.zeros(total, 1, dtype=dtype)
    draft_mask[:count, 0] = torch.from_numpy(np.repeat(drafted, rows))
    wanted_rows = np.array([len(segment.wanted) for segment in segments])
    wanted_count = int(wanted_rows.sum())
    wanted = np.repeat(first, wanted_rows) + _integers((segment.wanted for segment in segments), wanted_count)
    work = reach_work(
        starts,
        rows,
        causal,
        pages,
        page_counts,
        total,
        heads // kv_heads,
        kv_heads,
        page_size,
        tiles_for(dtype),
        rule,
        buckets,
    )
    return ForwardBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(slots),
        groups=[],
        draft_rows=None,
        draft_count=int(rows @ drafted),
        logit_rows=_padded_rows(wanted, tokens),
        wanted=wanted_count,
        last_position=int((starts + rows).max()) - 1,
        query_tokens=count,
        context_tokens=int((starts + rows).sum()),
        work=work,
        draft_mask=draft_mask,
    )


def on_device(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """The batch with all its tensors on `device`."""
    return batch if device.type == "cpu" else with_tensors(batch, moved(tensors_of(batch), device))


def tensors_of(batch: ForwardBatch) -> list[Tensor]:
    """All tensors of a batch, in one order."""
    tensors = [batch.token_ids, batch.positions, batch.slots, batch.logit_rows]
    tensors += [tensor for tensor in (batch.draft_rows, batch.draft_mask) if tensor is not None]
    if batch.work is not None:
        tensors += batch.work.arrays()
    for group in batch.groups:
        tensors += [group.fold.into, group.fold.back, group.key_slots, group.mask]
    return tensors


def with_tensors(batch: ForwardBatch, tensors: Seq[Tensor]) -> ForwardBatch:
    """`batch` with other tensors, in the order of `tensors_of`."""
    rest = iter(tensors)
    token_ids, positions, slots, logit_rows = (next(rest) for _ in range(4))
    draft_rows = next(rest) if batch.draft_rows is not None else None
    draft_mask = next(rest) if batch.draft_mask is not None else None
    work = batch.work.with_arrays(tuple(next(rest) for _ in batch.work.arrays())) if batch.work is not None else None
    groups = [
        replace(
            group,
            fold=replace(group.fold, into=next(rest), back=next(rest)),
            key_slots=next(rest),
            mask=next(rest),
        )
        for group in batch.groups
    ]
    return replace(
        batch,
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        logit_rows=logit_rows,
        draft_rows=draft_rows,
        draft_mask=draft_mask,
        work=work,
        groups=groups,
    )


def _padded(rows: int) -> int:
    return -(-rows // _ROWS) * _ROWS


def _padded_rows(rows: np.ndarray, total: int | None) -> Tensor:
    """Row numbers padded with the first one, or with row 0, to `total` or a multiple of 8."""
    padded = np.full(max(_padded(len(rows)), _ROWS) if total is None else total, rows[0] if len(rows) else 0)
    padded[: len(rows)] = rows
    return torch.from_numpy(padded)


def _integers(lists: Iterable[list[int]], count: int) -> np.ndarray:
    """So many numbers, list after list, int64: a list by itself, or a tensor of one, takes longer to read."""
    return np.fromiter(chain.from_iterable(lists), np.int64, count)
