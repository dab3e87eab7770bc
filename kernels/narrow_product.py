"""Products of few rows, which take as long as reading the weight does: up to 64 rows, a canvas or two.

The weight is the left operand, as in the denoise head, so that its outputs fill WGMMA's M. What such a product needs is
enough bytes under way on every processor. A program keeps three or four tiles of 16 KB under way, and where the outputs
give too few programs the inputs are split between several of them; of those that share outputs the last one to arrive
adds up all sums, in the order of the inputs, so that a result does not depend on who that is. The gated form multiplies
with gate and up at once and leaves silu(gate) * up, for which a pass of its own would write and read both.

These are computed choices, to be measured: `python -m benchmarks.gpu` compares them with the library's products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.overlap import overlapping, prefetch, wait_for_inputs

NARROW_ROWS = 64
"""The most rows."""
TILE_OUTPUTS = 128
"""Of a program; of a gated one half of them are gates."""
TILE_INPUTS = 64
WARPS = 4
SHARED_BYTES = 104 << 10
"""That a program may need (`tests/kernels/budget.json`)."""
AHEAD_INPUTS = 4 * TILE_INPUTS
"""Where kernels overlap: 64 KB a program."""
PROGRAMS = 112
"""About so many at least, if need be by splitting the inputs: most of the 132 processors of an H100 or H200, each of
which can take more than its part of the memory's bandwidth. More splits would leave more sums to be added up."""


def narrow_product(x: Tensor, weight: Tensor, arrivals: Tensor) -> Tensor:
    """`x @ weight.T` in one launch, without a host sync.

    Args:
        x: `[rows, inputs]`, up to `NARROW_ROWS` rows. weight: `[outputs, inputs]`, contiguous, of the same type; inputs
            a multiple of 8 (of 4 in float32), as tensor descriptors want rows of whole 16 bytes.
        arrivals: int32 `[tiles_of(outputs)]` on the same device, zeros; they are zeros again afterwards. For one
            product at a time.

    Returns `[rows, outputs]` of the same type; sums are float32. Raises ValueError for more rows.
    """
    rows, inputs = _checked(x)
    outputs = weight.shape[0]
    tiles = tiles_of(outputs)
    splits, share = split_of(inputs, tiles)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    tile_rows, stages = narrow_shape(rows)
    needed = splits * tiles * TILE_OUTPUTS * tile_rows if splits > 1 else 0
    sums = torch.empty(needed, dtype=torch.float32, device=x.device)
    _narrow_product_kernel[(tiles, splits)](
        *_described(x, weight, TILE_OUTPUTS, tile_rows),
        weight,
        out,
        sums,
        arrivals,
        inputs,
        outputs,
        rows,
        share,
        OUTPUTS=TILE_OUTPUTS,
        ROWS=tile_rows,
        INPUTS=TILE_INPUTS,
        GATED=False,
        SPLIT=splits > 1,
        AHEAD=_ahead(inputs - (splits - 1) * share),
        num_warps=WARPS,
        num_stages=stages,
        **overlapping(x),
    )
    return out


