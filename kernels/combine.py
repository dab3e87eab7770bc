"""Merging the partials of a vocabulary's parts, and the statistics that they add up to."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.row_statistics import (
    BEST,
    BEST_ID,
    DRAWN,
    DRAWN_ID,
    GIVEN,
    LARGEST,
    MASS,
    MOMENT,
    NO_ID,
    SCORE,
    SECOND,
    SMALLEST_TEMPERATURE,
    TEMPERED_MASS,
    RowRules,
    Statistics,
    scores_of,
)
from kernels.switch import use_triton


def combine(partials: Tensor, rules: RowRules) -> Tensor:
    """Merges parts: float32 `[fields, rows, parts]`, parts in any order, to `[fields, rows, 1]`.

    A pure function of `partials` and the rows' temperatures. Ranks of a tensor-parallel group gather each other's
    results, put them side by side along the last axis, and `finish` them.
    """
    return combine_triton(partials, rules) if use_triton(partials) else combine_torch(partials, rules)


def finish(partials: Tensor, rules: RowRules) -> Statistics:
    """The statistics that parts of a whole vocabulary, float32 `[fields, rows, parts]`, add up to."""
    return finish_triton(partials, rules) if use_triton(partials) else finish_torch(partials, rules)


def combine_torch(partials: Tensor, rules: RowRules) -> Tensor:
    """`combine` in plain PyTorch."""
    minus_inf = float("-inf")
    part_largest, best, best_id, second = (partials[field.value] for field in (LARGEST, BEST, BEST_ID, SECOND))
    largest = part_largest.amax(-1, keepdim=True)
    gaps = torch.where(part_largest == minus_inf, 0.0, part_largest - largest)
    weights = torch.where(part_largest == minus_inf, 0.0, gaps.exp())
    mass = partials[MASS.value] * weights
    moment = partials[MOMENT.value] * weights + mass * gaps

    top = best.amax(-1, keepdim=True)
    winner = torch.where(best == top, best_id, float(NO_ID.value)).amin(-1, keepdim=True)
    others = torch.where(best_id == winner, second, best).amax(-1, keepdim=True)
    fields = [largest, mass.sum(-1, True), moment.sum(-1, True), top, winner, others]
    fields.append(partials[GIVEN.value].amax(-1, keepdim=True))
    if rules.noise is not None:
        stretch = rules.noise.stretch[:, None]
        drawn, score, drawn_id = (partials[field.value] for field in (DRAWN, SCORE, DRAWN_ID))
        scores = scores_of(drawn, score + (best - top) * stretch)
        top_score = scores.amax(-1, keepdim=True)
        taken = torch.where(scores == top_score, drawn_id, float(NO_ID.value))
        taken = taken.amin(-1, keepdim=True)
        place = (drawn_id == taken).int().argmax(-1, keepdim=True)
        tempered = partials[TEMPERED_MASS.value] * torch.where(part_largest == minus_inf, 0.0, (gaps * stretch).exp())
        fields += [drawn.gather(1, place), top_score, taken, tempered.sum(-1, True)]
    return torch.stack(fields)


def finish_torch(partials: Tensor, rules: RowRules) -> Statistics:
    """`finish` in plain PyTorch."""
    merged = combine_torch(partials, rules)[..., 0]
    largest, mass, best = merged[LARGEST.value], merged[MASS.value], merged[BEST.value]
    tokens, chosen = merged[BEST_ID.value], best
    confidence = (chosen - largest).exp() / mass
    if rules.noise is not None:
        sampled = rules.noise.temperature > 0
        tokens = torch.where(sampled, merged[DRAWN_ID.value], tokens)
        chosen = torch.where(sampled, merged[DRAWN.value], chosen)
        confidence = (chosen - largest).exp() / mass
        tempered = ((chosen - largest) * rules.noise.stretch).exp() / merged[TEMPERED_MASS.value]
        confidence = torch.where(sampled & rules.noise.tempered, tempered, confidence)
    broken = mass.isnan()
    nan = float("nan")
    return Statistics(
        tokens=tokens.long(),
        confidence=torch.where(broken, nan, confidence),
        entropy=mass.log() - merged[MOMENT.value] / mass,
        margin=torch.where(broken, nan, best - merged[SECOND.value]),
        given_logprob=torch.where(broken, nan, merged[GIVEN.value] - largest - mass.log()),
        given_ratio=torch.where(broken, nan, merged[GIVEN.value] - best),
    )


@torch.inference_mode()
def combine_triton(partials: Tensor, rules: RowRules) -> Tensor:
    """`combine` in one launch, one program per row."""
    fields, rows, _ = partials.shape
    merged = torch.empty(fields, rows, 1, dtype=torch.float32, device=partials.device)
    # The kernel is told not to look at the tensors of statistics here.
    _launch(partials, rules, merged, rules.given, merged)
    return merged


@torch.inference_mode()
def finish_triton(partials: Tensor, rules: RowRules) -> Statistics:
    """`finish` in one launch, one program per row."""
    rows = partials.shape[1]
    tokens = torch.empty(rows, dtype=torch.int64, device=partials.device)
    values = torch.empty(5, rows, dtype=torch.float32, device=partials.device)
    _launch(partials, rules, None, tokens, values)
    return Statistics(tokens, *values.unbind())


def _launch(partials: Tensor, rules: RowRules, merged: Tensor | None, tokens: Tensor, values: Tensor) -> None:
    _, rows, parts = partials.shape
    noise = rules.noise
    lanes = max(16, triton.next_power_of_2(parts))
    if rows == 0:
        return
    _combine_kernel[(rows,)](
        partials.contiguous(),
        values if merged is None else merged,
        tokens,
        values,
        values if noise is None else noise.temperature,
        rules.given if noise is None else noise.tempered.view(torch.uint8),
        rows,
        parts,
        SAMPLED=noise is not None,
        FINISH=merged is None,
        PARTS=lanes,
        num_warps=max(1, min(4, lanes // 128)),
    )


@triton.jit(do_not_specialize=["rows", "parts"])  # type: ignore[untyped-decorator]
def _combine_kernel(  # type: ignore[no-untyped-def]
    partials_ptr,
    merged_ptr,
    tokens_ptr,
    values_ptr,
    temperature_ptr,
    tempered_ptr,
    rows,
    parts,
    SAMPLED: tl.constexpr,
    FINISH: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0)
    lanes = tl.arange(0, PARTS)
    there = lanes < parts
    minus_inf = float("-inf")
    place = partials_ptr + row * parts + lanes
    step = rows * parts

    part_largest = tl.load(place + LARGEST * step, mask=there, other=minus_inf)
    best = tl.load(place + BEST * step, mask=there, other=minus_inf)
    best_id = tl.load(place + BEST_ID * step, mask=there, other=NO_ID)
    second = tl.load(place + SECOND * step, mask=there, other=minus_inf)
    part_mass = tl.load(place + MASS * step, mask=there, other=0.0)
    part_moment = tl.load(place + MOMENT * step, mask=there, other=0.0)
    given = tl.max(tl.load(place + GIVEN * step, mask=there, other=minus_inf), axis=0)

    largest = tl.max(part_largest, axis=0)
    empty = part_largest == minus_inf
    gaps = tl.where(empty, 0.0, part_largest - largest)
    weights = tl.where(empty, 0.0, tl.exp(gaps))
    masses = part_mass * weights
    mass = tl.sum(masses, axis=0)
    moment = tl.sum(part_moment * weights + masses * gaps, axis=0)
    top = tl.max(best, axis=0)
    winner = tl.min(tl.where(best == top, best_id, NO_ID), axis=0)
    others = tl.max(tl.where(best_id == winner, second, best), axis=0)

    if SAMPLED:
        temperature = tl.load(temperature_ptr + row)
        stretch = 1.0 / tl.maximum(temperature, SMALLEST_TEMPERATURE)
        drawn = tl.load(place + DRAWN * step, mask=there, other=minus_inf)
        score = tl.load(place + SCORE * step, mask=there, other=0.0)
        drawn_id = tl.load(place + DRAWN_ID * step, mask=there, other=NO_ID)
        part_tempered = tl.load(place + TEMPERED_MASS * step, mask=there, other=0.0)
        tempered_mass = tl.sum(part_tempered * tl.where(empty, 0.0, tl.exp(gaps * stretch)), axis=0)
        scores = tl.where(tl.abs(drawn) == float("inf"), drawn, score + (best - top) * stretch)
        top_score = tl.max(scores, axis=0)
        taken = tl.min(tl.where(scores == top_score, drawn_id, NO_ID), axis=0)
        taken_logit = tl.max(tl.where(drawn_id == taken, drawn, minus_inf), axis=0)

    if FINISH:
        token = winner
        chosen = top
        confidence = tl.exp(chosen - largest) / mass
        if SAMPLED:
            sampled = temperature > 0
            token = tl.where(sampled, taken, winner)
            chosen = tl.where(sampled, taken_logit, top)
            tempered = sampled & (tl.load(tempered_ptr + row) != 0)
            heated = tl.exp((chosen - largest) * stretch) / tempered_mass
            confidence = tl.where(tempered, heated, tl.exp(chosen - largest) / mass)
        log_mass = tl.log(mass)
        broken = mass != mass
        nan = float("nan")
        tl.store(tokens_ptr + row, token.to(tl.int64))
        tl.store(values_ptr + row, tl.where(broken, nan, confidence))
        tl.store(values_ptr + rows + row, log_mass - moment / mass)
        tl.store(values_ptr + 2 * rows + row, tl.where(broken, nan, top - others))
        tl.store(values_ptr + 3 * rows + row, tl.where(broken, nan, given - largest - log_mass))
        tl.store(values_ptr + 4 * rows + row, tl.where(broken, nan, given - top))
    else:
        to = merged_ptr + row
        tl.store(to + LARGEST * rows, largest)
        tl.store(to + MASS * rows, mass)
        tl.store(to + MOMENT * rows, moment)
        tl.store(to + BEST * rows, top)
        tl.store(to + BEST_ID * rows, winner)
        tl.store(to + SECOND * rows, others)
        tl.store(to + GIVEN * rows, given)
        if SAMPLED:
            tl.store(to + DRAWN * rows, taken_logit)
            tl.store(to + SCORE * rows, top_score)
            tl.store(to + DRAWN_ID * rows, taken)
            tl.store(to + TEMPERED_MASS * rows, tempered_mass)
