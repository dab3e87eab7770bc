"""Products of one tile size, whatever the number of rows, so that a row's bits do not depend on its batch.

cuBLAS chooses tiles, and splits sums, by the shape of a product: the same row comes out differently in a batch of
another size. Here every element is one sum over the inputs in steps of `TILE_INPUTS`, in tiles of the same shape. The
weight is the left operand, as in the denoise head: its outputs fill WGMMA's M.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

TILE_OUTPUTS = 128
TILE_ROWS = 64
TILE_INPUTS = 64
WARPS, STAGES = 8, 4


@torch.inference_mode()
def fixed_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` in one launch.

    Args:
        x: `[rows, inputs]`. weight: `[outputs, inputs]`, contiguous, of the same type; inputs a multiple of 8 (of 4 in
            float32), as tensor descriptors want rows of whole 16 bytes.

    Returns `[rows, outputs]` of the same type; sums are float32.
    """
    rows, inputs = x.shape
    outputs = weight.shape[0]
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    _fixed_product_kernel[(triton.cdiv(outputs, TILE_OUTPUTS), triton.cdiv(rows, TILE_ROWS))](
        TensorDescriptor.from_tensor(weight, [TILE_OUTPUTS, TILE_INPUTS]),
        TensorDescriptor.from_tensor(x.contiguous(), [TILE_ROWS, TILE_INPUTS]),
        out,
        inputs,
        outputs,
        rows,
        OUTPUTS=TILE_OUTPUTS,
        ROWS=TILE_ROWS,
        INPUTS=TILE_INPUTS,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _fixed_product_kernel(  # type: ignore[no-untyped-def]
    weight,
    x,
    out_ptr,
    inputs,
    outputs,
    rows,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    first_output = tl.program_id(0) * OUTPUTS
    first_row = tl.program_id(1) * ROWS
    products = tl.zeros([OUTPUTS, ROWS], dtype=tl.float32)
    for column in range(0, inputs, INPUTS):
        ours = weight.load([first_output, column])
        theirs = x.load([first_row, column])
        products = tl.dot(ours, theirs.T, products, input_precision="ieee")
    output = first_output + tl.arange(0, OUTPUTS)
    row = first_row + tl.arange(0, ROWS)
    place = row[None, :].to(tl.int64) * outputs + output[:, None]
    tl.store(out_ptr + place, products.to(weight.dtype), mask=(row < rows)[None, :] & (output < outputs)[:, None])
