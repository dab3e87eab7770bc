"""The ragged batch for an accelerator: no attention groups but a work list, and one copy from pinned memory.

Rows stand in the order of the segments. Everything is laid out on the host with the host's own numbers, so that neither
laying out nor running a batch waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.batch import ForwardBatch, Segment
from kernels.reach_work import SplitRule, WorkSizes, reach_work, tiles_for

_ROWS = 8
"""Rows of every product are padded to a multiple of this: aligned tensor-core tiles."""

_ALIGNMENT = 16
"""Bytes at which every tensor of the copy begins: what a 128-bit load needs."""


def build_device_batch(
    segments: Seq[Segment],
    page_size: int,
    heads: int,
    kv_heads: int,
    dtype: torch.dtype,
    rule: SplitRule,
    tokens: int | None = None,
    bucket: WorkSizes | None = None,
) -> ForwardBatch:
    """Lays the segments out as one ragged batch with reach attention's work list (on the CPU; see `on_device`).

    Args:
        heads, kv_heads, dtype: of this rank's part of the model; they decide the tiles.
        rule: how long contexts are split.
        tokens: rows to pad to, for a graph's bucket; else a multiple of 8.
        bucket: sizes of the work list to pad to.

    Raises ValueError if the batch does not fit `tokens` or `bucket`.
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
    token_ids[:count] = np.concatenate([segment.tokens for segment in segments])
    positions[:count] = np.repeat(starts - first, rows) + np.arange(count)
    own_pages = [np.asarray(segment.pages) for segment in segments]
    pages = np.concatenate(own_pages)
    first_page = np.cumsum([len(own) for own in own_pages]) - [len(own) for own in own_pages]
    position = positions[:count]
    slots[:count] = pages[np.repeat(first_page, rows) + position // page_size] * page_size + position % page_size

    drafts = [
        row
        for at, item in zip(first, segments, strict=True)
        if item.drafted
        for row in range(at, at + len(item.tokens))
    ]
    wanted = [int(at) + offset for at, item in zip(first, segments, strict=True) for offset in item.wanted]
    work = reach_work(
        starts,
        rows,
        causal,
        own_pages,
        total,
        heads // kv_heads,
        kv_heads,
        page_size,
        tiles_for(dtype),
        rule,
        bucket,
    )
    return ForwardBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(slots),
        groups=[],
        draft_rows=_padded_rows(drafts) if drafts else None,
        draft_count=len(drafts),
        logit_rows=_padded_rows(wanted),
        wanted=len(wanted),
        last_position=int((starts + rows).max()) - 1,
        query_tokens=count,
        context_tokens=int((starts + rows).sum()),
        work=work,
    )


def on_device(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """The batch with all its tensors on `device`, moved by one copy that the host does not wait for."""
    if device.type == "cpu":
        return batch
    return from_buffer(batch, pack(tensors_of(batch), pinned=True).to(device, non_blocking=True))


def from_buffer(batch: ForwardBatch, buffer: Tensor) -> ForwardBatch:
    """The batch on the tensors in `buffer`, on whichever device: the bytes of `tensors_of` as `pack` lays them out."""
    return _with_tensors(batch, unpack(buffer, tensors_of(batch)))


def pack(tensors: Seq[Tensor], pinned: bool = False) -> Tensor:
    """The bytes of CPU tensors one after the other, uint8, each from a multiple of 16 on."""
    buffer = torch.empty(_end(tensors), dtype=torch.uint8, pin_memory=pinned)
    at = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        buffer[at : at + size] = tensor.contiguous().view(-1).view(torch.uint8)
        at = _aligned(at + size)
    return buffer


def unpack(buffer: Tensor, like: Seq[Tensor]) -> list[Tensor]:
    """Views into a buffer of `pack`, with the types and shapes of the tensors that were packed."""
    found: list[Tensor] = []
    at = 0
    for tensor in like:
        size = tensor.numel() * tensor.element_size()
        found.append(buffer[at : at + size].view(tensor.dtype).view(tensor.shape))
        at = _aligned(at + size)
    return found


def tensors_of(batch: ForwardBatch) -> list[Tensor]:
    """All tensors of a batch, in one order."""
    tensors = [batch.token_ids, batch.positions, batch.slots, batch.logit_rows]
    if batch.draft_rows is not None:
        tensors.append(batch.draft_rows)
    if batch.work is not None:
        tensors += batch.work.arrays()
    for group in batch.groups:
        tensors += [group.fold.into, group.fold.back, group.key_slots, group.mask]
    return tensors


def _with_tensors(batch: ForwardBatch, tensors: list[Tensor]) -> ForwardBatch:
    """`batch` with other tensors, in the order of `tensors_of`."""
    rest = iter(tensors)
    token_ids, positions, slots, logit_rows = (next(rest) for _ in range(4))
    draft_rows = next(rest) if batch.draft_rows is not None else None
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
        work=work,
        groups=groups,
    )


def _end(tensors: Seq[Tensor]) -> int:
    return sum(_aligned(tensor.numel() * tensor.element_size()) for tensor in tensors)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _padded(rows: int) -> int:
    return -(-rows // _ROWS) * _ROWS


def _padded_rows(rows: list[int]) -> Tensor:
    """Row numbers padded with the first one, or with row 0."""
    return torch.tensor(rows + (rows[:1] or [0]) * (max(_padded(len(rows)), _ROWS) - len(rows)))
