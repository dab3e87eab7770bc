"""Reach attention: ragged queries over paged K/V, one `reach` per query.

Every mode of decoding is the same attention: query row r of a sequence sees that sequence's key positions below
`reach[r]`. Causal rows at position p have reach p + 1, rows of a canvas the reach of the canvas's end.

This is the plain PyTorch form. On a CPU it is also the fast one, and it makes a row's result independent of its
batch: `folded_rows` and `padded_keys` keep MKL's matrix products in shapes whose rows come out bit-identical.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MIN_PRODUCT_ROWS = 8
"""Matrix products with fewer rows take other code paths in MKL and differ in the last bits."""


KEY_STEP = 32
"""Padded key numbers are multiples of this."""

TORCH_BLOCK = 512
"""Torch's CPU kernel works through keys in blocks of so many."""


@dataclass(frozen=True, slots=True)
class KeyBlocks:
    """How keys are cut and padded on this CPU.

    Attributes:
        whole: keys of a block; products over more are cut in such blocks.
        safe: key numbers up to a whole block, in rising order, at which a row has the bits it has with a whole block.
    """

    whole: int
    safe: tuple[int, ...]


def padded_keys(reach: int) -> int:
    """Keys that a query group reads: `reach` rounded up so that the result does not depend on what follows.

    Keys past `reach` have weight exactly zero, so a row's bits change only where a product over more keys sums in
    another order: the last block is padded up to the next of the `KeyBlocks.safe` numbers.
    """
    cut = key_blocks()
    rest = reach % cut.whole
    return reach - rest + cut.safe[bisect_left(cut.safe, rest)] if rest else reach


@lru_cache(maxsize=1)
def key_blocks() -> KeyBlocks:
    """The cut with the most safe numbers, the largest block of those."""
    return max(possible_key_blocks(), key=lambda blocks: len(blocks.safe))


@lru_cache(maxsize=1)
def possible_key_blocks() -> tuple[KeyBlocks, ...]:
    """Every cut that keeps the bits here, the largest block first.

    MKL splits the sum over some numbers of keys in parts of its own choice, which depends on the CPU (with torch 2.13
    on AVX-512: AMD EPYC between 192 and 384, Intel Xeon above 384). So it is tried once per process (40 ms).
    """
    generator = torch.Generator().manual_seed(TORCH_BLOCK)
    rows, dim = 2 * MIN_PRODUCT_ROWS, 64
    query, keys, values = (
        torch.randn(1, 1, count, dim, generator=generator) for count in (rows, TORCH_BLOCK, TORCH_BLOCK)
    )

    def attended(reach: int, count: int) -> Tensor:
        mask = reach_mask(np.full((1, 1, rows), reach), count, query.dtype)
        return F.scaled_dot_product_attention(query, keys[:, :, :count], values[:, :, :count], attn_mask=mask)

    counts = range(KEY_STEP, TORCH_BLOCK + 1, KEY_STEP)
    with torch.inference_mode():
        seen = {(reach, count): attended(reach, count) for count in counts for reach in counts if reach <= count}

    def safe(whole: int) -> tuple[int, ...]:
        def alike(count: int) -> bool:
            return all(torch.equal(seen[reach, count], seen[reach, whole]) for reach in counts if reach <= count)

        return tuple(count for count in counts if count <= whole and alike(count))

    return tuple(KeyBlocks(whole, safe(whole)) for whole in reversed(counts))


