"""The unmask rule of a denoise or draft step, over a batch of canvases at once (`requests.md` section 1).

At step i of K, with m masks left in a canvas, commit its best max(ceil(m / (K - i)), number with confidence >=
threshold) masks, best first, ties to the lowest position. After K steps no mask is left, whatever the confidences are.

Two policies may be added to it, canvas by canvas (`Policies`). An *entropy bound* commits besides the masks of lowest
entropy, as many as have a sum that is, less the largest of them, within the bound (EB-Sampler, arXiv 2505.24857): what
they do not know of each other is bounded so. *Remask* takes back tokens of earlier steps that have become unlikely, but
not in the last step of a budget, so that the budget stays a guarantee.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.switch import use_triton

NEVER = 2.0
"""The threshold that no confidence reaches: nothing is committed early."""


NO_BOUND = -1.0
"""The bound within which no sum of entropies is."""
NO_REMASK = 0.0
"""The probability below which no token is."""


@dataclass(slots=True)
class Policies:
    """What is added to the rule.

    Attributes:
        entropy: float32 `[canvases, width]`, of each masked slot's softmax, natural logarithms; NaN counts as infinite.
        bound: float32 `[canvases]`, 0 or more, or `NO_BOUND`.
        standing: float32 `[canvases, width]`, the probability that the forward gives to the token in each slot that is
            not masked; 1 where the token may not be taken back, as one that was before.
        remask: float32 `[canvases]`, 0 to 1: what is less likely is masked again; `NO_REMASK` for nothing.
        mask_id: what a slot holds then.
    """

    entropy: Tensor
    bound: Tensor
    standing: Tensor
    remask: Tensor
    mask_id: int


@dataclass(slots=True)
class Unmasked:
    """What is known of each canvas after the step; all tensors `[canvases]`.

    Attributes:
        masks_left: int64.
        first_stop: int64, offset of the first stop id if no mask lies before it, else -1.
        done: bool, no mask is left, or none before the first stop id.
    """

    masks_left: Tensor
    first_stop: Tensor
    done: Tensor


def unmask(
    canvas: Tensor,
    masked: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    length: Tensor,
    steps_left: Tensor,
    threshold: Tensor,
    stop_ids: Tensor,
    policies: Policies | None = None,
) -> Unmasked:
    """Commits the step's candidates into `canvas` and clears their flags in `masked`, both in place.

    Args:
        canvas: int64 `[canvases, width]`, contiguous like all two-dimensional arguments.
        masked: bool `[canvases, width]`. Whether a slot is masked is this flag, never a comparison of ids.
        candidate: int64 `[canvases, width]`, the token chosen for each masked slot; others are not looked at.
        confidence: float32 `[canvases, width]`, 0 to 1; NaN counts as 0.
        length: int64 `[canvases]`, slots of each canvas; what lies behind is padding.
        steps_left: int64 `[canvases]`, K - i >= 1.
        threshold: float32 `[canvases]`, 0 to 1, or `NEVER`.
        stop_ids: int64 `[canvases, any]`, EOS and stop ids, filled up with -1; without columns nothing is looked for.
        policies: None where no canvas has any.
    """
    form = unmask_triton if use_triton(canvas) else unmask_torch
    return form(canvas, masked, candidate, confidence, length, steps_left, threshold, stop_ids, policies)


@torch.inference_mode()
def unmask_torch(
    canvas: Tensor,
    masked: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    length: Tensor,
    steps_left: Tensor,
    threshold: Tensor,
    stop_ids: Tensor,
    policies: Policies | None = None,
) -> Unmasked:
    """The rule in plain PyTorch; see `unmask`."""
    width = canvas.shape[1]
    offsets = torch.arange(width, device=canvas.device)
    inside = offsets < length[:, None]
    is_open = masked & inside
    score = torch.where(is_open, confidence.nan_to_num(0.0), -1.0)
    order = score.sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, offsets.expand_as(order))
    masks = is_open.sum(1)
    forced = (masks + steps_left - 1) // steps_left
    confident = (score >= threshold[:, None]).sum(1)
    quota = torch.maximum(forced, confident)
    chosen = is_open & (rank < quota[:, None])
    masks_left = masks - quota
    if policies is not None:
        chosen |= _within_bound(is_open, policies)
        again = inside & ~masked & (policies.standing < policies.remask[:, None]) & (steps_left > 1)[:, None]
        masks_left = masks - chosen.sum(1) + again.sum(1)
        canvas.masked_fill_(again, policies.mask_id)
    canvas.copy_(torch.where(chosen, candidate, canvas))
    masked.logical_xor_(chosen)
    left = is_open ^ chosen
    if policies is not None:
        masked |= again
        left |= again
    if stop_ids.shape[1] == 0:
        return Unmasked(masks_left, torch.full_like(length, -1), masks_left == 0)
    is_stop = canvas == stop_ids[:, :1]
    for column in range(1, stop_ids.shape[1]):  # nearly always one
        is_stop |= canvas == stop_ids[:, column : column + 1]
    is_stop &= inside & ~left
    first_mask = torch.where(left, offsets, width).amin(1)
    first_stop = torch.where(is_stop, offsets, width).amin(1)
    first_stop = torch.where(first_stop < first_mask, first_stop, -1)
    return Unmasked(masks_left, first_stop, (masks_left == 0) | (first_stop >= 0))


def _within_bound(is_open: Tensor, policies: Policies) -> Tensor:
    """Which masks the entropy bound commits."""
    entropy = torch.where(is_open, policies.entropy.nan_to_num(torch.inf).clamp(min=0), torch.inf)
    ascending, order = entropy.sort(dim=1, stable=True)
    # Of a prefix in ascending order the last one is the largest: what came before it is summed.
    before = torch.cat((torch.zeros_like(ascending[:, :1]), ascending.cumsum(1)[:, :-1]), dim=1)
    within = (before <= policies.bound[:, None]) & (ascending < torch.inf)
    return torch.zeros_like(is_open).scatter_(1, order, within)


@torch.inference_mode()
def unmask_triton(
    canvas: Tensor,
    masked: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    length: Tensor,
    steps_left: Tensor,
    threshold: Tensor,
    stop_ids: Tensor,
    policies: Policies | None = None,
) -> Unmasked:
    """The rule in one launch, one program per canvas, without a host sync; see `unmask`."""
    canvases, width = canvas.shape
    result = Unmasked(torch.empty_like(length), torch.empty_like(length), torch.empty_like(length, dtype=torch.bool))
    lanes = max(16, triton.next_power_of_2(width))
    _unmask_kernel[(canvases,)](
        canvas,
        masked.view(torch.uint8),
        candidate,
        confidence,
        length,
        steps_left,
        threshold,
        stop_ids,
        result.masks_left,
        result.first_stop,
        result.done.view(torch.uint8),
        *((None,) * 4 if policies is None else (policies.entropy, policies.bound, policies.standing, policies.remask)),
        0 if policies is None else policies.mask_id,
        width,
        stop_ids.shape[1],
        LANES=lanes,
        num_warps=max(1, lanes // 64),
    )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _unmask_kernel(  # type: ignore[no-untyped-def]
    canvas_ptr,
    masked_ptr,
    candidate_ptr,
    confidence_ptr,
    length_ptr,
    steps_left_ptr,
    threshold_ptr,
    stop_ids_ptr,
    masks_left_ptr,
    first_stop_ptr,
    done_ptr,
    entropy_ptr,
    bound_ptr,
    standing_ptr,
    remask_ptr,
    mask_id,
    width,
    stop_count,
    LANES: tl.constexpr,
):
    row = tl.program_id(0)
    offsets = tl.arange(0, LANES)
    inside = offsets < tl.minimum(tl.load(length_ptr + row), width)
    place = row * width + offsets
    masked = (tl.load(masked_ptr + place, mask=inside, other=0) != 0) & inside
    confidence = tl.load(confidence_ptr + place, mask=masked, other=0.0)
    tokens = tl.load(canvas_ptr + place, mask=inside, other=-2)
    score = tl.where(masked, tl.where(confidence >= 0, confidence, 0.0), -1.0)

    theirs = tl.expand_dims(score, 0)
    ours = tl.expand_dims(score, 1)
    earlier = tl.expand_dims(offsets, 0) < tl.expand_dims(offsets, 1)
    better = (theirs > ours) | ((theirs == ours) & earlier)
    rank = tl.sum(better.to(tl.int32), axis=1)

    masks = tl.sum(masked.to(tl.int32), axis=0)
    steps = tl.load(steps_left_ptr + row).to(tl.int32)
    forced = (masks + steps - 1) // steps
    confident = tl.sum((masked & (score >= tl.load(threshold_ptr + row))).to(tl.int32), axis=0)
    quota = tl.maximum(forced, confident)
    chosen = masked & (rank < quota)
    again = tl.zeros([LANES], tl.int1)
    if entropy_ptr is not None:
        entropy = tl.load(entropy_ptr + place, mask=masked, other=float("inf"))
        entropy = tl.where(entropy == entropy, tl.maximum(entropy, 0.0), float("inf"))
        theirs = tl.expand_dims(entropy, 0)
        ours = tl.expand_dims(entropy, 1)
        lower = (theirs < ours) | ((theirs == ours) & earlier)
        before = tl.sum(tl.where(lower, theirs, 0.0), axis=1)
        chosen |= masked & (before <= tl.load(bound_ptr + row)) & (entropy < float("inf"))
        settled = inside & (masked == 0)
        standing = tl.load(standing_ptr + place, mask=settled, other=1.0)
        again = settled & (standing < tl.load(remask_ptr + row)) & (steps > 1)
        tokens = tl.where(again, mask_id, tokens)
    masks_left = tl.sum((masked & (chosen == 0)).to(tl.int32), axis=0) + tl.sum(again.to(tl.int32), axis=0)

    tokens = tl.where(chosen, tl.load(candidate_ptr + place, mask=chosen, other=0), tokens)
    left = (masked & (chosen == 0)) | again
    is_stop = tokens == -1
    for index in range(stop_count):
        is_stop |= tokens == tl.load(stop_ids_ptr + row * stop_count + index)
    first_mask = tl.min(tl.where(left, offsets, LANES), axis=0)
    stop = tl.min(tl.where(is_stop & inside & (left == 0), offsets, LANES), axis=0)
    stop = tl.where(stop < first_mask, stop, -1)

    # Lanes may be held by several threads: all of them must have read before one writes.
    tl.debug_barrier()
    tl.store(canvas_ptr + place, tokens, mask=chosen | again)
    tl.store(masked_ptr + place, left.to(tl.uint8), mask=chosen | again)
    tl.store(masks_left_ptr + row, masks_left)
    tl.store(first_stop_ptr + row, stop)
    tl.store(done_ptr + row, ((masks_left == 0) | (stop >= 0)).to(tl.uint8))
