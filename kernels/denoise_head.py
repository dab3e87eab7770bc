"""The LM head and the statistics of its rows, without ever holding `[rows, vocab]` logits.

Two forms, because Triton's products lose to cuBLAS above some 64 rows (FlashSampling, arXiv 2603.15854, table 4):

- *fused*, up to 64 rows of a 16-bit model: one program per tile of 128 vocabulary rows multiplies and reduces it. The
  weight is the left operand, so that the vocabulary fills WGMMA's M, which 16 or 32 hidden rows would not. A program
  needs at most half of a processor's shared memory: two run at a time, and one loads while the other reduces.
- *chunked*, all else: cuBLAS into a scratch of fixed size, a chunk of the vocabulary at a time so that every weight is
  read once, and one pass over the scratch while it is still in L2.

Logits are rounded to the model's dtype before anything looks at them, as those of a plain product are, so all forms
see the same ties. Under tensor parallelism every rank passes its rows of the weight and `first_id`, and the ranks'
partials go through `combine`. Nothing here waits for the device, and shapes depend on argument shapes only, so all of
it can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.combine import finish
from kernels.row_statistics import RowRules, Statistics, check_vocab, partials_torch, store_partials
from kernels.switch import use_triton

FUSED_ROWS = 64
"""Above it the chunked form is the faster one."""
SCRATCH_ELEMENTS = 1 << 23
"""Logits held at a time: 16 MiB in bf16, a third of an H200's L2, and 256 tiles of a large product."""
PIECE = 4096
"""Logits of a row that one program reduces."""
TILE_IDS = 128
TILE_HIDDEN = 64


def denoise_head(hidden: Tensor, weight: Tensor, rules: RowRules, fixed: bool = False) -> Statistics:
    """Statistics of `hidden @ weight.T` over a whole vocabulary.

    Args:
        hidden: `[rows, hidden]`, contiguous, after the final norm, in the weight's dtype (float32, float16, bfloat16).
        weight: `[vocab, hidden]`, contiguous.
        rules: what is asked of each row, on the same device.
        fixed: a row's bits must not depend on how many there are.
    """
    return finish(head_partials(hidden, weight, rules, fixed=fixed), rules)


def head_partials(hidden: Tensor, weight: Tensor, rules: RowRules, first_id: int = 0, fixed: bool = False) -> Tensor:
    """Partials of the vocabulary from `first_id` on, float32 `[fields, rows, parts]`, for `combine` and `finish`.

    Raises ValueError for a vocabulary whose ids float32 cannot hold, and where kernels run and sampled noise would
    start within a group of four ids.
    """
    check_vocab(first_id + weight.shape[0])
    if not use_triton(hidden):
        return head_partials_torch(hidden, weight, rules, first_id)
    if rules.noise is not None and first_id % 4:
        raise ValueError(f"the shard starts at token id {first_id}; kernels draw noise from multiples of 4")
    if fixed:
        return _fixed_partials(hidden, weight, rules, first_id)
    form = head_partials_fused if _can_fuse(hidden, weight) else head_partials_chunked
    return form(hidden, weight, rules, first_id)


def _fixed_partials(hidden: Tensor, weight: Tensor, rules: RowRules, first_id: int) -> Tensor:
    """The fused form with its largest tile, as often as the rows need it: the weight is read again for every tile."""
    starts = range(0, max(hidden.shape[0], 1), FUSED_ROWS)
    parts = [slice(start, start + FUSED_ROWS) for start in starts]
    made = [head_partials_fused(hidden[part], weight, rules.part(part), first_id, tile=FUSED_ROWS) for part in parts]
    return made[0] if len(made) == 1 else torch.cat(made, dim=1)


@torch.inference_mode()
def head_partials_torch(hidden: Tensor, weight: Tensor, rules: RowRules, first_id: int = 0) -> Tensor:
    """`head_partials` in plain PyTorch, chunk by chunk."""
    ids = _chunk(hidden.shape[0])
    parts = [
        partials_torch((hidden @ weight[first : first + ids].t()).float(), first_id + first, rules)
        for first in range(0, weight.shape[0], ids)
    ]
    return torch.cat(parts, dim=-1)


@torch.inference_mode()
def head_partials_fused(
    hidden: Tensor, weight: Tensor, rules: RowRules, first_id: int = 0, tile: int | None = None
) -> Tensor:
    """`head_partials` in one launch, for up to `FUSED_ROWS` rows, in a tile of `tile` rows (None: as few as do)."""
    rows, size = hidden.shape
    vocab = weight.shape[0]
    tile_rows, warps, stages, passes = fused_shape(tile or rows, rules.noise is not None)
    parts = triton.cdiv(vocab, TILE_IDS)
    partials = torch.empty(rules.fields, rows, parts, dtype=torch.float32, device=hidden.device)
    if rows == 0:
        return partials
    _fused_kernel[(parts,)](
        TensorDescriptor.from_tensor(weight, [TILE_IDS, TILE_HIDDEN]),
        TensorDescriptor.from_tensor(hidden, [tile_rows, TILE_HIDDEN]),
        size,
        vocab,
        first_id,
        rows,
        partials,
        *_rule_arguments(rules),
        SAMPLED=rules.noise is not None,
        IDS=TILE_IDS,
        ROWS=tile_rows,
        HIDDEN=TILE_HIDDEN,
        PASSES=passes,
        num_warps=warps,
        num_stages=stages,
        maxnreg=128 if passes == 2 else None,
    )
    return partials


