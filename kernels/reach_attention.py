"""Reach attention in Triton: one launch for any mixture of prefill chunks, canvases, looks and single tokens.

Queries are ragged, K/V lies in pages, and each query row sees its sequence's keys below its `reach` (design 4). The
host cuts the batch into items (`kernels/reach_work.py`); a program takes one item and one K/V head. All heads of the
K/V head are rows of its products, so a canvas of 32 tokens with 4 heads a K/V head fills a tile of 128 rows. Scores and
sums are float32, the softmax is the streaming one of FlashAttention (arXiv 2205.14135) in base two, and partial results
of long contexts are merged by their peaks and totals (Flash-Decoding). Those of a 16-bit model are float16, relative
to each row's largest: in float32 a canvas cut into splits of 512 keys would leave a quarter of the bytes of its K and
V, to be written and read once more.

Why these sizes (`tiles_for`): a step of 32 keys, one page, is 16 KB of K and V and 2.1 MFLOP for a canvas.
At an H200's 4.3 TB/s over 132 SMs that is about 880 cycles of reading against 640 of products and some 250 of softmax,
so reading is the bound as long as it never stops. Two programs share an SM (at most 128 registers a thread and 113 KB
each), so that one's softmax and waits lie under the other's products; K and V come by 128-bit asynchronous copies,
`stages - 1` steps ahead; page numbers are read a step before the copies that need them. Only steps that some row does
not see whole compare keys with reaches. These are computed figures, to be measured.

What is fixed: tile sizes are constants of the type, splits start at multiples of their size, steps follow in order. A
key past a row's reach has weight exactly 0 and changes no bit of the row, a split past its reach merges with weight
exactly 0. So under the rule `FIXED` a row's arithmetic is a function of its query, keys and reach alone.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.overlap import overlapping, wait_for_inputs
from kernels.reach_work import FEW_ROWS, ReachWork

MOST_REGISTERS = 128
"""Of a thread: so many leave room for a second program on the SM."""
_MERGED_AT_ONCE = 32
"""Splits that the merge reads at once: as many as one canvas of eight K/V heads is cut into at most, but for one."""
_LEAST_STRETCH = tl.constexpr(1e-30)
"""Of a row of zeros, which has no power of two."""
_EXPONENT = tl.constexpr(0x7F800000)
"""The bits of a float32's power of two."""
_MOST_STRETCH = tl.constexpr(253 << 23)
"""Those of 2 ** 126, the largest power whose reciprocal is a normal number."""
_ONE_OVER = tl.constexpr(254 << 23)
"""Less the bits of a power of two: those of its reciprocal."""


