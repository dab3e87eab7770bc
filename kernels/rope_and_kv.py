"""What lies between the qkv product and attention, in one pass: rotary embedding, query scale, K/V into their slots.

The tables are made once per forward for the batch's positions (`engine/model/rope.py`: YaRN, the Llama-4 scale), so a
layer's pass reads the projection once and writes each number once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.overlap import overlapping, wait_for_inputs

_HEADS_AT_ONCE = 16
"""Heads of a program: 48 heads of a token are three programs, so that a single canvas keeps most SMs busy."""


@dataclass(slots=True)
class Rotation:
    """Tables of a batch's positions.

    Attributes:
        cos, signed_sin: `[tokens, 1, head_dim]` in the activations' type, contiguous. Both halves of a head share their
            angles; the sine is negative in the first half.
        query_scale: `[tokens, 1, 1]` in the activations' type, contiguous, or None where it is 1 for all tokens.
    """

    cos: Tensor
    signed_sin: Tensor
    query_scale: Tensor | None


def rope_and_kv_torch(projected: Tensor, rotation: Rotation, slots: Tensor, kv: Tensor, heads: int) -> Tensor:
    """Rotates queries and keys, scales queries, and writes keys and values to the batch's slots.

    Args:
        projected: `[tokens, (heads + 2 * kv_heads) * head_dim]`, contiguous: a token's query heads, its keys, its
            values. This form rotates it in place.
        rotation: the tables of the tokens' positions.
        slots: int64 `[tokens]`, where each token's K/V goes; no slot twice, but for padding rows in the null page.
        kv: `[slots, 2, kv_heads, head_dim]`, keys and values of one layer, contiguous; written in place.

    Returns `[tokens, width, head_dim]`, of which the first `heads` of each token are its queries. This form leaves
    keys and values behind them, which spares it a copy; the Triton form returns the queries alone.
    """
    _, _, kv_heads, dim = kv.shape
    stacked = projected.view(-1, heads + 2 * kv_heads, dim)
    turned = stacked[:, : heads + kv_heads]
    swapped = turned.roll(dim // 2, -1)
    turned.mul_(rotation.cos).addcmul_(swapped, rotation.signed_sin)
    if rotation.query_scale is not None:
        stacked[:, :heads] *= rotation.query_scale
    kv.view(-1, 2 * kv_heads, dim).index_copy_(0, slots, stacked[:, heads:])
    return stacked


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotates split halves of `x` `[tokens, heads, head_dim]` ("rotate_half", contract 3.1)."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * signed_sin


def rope_and_kv_triton(projected: Tensor, rotation: Rotation, slots: Tensor, kv: Tensor, heads: int) -> Tensor:
    """The pass in one launch, without a host sync; see `rope_and_kv_torch`.

    Sums are float32 and rounded once, where the PyTorch form rounds every product. head_dim is a power of two.
    """
    tokens = projected.shape[0]
    _, _, kv_heads, dim = kv.shape
    query = torch.empty(tokens, heads, dim, dtype=projected.dtype, device=projected.device)
    stacked = heads + 2 * kv_heads
    _rope_and_kv_kernel[(tokens, triton.cdiv(stacked, _HEADS_AT_ONCE))](
        projected,
        rotation.cos,
        rotation.signed_sin,
        rotation.query_scale,
        slots,
        query,
        kv,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=dim // 2,
        AT_ONCE=_HEADS_AT_ONCE,
        num_warps=4,
        **overlapping(projected),
    )
    return query


@triton.jit  # type: ignore[untyped-decorator]
def _rope_and_kv_kernel(  # type: ignore[no-untyped-def]
    projected_ptr,
    cos_ptr,
    sin_ptr,
    query_scale_ptr,
    slots_ptr,
    query_ptr,
    kv_ptr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    AT_ONCE: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    wait_for_inputs(OVERLAPS)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    dims = tl.arange(0, HALF)
    stacked = HEADS + 2 * KV_HEADS
    here = (head < stacked)[:, None]
    at = projected_ptr + token * (stacked * 2 * HALF) + head[:, None] * (2 * HALF) + dims[None, :]
    first = tl.load(at, mask=here, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=here, other=0.0).to(tl.float32)
    # The halves share their angles, and the sine of the second is not negated.
    cos = tl.load(cos_ptr + token * (2 * HALF) + dims).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + token * (2 * HALF) + HALF + dims).to(tl.float32)[None, :]
    turns = (head < HEADS + KV_HEADS)[:, None]
    turned_first = tl.where(turns, first * cos - second * sin, first)
    turned_second = tl.where(turns, second * cos + first * sin, second)
    is_query = (head < HEADS)[:, None]
    if query_scale_ptr is not None:
        scale = tl.where(is_query, tl.load(query_scale_ptr + token).to(tl.float32), 1.0)
        turned_first *= scale
        turned_second *= scale

    query_at = query_ptr + token * (HEADS * 2 * HALF) + head[:, None] * (2 * HALF) + dims[None, :]
    kind = query_ptr.dtype.element_ty
    tl.store(query_at, turned_first.to(kind), mask=is_query)
    tl.store(query_at + HALF, turned_second.to(kind), mask=is_query)
    # A slot is one row: its keys, head after head, then its values, as they follow the queries in the projection.
    slot = tl.load(slots_ptr + token).to(tl.int64)
    kv_at = kv_ptr + slot * (2 * KV_HEADS * 2 * HALF) + (head - HEADS)[:, None] * (2 * HALF) + dims[None, :]
    tl.store(kv_at, turned_first.to(kind), mask=here & (is_query == 0))
    tl.store(kv_at + HALF, turned_second.to(kind), mask=here & (is_query == 0))