def gated_product(x: Tensor, weight: Tensor) -> Tensor:
    """SwiGLU of `x @ weight.T` (`kernels/activation.py`) in one launch, without a host sync.

    It rounds where the two passes do: both products, silu, their product.

    Args:
        x: as of `narrow_product`. weight: `[2 * inner, inputs]`, all gates, then all of up.

    Returns `[rows, inner]`. Raises ValueError for more rows than `NARROW_ROWS`.
    """
    rows, inputs = _checked(x)
    inner = weight.shape[0] // 2
    out = torch.empty(rows, inner, dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    tile_rows, stages = narrow_shape(rows)
    half = TILE_OUTPUTS // 2
    _narrow_product_kernel[(triton.cdiv(inner, half), 1)](
        *_described(x, weight, half, tile_rows),
        weight,
        out,
        None,
        None,
        inputs,
        inner,
        rows,
        inputs,
        OUTPUTS=half,
        ROWS=tile_rows,
        INPUTS=TILE_INPUTS,
        GATED=True,
        SPLIT=False,
        AHEAD=_ahead(inputs),
        num_warps=WARPS,
        num_stages=stages,
        **overlapping(x),
    )
    return out


def tiles_of(outputs: int) -> int:
    """Tiles of outputs, each of which one or several programs make."""
    return -(-outputs // TILE_OUTPUTS)


def split_of(inputs: int, tiles: int) -> tuple[int, int]:
    """Into how many parts the inputs are split, and how many each has, whole tiles of them; all have nearly as many."""
    steps = -(-inputs // TILE_INPUTS)
    share = -(-steps // -(-PROGRAMS // tiles))
    return -(-steps // share), share * TILE_INPUTS


def narrow_shape(rows: int) -> tuple[int, int]:
    """Rows of a tile and pipeline stages: at most half of a processor's shared memory."""
    if rows <= 16:
        return 16, 5
    return (32, 5) if rows <= 32 else (64, 4)


def _checked(x: Tensor) -> tuple[int, int]:
    rows, inputs = x.shape
    if rows > NARROW_ROWS:
        raise ValueError(f"a narrow product of {rows} rows; allowed: up to {NARROW_ROWS}")
    return rows, inputs


def _ahead(least: int) -> int:
    """Inputs of each output whose weights are on their way before the rows are there, if every program has so many."""
    return AHEAD_INPUTS if least >= AHEAD_INPUTS else 0


def _described(x: Tensor, weight: Tensor, outputs: int, rows: int) -> tuple[TensorDescriptor, TensorDescriptor]:
    return (
        TensorDescriptor.from_tensor(weight, [outputs, TILE_INPUTS]),
        TensorDescriptor.from_tensor(x.contiguous(), [rows, TILE_INPUTS]),
    )


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _narrow_product_kernel(  # type: ignore[no-untyped-def]
    weight,
    x,
    weight_ptr,
    out_ptr,
    sums_ptr,
    arrivals_ptr,
    inputs,
    outputs,
    rows,
    share,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    GATED: tl.constexpr,
    SPLIT: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tl.program_id(1)
    kind = weight.dtype
    if OVERLAPS and AHEAD > 0:
        # No kernel writes weights: they need not be waited for.
        lane = tl.arange(0, OUTPUTS * 2 if GATED else OUTPUTS)
        mine = tl.minimum(tile * OUTPUTS + lane % OUTPUTS, outputs - 1) + lane // OUTPUTS * outputs
        first = weight_ptr + split * share + mine.to(tl.int64) * inputs
        prefetch(first, AHEAD * kind.primitive_bitwidth // 8)
    wait_for_inputs(OVERLAPS)
    sums = tl.zeros([OUTPUTS, ROWS], dtype=tl.float32)
    others = tl.zeros([OUTPUTS, ROWS], dtype=tl.float32)
    for column in range(split * share, tl.minimum((split + 1) * share, inputs), INPUTS):
        theirs = x.load([0, column]).T
        sums = tl.dot(weight.load([tile * OUTPUTS, column]), theirs, sums, input_precision="ieee")
        if GATED:
            ups = weight.load([outputs + tile * OUTPUTS, column])
            others = tl.dot(ups, theirs, others, input_precision="ieee")
    output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    place = row[None, :] * outputs + output[:, None]
    inside = (row < rows)[None, :] & (output < outputs)[:, None]
    if GATED:
        gate = sums.to(kind).to(tl.float32)
        silu = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
        sums = silu * others.to(kind).to(tl.float32)
    if SPLIT:
        splits = tl.num_programs(1)
        step = tl.num_programs(0) * OUTPUTS * ROWS
        at = sums_ptr + tile * OUTPUTS * ROWS + tl.arange(0, OUTPUTS)[:, None] * ROWS + row[None, :]
        tl.store(at + split * step, sums)
        # All threads' sums are written before one of them says so.
        tl.debug_barrier()
        before = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel")
        if before == splits - 1:
            sums = tl.zeros([OUTPUTS, ROWS], dtype=tl.float32)
            for other in range(splits):
                sums += tl.load(at + other * step, cache_modifier=".cg")
            tl.store(out_ptr + place, sums.to(kind), mask=inside)
            tl.store(arrivals_ptr + tile, 0)
    else:
        tl.store(out_ptr + place, sums.to(kind), mask=inside)
