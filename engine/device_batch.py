"""The ragged batch for an accelerator: no attention groups but a work list, and one copy from pinned memory.

Rows stand in the order of the segments. Everything is laid out on the host with the host's own numbers, so that neither
laying out nor running a batch waits for the device. The device may wait for it: so compiled code fills it in, right
where it is copied from.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from engine.batch import ForwardBatch, Segment
from engine.packing import Form, moved, size_of, tensors_in
from kernels.reach_work import Cut, ReachShape, WorkSizes, cut_work

_ROWS = 8
"""Rows of every product are padded to a multiple of this: aligned tensor-core tiles."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A batch that is measured and not written anywhere yet.

    Attributes:
        segments: int64 `[6, segments]`, see `device_batch_arithmetic.py`. tokens, wanted, pages: int64, of them all.
        cut: the work list. wanted_rows: of the batch, padding included.
        draft_count, last_position, context_tokens: see `ForwardBatch`.
    """

    segments: np.ndarray
    tokens: np.ndarray
    wanted: np.ndarray
    pages: np.ndarray
    cut: Cut
    wanted_rows: int
    draft_count: int
    last_position: int
    context_tokens: int

    def forms(self, dtype: torch.dtype) -> list[Form]:
        """Of the batch's tensors, in the order that `batch` takes them; the draft mask is of type `dtype`."""
        total = self.cut.tokens
        rows = [((total,), torch.int64)] * 3
        work = [(shape, torch.int32) for shape in self.cut.array_shapes()]
        return [*rows, ((self.wanted_rows,), torch.int64), ((total, 1), dtype), *work]

    def land(self, staging: Staging, buffer: Tensor) -> None:
        """Writes the batch to the host's memory, from where it is copied into a buffer on a device."""
        self.write(staging)
        # The pages are the last array, and nobody reads those that are not held.
        staging.copy(buffer, staging.size - 4 * (self.cut.sizes.pages - self.cut.held))

    def write(self, staging: Staging) -> None:
        """Writes the batch to the host's memory."""
        # Here and not at import: only where the kernels run is it needed.
        from engine.device_batch_arithmetic import fill_rows

        staging.wait()
        arrays, pages = staging.arrays, self.pages
        fill_rows(
            self.segments,
            self.tokens,
            self.wanted,
            pages,
            self.cut.shape.page_size,
            staging.one,
            *arrays[:5],
        )
        self.cut.fill(arrays[5:], pages, self.segments[5], self.segments[0] + self.segments[1])

    def batch(self, tensors: Seq[Tensor]) -> ForwardBatch:
        """The batch in tensors of its forms."""
        token_ids, positions, slots, logit_rows, draft_mask, *work = tensors
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            groups=[],
            draft_rows=None,
            draft_count=self.draft_count,
            logit_rows=logit_rows,
            wanted=len(self.wanted),
            last_position=self.last_position,
            query_tokens=len(self.tokens),
            context_tokens=self.context_tokens,
            work=self.cut.work(work),
            draft_mask=draft_mask,
        )