def folded_rows(rows: int, heads_per_kv_head: int) -> int:
    """Rows of a sequence's products: its query rows with all heads of a K/V head, up to a multiple of eight.

    Torch's CPU kernel cuts the rows into blocks of 32, 64 or 256, so the last block is a product of its own and must
    have `MIN_PRODUCT_ROWS` rows too: else a prompt's bits would depend on how it is cut into chunks.
    """
    return -(-rows * heads_per_kv_head // MIN_PRODUCT_ROWS) * MIN_PRODUCT_ROWS


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """Where heads and product rows of a group lie, as indices for one gather each way.

    Attributes:
        into: int64 `[sequences * kv_heads * folded_rows]`, of the rows `[tokens * width]` of heads (width: heads of a
            token in that tensor), counted from the group's first; padding repeats the first row of its sequence.
        back: int64 `[tokens * heads]`, of the product rows.
    """

    into: Tensor
    back: Tensor


@lru_cache(maxsize=1024)
def folding(sequences: int, rows: int, kv_heads: int, heads_per_kv_head: int, width: int) -> Folding:
    """The folding of a group's shape. The heads of a K/V head are rows of one product, head after head.

    Args:
        width: heads of a token in the tensor that queries are read from, of which the first are the query heads.
    """
    folded = folded_rows(rows, heads_per_kv_head)
    heads = kv_heads * heads_per_kv_head
    # source[sequence, kv head, head of it, row] as a row of [tokens * width]
    token = np.arange(sequences)[:, None, None, None] * rows + np.arange(rows)
    head = np.arange(heads).reshape(1, kv_heads, heads_per_kv_head, 1)
    source = (token * width + head).reshape(sequences, kv_heads, heads_per_kv_head * rows)
    padding = np.repeat(source[:, :, :1], folded - heads_per_kv_head * rows, axis=2)
    into = np.concatenate((source, padding), axis=2)
    # back[sequence, row, kv head, head of it] as a row of [sequences * kv_heads * folded]
    place = np.arange(heads_per_kv_head) * rows + np.arange(rows)[:, None]
    product = np.arange(sequences * kv_heads).reshape(sequences, 1, kv_heads, 1) * folded + place[None, :, None, :]
    return Folding(torch.from_numpy(into.reshape(-1)), torch.from_numpy(product.reshape(-1)))


@dataclass(slots=True)
class AttentionGroup:
    """Sequences with the same number of query rows and the same padded number of keys: one kernel call.

    Attributes:
        start: first row of the group in the batch; its rows are contiguous, sequence after sequence.
        sequences, rows: so many sequences of so many query rows each.
        fold: how their query heads become rows of products, and back.
        key_slots: int64 `[sequences * keys]`, the K/V slot of every key position (a null slot beyond the table).
        mask: `[sequences, 1, folded_rows, keys]` additive, 0 below a row's reach and -inf from there on; all heads of
            a K/V head are rows of one product, head after head, padded at the end. Where all rows of a sequence have
            the same reach, `[sequences, 1, 1, keys]`.
    """

    start: int
    sequences: int
    rows: int
    fold: Folding
    key_slots: Tensor
    mask: Tensor


def reach_mask(reach: np.ndarray, keys: int, dtype: torch.dtype) -> Tensor:
    """Additive mask `[..., keys]` from `reach` `[...]` (int64, 0..keys): 0 below a row's reach, else -inf."""
    last = 1 << (keys - 1).bit_length()
    masks = _masks(last, dtype)
    # Copying rows costs a ninth of comparing every key with every reach.
    return masks[:, :keys].index_select(0, torch.from_numpy(last - reach.reshape(-1))).view(*reach.shape, keys)


@lru_cache(maxsize=32)
def _masks(keys: int, dtype: torch.dtype) -> Tensor:
    """The mask row of reach r as row `keys - r` of `[keys + 1, keys]`: windows into one row of `2 * keys` values."""
    row = torch.zeros(2 * keys, dtype=dtype)
    row[keys:] = float("-inf")
    return row.as_strided((keys + 1, keys), (1, 1))


def reach_attention(query: Tensor, kv: Tensor, groups: list[AttentionGroup], scale: float) -> Tensor:
    """Attends every query row to its sequence's keys below its reach.

    Args:
        query: `[tokens, width, head_dim]`, contiguous; the first heads of each token are its query heads (the others,
            its keys, are passed over). Rows after the last group's are padding.
        kv: `[slots, 2, kv_heads, head_dim]`, keys and values of one layer; a slot is one contiguous row.
        groups: in row order, covering all rows that are not padding.
        scale: of the scores, head_dim ** -0.5.

    Returns `[tokens, heads * head_dim]`, zero for padding rows. Query head h uses K/V head h // (heads / kv_heads).
    """
    tokens, width, dim = query.shape
    kv_heads = kv.shape[2]
    flat = query.view(tokens * width, dim)
    parts: list[Tensor] = []
    done = 0
    for group in groups:
        count, keys = group.sequences, group.mask.shape[-1]
        fold = group.fold
        rows = flat[group.start * width :] if group.start else flat
        q = rows.index_select(0, fold.into).view(count, kv_heads, -1, dim)
        pairs = kv.index_select(0, group.key_slots).view(count, keys, 2, kv_heads, dim)
        k, v = pairs.permute(2, 0, 3, 1, 4).unbind()
        attended = _attend(q, k, v, group.mask, scale)
        group_rows = count * group.rows
        parts.append(attended.reshape(-1, dim).index_select(0, fold.back).view(group_rows, -1))
        done += group_rows
    if done < tokens:
        parts.append(query.new_zeros(tokens - done, parts[0].shape[1]))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of a group: `[sequences, kv_heads, folded_rows, dim]` over `[sequences, kv_heads, keys, dim]`."""
    whole, count = key_blocks().whole, mask.shape[-1]
    if count <= whole or whole == TORCH_BLOCK:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    out = sums = query.new_empty(0)
    for start in range(0, count, whole):
        part = slice(start, start + whole)
        block, block_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys[:, :, part], values[:, :, part], 0.0, False, attn_mask=mask[..., part], scale=scale
        )
        if start == 0:
            out, sums = block, block_sums
            continue
        # A row whose reach ends before this block takes nothing of it, to the bit: its share is exactly zero. Softmax
        # because it treats every row alike; torch's elementwise exp and log round the end of a tensor in another way.
        both = torch.stack((sums, block_sums + mask[..., start]), dim=-1)
        shares = both.softmax(-1)
        out = out * shares[..., :1] + block * shares[..., 1:]
        sums = sums - both.log_softmax(-1)[..., 0]
    return out
