"""The audit of finished blocks, over all that were looked at in one forward (`requests.md` section 1).

A block keeps its longest prefix in which every token passes: `exact`, the token is the one that AR chose (this is
self-speculation's acceptance, contract 4.4); a tolerance t, p_AR(token) >= t x p_AR(best). AR's own token follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.switch import use_triton

KEEP = -math.inf
"""The floor of audit `off` and `score`: everything stays."""
EXACT = math.inf
"""The floor of audit `exact`: tokens are compared, not probabilities."""


@dataclass(slots=True)
class Accepted:
    """`kept` int64 `[blocks]`, leading tokens that stay; `pending` int64 `[blocks]`, AR's own token after them."""

    kept: Tensor
    pending: Tensor


def accept(canvas: Tensor, picks: Tensor, ratios: Tensor, length: Tensor, floor: Tensor) -> Accepted:
    """How much of each block stays.

    Args:
        canvas: int64 `[blocks, width]`, contiguous like all two-dimensional arguments; the first token of a block is
            AR's choice already and always stays.
        picks: int64 `[blocks, width]`, AR's choice after each canvas token.
        ratios: float32 `[blocks, width]`, at row j log p_AR(canvas[j + 1]) - log p_AR(best), for tolerances only;
            NaN passes.
        length: int64 `[blocks]`, 1 or more; what lies behind is padding.
        floor: float32 `[blocks]`, the logarithm of the tolerance, `KEEP` or `EXACT`.
    """
    form = accept_triton if use_triton(canvas) else accept_torch
    return form(canvas, picks, ratios, length, floor)


@torch.inference_mode()
def accept_torch(canvas: Tensor, picks: Tensor, ratios: Tensor, length: Tensor, floor: Tensor) -> Accepted:
    """The rule in plain PyTorch; see `accept`."""
    width = canvas.shape[1]
    offsets = torch.arange(width, device=canvas.device)
    following = canvas.roll(-1, dims=1)
    fails = torch.where((floor == EXACT)[:, None], picks != following, ratios < floor[:, None])
    fails &= offsets < length[:, None] - 1
    kept = torch.where(fails, offsets + 1, length[:, None]).amin(1)
    return Accepted(kept, picks.gather(1, kept[:, None] - 1)[:, 0])


@torch.inference_mode()
def accept_triton(canvas: Tensor, picks: Tensor, ratios: Tensor, length: Tensor, floor: Tensor) -> Accepted:
    """The rule in one launch, one program per block, without a host sync; see `accept`."""
    blocks, width = canvas.shape
    result = Accepted(torch.empty_like(length), torch.empty_like(length))
    lanes = max(16, triton.next_power_of_2(width))
    if blocks:
        _accept_kernel[(blocks,)](
            canvas, picks, ratios, length, floor, result.kept, result.pending, width, LANES=lanes, num_warps=1
        )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _accept_kernel(  # type: ignore[no-untyped-def]
    canvas_ptr,
    picks_ptr,
    ratios_ptr,
    length_ptr,
    floor_ptr,
    kept_ptr,
    pending_ptr,
    width,
    LANES: tl.constexpr,
):
    block = tl.program_id(0)
    offsets = tl.arange(0, LANES)
    length = tl.minimum(tl.load(length_ptr + block), width).to(tl.int32)
    judged = offsets < length - 1
    place = block * width + offsets
    following = tl.load(canvas_ptr + place + 1, mask=judged, other=0)
    picks = tl.load(picks_ptr + place, mask=judged, other=0)
    ratios = tl.load(ratios_ptr + place, mask=judged, other=0.0)
    floor = tl.load(floor_ptr + block)
    fails = judged & tl.where(floor == float("inf"), picks != following, ratios < floor)
    kept = tl.min(tl.where(fails, offsets + 1, length), axis=0)
    tl.store(kept_ptr + block, kept.to(tl.int64))
    tl.store(pending_ptr + block, tl.load(picks_ptr + block * width + kept - 1))