def reach_attention_reference(query: Tensor, kv: Tensor, work: ReachWork, heads: int, scale: float) -> Tensor:
    """What `reach_attention_triton` computes, in plain PyTorch and item by item of the same list; slow."""
    tokens, dim = query.shape[0], query.shape[2]
    group = heads // kv.shape[2]
    out = query.new_zeros(tokens, heads, dim)
    ends: dict[int, tuple[int, int]] = {}
    for page_start, first_row, rows, _, key_end, *_ in work.items.tolist():
        for row in range(first_row, first_row + rows):
            ends[row] = (page_start, max(key_end, ends.get(row, (0, 0))[1]))
    for row, (page_start, end) in ends.items():
        position = torch.arange(min(end, int(work.reach[row])), device=kv.device)
        if len(position) == 0:
            continue
        page = work.pages[page_start + position // work.page_size].long()
        keys, values = kv[page * work.page_size + position % work.page_size].float().unbind(1)
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        weights = (torch.einsum("hd,khd->hk", query[row, :heads].float(), keys) * scale).softmax(-1)
        out[row] = torch.einsum("hk,khd->hd", weights, values).to(query.dtype)
    return out.view(tokens, heads * dim)


def reach_attention_triton(query: Tensor, kv: Tensor, work: ReachWork, heads: int, scale: float) -> Tensor:
    """Attends every query row to its sequence's keys below its reach, in one launch and a merge of long contexts.

    Nothing waits for the device, and all shapes and grids follow from the shapes of `work`.

    Args:
        query: `[tokens, width, head_dim]` bf16, fp16 or fp32; the first `heads` of each token are its queries. The last
            two axes are contiguous, head_dim is a power of two from 16.
        kv: `[slots, 2, kv_heads, head_dim]` of the same type, contiguous; keys and values of one layer.
        work: see `kernels/reach_work.py`, made for this type's tiles and these heads per K/V head.
        scale: of the scores, head_dim ** -0.5.

    Returns `[tokens, heads * head_dim]`, zero for padding rows. Query head h uses K/V head h // (heads / kv_heads).
    """
    tokens, _, dim = query.shape
    kv_heads = kv.shape[2]
    out = torch.empty(tokens, heads * dim, dtype=query.dtype, device=query.device)
    kind = torch.float32 if work.exact or query.dtype is torch.float32 else torch.float16
    partial = torch.empty(work.partial_rows, heads, dim, dtype=kind, device=query.device)
    summary = torch.empty(3, work.partial_rows, heads, dtype=torch.float32, device=query.device)
    tiles = work.tiles
    _attention_kernel[(work.items.shape[0] * kv_heads,)](
        query,
        kv,
        work.items,
        work.pages,
        work.reach,
        out,
        partial,
        *summary,
        query.stride(0),
        scale * math.log2(math.e),
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        DIM=dim,
        PAGE=work.page_size,
        ROWS=tiles.rows,
        FEW=FEW_ROWS,
        KEYS=tiles.keys,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        maxnreg=MOST_REGISTERS,
        **overlapping(query),
    )
    if work.merges.shape[0]:
        _merge_kernel[(work.merges.shape[0], heads)](
            partial,
            *summary,
            work.merges,
            out,
            HEADS=heads,
            DIM=dim,
            SPLITS=_MERGED_AT_ONCE,
            num_warps=4,
            **overlapping(query),
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _attention_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    kv_ptr,
    items_ptr,
    pages_ptr,
    reach_ptr,
    out_ptr,
    partial_ptr,
    peak_ptr,
    total_ptr,
    stretch_ptr,
    query_stride,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    FEW: tl.constexpr,
    KEYS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    wait_for_inputs(OVERLAPS)
    # Neighbouring programs are the K/V heads of one item: what they read lies side by side in memory.
    kv_head = tl.program_id(0) % KV_HEADS
    item_ptr = items_ptr + tl.program_id(0) // KV_HEADS * 8
    rows = tl.load(item_ptr + 2)
    if rows == 0:
        return
    few = tl.load(item_ptr + 7)
    if few != 0:
        _attend(
            query_ptr, kv_ptr, item_ptr, pages_ptr, reach_ptr, out_ptr, partial_ptr, peak_ptr, total_ptr, stretch_ptr,
            query_stride, scale, kv_head, rows, KV_HEADS, GROUP, DIM, PAGE, FEW, KEYS,
        )  # fmt: skip
    else:
        _attend(
            query_ptr, kv_ptr, item_ptr, pages_ptr, reach_ptr, out_ptr, partial_ptr, peak_ptr, total_ptr, stretch_ptr,
            query_stride, scale, kv_head, rows, KV_HEADS, GROUP, DIM, PAGE, ROWS, KEYS,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query_ptr,
    kv_ptr,
    item_ptr,
    pages_ptr,
    reach_ptr,
    out_ptr,
    partial_ptr,
    peak_ptr,
    total_ptr,
    stretch_ptr,
    query_stride,
    scale,
    kv_head,
    rows,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One item and K/V head with a tile of `ROWS` product rows: row r is head r % GROUP of token r // GROUP.

    Streaming softmax over the keys in tiles of `KEYS`. peak is in units of log2: the largest score so far times
    `scale`. total and acc are relative to it.
    """
    pages_ptr += tl.load(item_ptr)
    first_row = tl.load(item_ptr + 1)
    first_key = tl.load(item_ptr + 3)
    key_end = tl.load(item_ptr + 4)
    least_reach = tl.load(item_ptr + 5)

    lane = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    token = lane // GROUP
    inside = token < rows
    head = kv_head * GROUP + lane % GROUP
    row = first_row + token
    query = tl.load(
        query_ptr + (row * query_stride + head * DIM)[:, None] + dims[None, :], mask=inside[:, None], other=0.0
    )
    reach = tl.load(reach_ptr + row, mask=inside, other=0)

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    kv_ptr += kv_head * DIM
    key = first_key + tl.arange(0, KEYS)
    page = tl.load(pages_ptr + key // PAGE, mask=key < key_end, other=0)
    for tile in range(first_key, key_end, KEYS):
        key = tile + tl.arange(0, KEYS)
        slot = page.to(tl.int64) * PAGE + key % PAGE
        # Page numbers are read one tile ahead, so that no copy of K and V waits for its address.
        page = tl.load(pages_ptr + (key + KEYS) // PAGE, mask=key + KEYS < key_end, other=0)
        at = kv_ptr + slot[:, None] * (2 * KV_HEADS * DIM) + dims[None, :]
        # Slots past the end may hold anything, and 0 * inf is not 0.
        known = (key < key_end)[:, None]
        k = tl.load(at, mask=known, other=0.0)
        v = tl.load(at + KV_HEADS * DIM, mask=known, other=0.0)
        score = tl.dot(query, tl.trans(k), input_precision="ieee")
        if tile + KEYS > least_reach:
            score = tl.where(key[None, :] < reach[:, None], score, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, axis=1) * scale)
        # Rows that have seen no key have a peak of -inf; inf - inf is not a number.
        base = tl.where(new_peak > float("-inf"), new_peak, 0.0)
        weight = tl.exp2(tl.fma(score, scale, -base[:, None]))
        keep = tl.exp2(peak - base)
        total = total * keep + tl.sum(weight, axis=1)
        acc = tl.dot(weight.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
        peak = new_peak

    # Where the answer goes is read again: held over the loop it would take registers that a second program needs.
    first_row = tl.load(item_ptr + 1)
    rows = tl.load(item_ptr + 2)
    partial_row = tl.load(item_ptr + 6)
    inside = token < rows
    if partial_row < 0:
        # A row without keys has a total of 0 and an answer of 0.
        answer = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(
            out_ptr + ((first_row + token) * (KV_HEADS * GROUP) + head)[:, None] * DIM + dims[None, :],
            answer.to(out_ptr.dtype.element_ty),
            mask=inside[:, None],
        )
    else:
        place = (partial_row + token).to(tl.int64) * (KV_HEADS * GROUP) + head
        kind = partial_ptr.dtype.element_ty
        if kind != tl.float32:
            # Relative to the power of two of the row's largest, float16 holds values of any size.
            largest = tl.maximum(tl.max(tl.abs(acc), axis=1), _LEAST_STRETCH)
            bits = tl.minimum(largest.to(tl.int32, bitcast=True) & _EXPONENT, _MOST_STRETCH)
            acc *= (-bits + _ONE_OVER).to(tl.float32, bitcast=True)[:, None]
            tl.store(stretch_ptr + place, bits.to(tl.float32, bitcast=True), mask=inside)
        tl.store(partial_ptr + place[:, None] * DIM + dims[None, :], acc.to(kind), mask=inside[:, None])
        tl.store(peak_ptr + place, peak, mask=inside)
        tl.store(total_ptr + place, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _merge_kernel(  # type: ignore[no-untyped-def]
    partial_ptr,
    peak_ptr,
    total_ptr,
    stretch_ptr,
    merges_ptr,
    out_ptr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """One row and head: the splits' sums weighted by 2 ** (their peak - the highest), over the total so weighted."""
    wait_for_inputs(OVERLAPS)
    merge_ptr = merges_ptr + tl.program_id(0) * 4
    head = tl.program_id(1)
    count = tl.load(merge_ptr + 3)
    if count == 0:
        return
    row = tl.load(merge_ptr)
    first = tl.load(merge_ptr + 1)
    step = tl.load(merge_ptr + 2)
    dims = tl.arange(0, DIM)
    highest = float("-inf")
    sums = tl.zeros([DIM], tl.float32)
    total = 0.0
    for start in range(0, count, SPLITS):
        split = start + tl.arange(0, SPLITS)
        inside = split < count
        place = (first + split * step).to(tl.int64) * HEADS + head
        part = tl.load(partial_ptr + place[:, None] * DIM + dims[None, :], mask=inside[:, None], other=0.0)
        peaks = tl.load(peak_ptr + place, mask=inside, other=float("-inf"))
        totals = tl.load(total_ptr + place, mask=inside, other=0.0)
        new_highest = tl.maximum(highest, tl.max(peaks, axis=0))
        base = tl.where(new_highest > float("-inf"), new_highest, 0.0)
        weights = tl.exp2(peaks - base)
        keep = tl.exp2(highest - base)
        times = weights
        if partial_ptr.dtype.element_ty != tl.float32:
            times *= tl.load(stretch_ptr + place, mask=inside, other=0.0)
        sums = sums * keep + tl.sum(part.to(tl.float32) * times[:, None], axis=0)
        total = total * keep + tl.sum(totals * weights, axis=0)
        highest = new_highest
    answer = sums / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + (row * HEADS + head) * DIM + dims, answer.to(out_ptr.dtype.element_ty))