class Staging:
    """Memory of the host from which batches of the same forms are copied to a device, one after the other.

    Attributes:
        tensors: of the batch. arrays: the same for compiled code, the draft mask as whole numbers of the same width.
        one: the bits of 1 in the draft mask. size: bytes up to the last tensor's end.
    """

    def __init__(self, forms: Seq[Form], pinned: bool) -> None:
        """`pinned`: whether a GPU is to copy from it by itself."""
        self.buffer = torch.empty(size_of(forms), dtype=torch.uint8, pin_memory=pinned)
        self.tensors = tensors_in(self.buffer, forms)
        dtype = forms[4][1]
        self.arrays = [tensor.view(_BITS.get(tensor.dtype, tensor.dtype)).numpy() for tensor in self.tensors]
        self.one = _one(dtype)
        last = self.tensors[-1]
        self.size = int(last.storage_offset()) * last.element_size() + 4 * last.numel()
        self._copied = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]

    def copy(self, buffer: Tensor, size: int) -> None:
        """Copies so many bytes into a buffer on a device; the host does not wait for it."""
        buffer[:size].copy_(self.buffer[:size], non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> None:
        """Until what was copied the last time has been read."""
        if self._copied is not None:
            self._copied.synchronize()


def lay_out(
    segments: Seq[Segment], shape: ReachShape, tokens: int | None = None, buckets: Seq[WorkSizes] = ()
) -> Layout:
    """Measures a batch.

    Args:
        tokens: rows to pad to, wanted ones too, for a graph's bucket (`engine/graphs.py`); else multiples of 8.
        buckets: sizes of the work list to pad to, the first that the batch fits.

    Raises ValueError if the batch has more than `tokens`.
    """
    about = array("q")
    for one in segments:
        about.extend((len(one.tokens), one.start, one.causal, one.drafted, len(one.wanted), len(one.pages)))
    numbers = np.frombuffer(about, np.int64).reshape(-1, 6).T.copy()
    token_ids = _joined(one.tokens for one in segments)
    wanted = _joined(one.wanted for one in segments)
    count = len(token_ids)
    total = _padded(count) if tokens is None else tokens
    if total < count:
        raise ValueError(f"batch has {count} tokens; its bucket has {total}")
    ends = [one.end for one in segments]
    return Layout(
        segments=numbers,
        tokens=token_ids,
        wanted=wanted,
        pages=_joined(one.pages for one in segments),
        cut=cut_work(numbers[1], numbers[0], numbers[2], count, total, shape, buckets),
        wanted_rows=max(_padded(len(wanted)), _ROWS) if tokens is None else tokens,
        draft_count=sum(len(one.tokens) for one in segments if one.drafted),
        last_position=max(ends) - 1,
        context_tokens=sum(ends),
    )


def build_device_batch(
    segments: Seq[Segment], shape: ReachShape, dtype: torch.dtype, device: torch.device
) -> ForwardBatch:
    """Lays the segments out as one ragged batch with reach attention's work list, on a device; the host does not wait.

    Args:
        shape, dtype: of this rank's part of the model.
    """
    layout = lay_out(segments, shape)
    forms = layout.forms(dtype)
    staging = Staging(forms, device.type == "cuda")
    if device.type == "cpu":
        layout.write(staging)
        return layout.batch(staging.tensors)
    buffer = torch.empty_like(staging.buffer, device=device)
    layout.land(staging, buffer)
    return layout.batch(tensors_in(buffer, forms))


def on_device(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """A batch with attention groups, and all its tensors on `device`."""
    return batch if device.type == "cpu" else with_tensors(batch, moved(tensors_of(batch), device))


def tensors_of(batch: ForwardBatch) -> list[Tensor]:
    """All tensors of a batch with attention groups, in one order."""
    tensors = [batch.token_ids, batch.positions, batch.slots, batch.logit_rows]
    tensors += [] if batch.draft_rows is None else [batch.draft_rows]
    for group in batch.groups:
        tensors += [group.fold.into, group.fold.back, group.key_slots, group.mask]
    return tensors


def with_tensors(batch: ForwardBatch, tensors: Seq[Tensor]) -> ForwardBatch:
    """`batch` with other tensors, in the order of `tensors_of`."""
    rest = iter(tensors)
    token_ids, positions, slots, logit_rows = (next(rest) for _ in range(4))
    draft_rows = None if batch.draft_rows is None else next(rest)
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
        groups=groups,
    )


_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""Whole numbers as wide as a model's type."""


@lru_cache
def _one(dtype: torch.dtype) -> int:
    """The bits of 1 in that type."""
    return int(torch.ones(1, dtype=dtype).view(_BITS[dtype]))


def _padded(rows: int) -> int:
    return -(-rows // _ROWS) * _ROWS


def _joined(lists: Iterable[Seq[int]]) -> np.ndarray:
    """All numbers, list after list, int64: an array takes a list in sooner than NumPy or torch."""
    joined = array("q")
    for numbers in lists:
        joined.extend(numbers)
    return np.frombuffer(joined, np.int64)