@torch.inference_mode()
def head_partials_chunked(hidden: Tensor, weight: Tensor, rules: RowRules, first_id: int = 0) -> Tensor:
    """`head_partials` with cuBLAS's product and a pass over it per chunk of the vocabulary, for any number of rows."""
    rows, vocab = hidden.shape[0], weight.shape[0]
    ids = _chunk(rows)
    parts = triton.cdiv(vocab, PIECE)
    partials = torch.empty(rules.fields, rows, parts, dtype=torch.float32, device=hidden.device)
    if rows == 0:
        return partials
    scratch = torch.empty(rows * min(ids, vocab), dtype=hidden.dtype, device=hidden.device)
    for first in range(0, vocab, ids):
        count = min(ids, vocab - first)
        logits = scratch[: rows * count].view(rows, count)
        torch.mm(hidden, weight[first : first + count].t(), out=logits)
        _pieces_kernel[(rows, triton.cdiv(count, PIECE))](
            logits,
            count,
            first_id + first,
            first // PIECE,
            parts,
            rows,
            partials,
            *_rule_arguments(rules),
            SAMPLED=rules.noise is not None,
            IDS=PIECE,
            num_warps=8,
        )
    return partials


def fused_shape(rows: int, sampled: bool) -> tuple[int, int, int, int]:
    """Hidden rows of a tile, warps, pipeline stages and passes of the fused form.

    A program has at most half of a processor's shared memory and registers, so that two run at a time. 64 sampled rows
    keep to that by reducing one half after the other.
    """
    if rows <= 16:
        return 16, 4, 5, 1
    return (32, 4, 4, 1) if rows <= 32 else (64, 8, 4, 2 if sampled else 1)


def _can_fuse(hidden: Tensor, weight: Tensor) -> bool:
    rows, size = hidden.shape
    # Exact float32 products have no tensor cores, and descriptors want rows of whole 16 bytes and Hopper or later.
    if rows > FUSED_ROWS or hidden.dtype is torch.float32 or size % 8:
        return False
    return not hidden.is_cuda or torch.cuda.get_device_capability(hidden.device) >= (9, 0)


def _chunk(rows: int) -> int:
    """Token ids of a chunk: whole pieces, as many as fit the scratch."""
    return max(1, SCRATCH_ELEMENTS // max(rows, 1) // PIECE) * PIECE


def _rule_arguments(rules: RowRules) -> tuple[int | Tensor, ...]:
    """The last arguments of both kernels; without noise the last five are not looked at."""
    noise = rules.noise
    first = (rules.mask_id, rules.banned, rules.banned.shape[1], rules.given)
    if noise is None:
        return (*first, *(rules.given,) * 5)
    return (*first, noise.temperature, noise.seeds, noise.positions, noise.places, noise.choices)


@triton.jit(do_not_specialize=["vocab", "first_id", "row_count", "mask_id", "banned_count"])  # type: ignore[untyped-decorator]
def _fused_kernel(  # type: ignore[no-untyped-def]
    weight,
    hidden,
    hidden_size,
    vocab,
    first_id,
    row_count,
    partials_ptr,
    mask_id,
    banned_ptr,
    banned_count,
    given_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    places_ptr,
    choices_ptr,
    SAMPLED: tl.constexpr,
    IDS: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    PASSES: tl.constexpr,
):
    part = tl.program_id(0)
    products = tl.zeros([IDS, ROWS], dtype=tl.float32)
    for column in range(0, hidden_size, HIDDEN):
        ours = weight.load([part * IDS, column])
        theirs = hidden.load([0, column])
        products = tl.dot(ours, theirs.T, products, input_precision="ieee")
    logits = products.to(weight.dtype).to(tl.float32)
    # Halves of many rows, one after the other, need fewer registers.
    halves = tl.split(tl.permute(tl.reshape(logits, [IDS, 2, ROWS // 2]), (0, 2, 1))) if PASSES == 2 else (logits,)
    for index in tl.static_range(PASSES):
        store_partials(
            halves[index],
            first_id + part * IDS,
            first_id + vocab,
            index * (ROWS // PASSES) + tl.arange(0, ROWS // PASSES),
            row_count,
            part,
            tl.num_programs(0),
            partials_ptr,
            mask_id,
            banned_ptr,
            banned_count,
            given_ptr,
            temperature_ptr,
            seeds_ptr,
            positions_ptr,
            places_ptr,
            choices_ptr,
            SAMPLED,
            IDS,
            ROWS // PASSES,
        )


@triton.jit(do_not_specialize=["first_id", "first_part", "part_count", "row_count", "mask_id", "banned_count"])  # type: ignore[untyped-decorator]
def _pieces_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    count,
    first_id,
    first_part,
    part_count,
    row_count,
    partials_ptr,
    mask_id,
    banned_ptr,
    banned_count,
    given_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    places_ptr,
    choices_ptr,
    SAMPLED: tl.constexpr,
    IDS: tl.constexpr,
):
    row = tl.program_id(0)
    piece = tl.program_id(1)
    columns = (piece * IDS + tl.arange(0, IDS))[:, None]
    logits = tl.load(logits_ptr + row * count + columns, mask=columns < count, other=0.0)
    store_partials(
        logits.to(tl.float32),
        first_id + piece * IDS,
        first_id + count,
        row + tl.arange(0, 1),
        row_count,
        first_part + piece,
        part_count,
        partials_ptr,
        mask_id,
        banned_ptr,
        banned_count,
        given_ptr,
        temperature_ptr,
        seeds_ptr,
        positions_ptr,
        places_ptr,
        choices_ptr,
        SAMPLED,
        IDS,
        1,
    )
