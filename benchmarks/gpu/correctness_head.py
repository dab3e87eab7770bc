"""What chooses tokens: the denoise head, the unmask rule and the audit, token by token against plain references."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.head_inputs import exact_head, random_head, rules, unmask_arguments
from benchmarks.gpu.section import Row, Section
from benchmarks.gpu.shapes import MODELS, TINY
from kernels.audit import EXACT, KEEP, accept, accept_torch
from kernels.combine import finish_torch
from kernels.denoise_head import denoise_head
from kernels.noise import gumbel_noise
from kernels.row_statistics import RowRules, Statistics, partials_torch
from kernels.unmask import NO_BOUND, NO_REMASK, Policies, unmask, unmask_torch

STATISTICS_BOUND = 1e-4
"""Absolute and relative, of confidence, entropy, margin and log-probabilities in float32 over 131,072 logits."""
CLOSE_SCORES = 1e-4
"""Sampled tokens may differ where two scores are as close: two logarithms may differ in their last bit."""
CLOSE_LOGITS = 2.0**-4
"""Random bf16 logits may be rounded apart by a step each: two steps of the largest, which lie between 4 and 8."""
ROWS = (1, 17, 32, 64, 200)
"""Every form of the head: all three tiles of the fused one, full and not, and the chunked one."""


def run(section: Section) -> None:
    """One row per check."""
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        for rows in ROWS:
            for sampled in (False, True):
                way = "sampled" if sampled else "greedy"
                section.row(f"head, {rows} rows, {kind}, {way}", partial(exact, section, dtype, rows, sampled))
    for rows in (64, 256):
        section.row(f"head, {rows} random rows, bfloat16", partial(close, section, rows))
    section.row("unmask", partial(unmasking, section, False))
    section.row("unmask with policies", partial(unmasking, section, True))
    section.row("audit", partial(audit, section))


def exact(section: Section, dtype: torch.dtype, rows: int, sampled: bool) -> Row:
    """Logits that are exact in every form: greedy tokens must all be the reference's, and so must the statistics."""
    config = TINY if section.tiny else MODELS["14B"]
    hidden, weight = exact_head(section, config, rows, dtype)
    asked = rules(section, config, rows, sampled, banned=2)
    got = denoise_head(hidden, weight, asked)
    logits = (hidden.double() @ weight.double().t()).to(dtype).double()
    want = finish_torch(partials_torch(logits, 0, asked), asked)
    other = (got.tokens != want.tokens).nonzero()[:, 0]
    gap = _largest_gap(logits, asked, got.tokens, want.tokens, other)
    off = _statistics_off(got, want, got.tokens == want.tokens)
    # What is greedy has no gap to allow for: the lowest id among equals, always.
    passed = off <= STATISTICS_BOUND and gap <= (CLOSE_SCORES if sampled else 0.0) and (sampled or len(other) == 0)
    return {"rows": rows, "other_tokens": len(other), "largest_gap": gap, "off": off, "passed": passed}


def close(section: Section, rows: int) -> Row:
    """Random bf16 data: tokens differ from those of float64 logits only where two logits are close."""
    config = TINY if section.tiny else MODELS["14B"]
    hidden, weight = random_head(section, config, rows, torch.bfloat16)
    asked = rules(section, config, rows, sampled=False)
    got = denoise_head(hidden, weight, asked)
    logits = hidden.double() @ weight.double().t()
    logits[:, asked.mask_id] = float("-inf")
    best = logits.max(-1)
    gaps = best.values - logits.gather(1, got.tokens[:, None])[:, 0]
    largest = float(gaps.max())
    return {
        "rows": rows,
        "other_tokens": int((best.indices != got.tokens).sum()),
        "rate": float((best.indices != got.tokens).double().mean()),
        "largest_gap": largest,
        "bound": CLOSE_LOGITS,
        "passed": largest <= CLOSE_LOGITS,
    }


def unmasking(section: Section, with_policies: bool) -> Row:
    """The rule on this device against its plain form on the CPU, with ties between confidences: equal in all."""
    config = TINY if section.tiny else MODELS["14B"]
    count, width = 64, 32
    canvas, masked, length, steps, threshold, stops = unmask_arguments(section, config, count, width)
    draw = section.draw(5)
    candidate = torch.randint(0, config.vocab_size, (count, width), generator=draw, device=section.device)
    confidence = (torch.rand(count, width, generator=draw, device=section.device) * 8).round() / 8
    here = [canvas, masked, candidate, confidence, length, steps, threshold, stops]
    there = [argument.cpu().clone() for argument in here]
    policies = _policies(section, count, width, config.mask_token_id) if with_policies else None
    plain = None
    if policies is not None:
        tensors = (policies.entropy, policies.bound, policies.standing, policies.remask)
        plain = Policies(*(tensor.cpu() for tensor in tensors), policies.mask_id)
    got, want = unmask(*here, policies), unmask_torch(*there, plain)
    pairs = [(here[0], there[0]), (here[1], there[1])]
    pairs += [(getattr(got, field.name), getattr(want, field.name)) for field in fields(want)]
    return {"rows": count, "passed": all(torch.equal(mine.cpu(), plain) for mine, plain in pairs)}


def _policies(section: Section, count: int, width: int, mask_id: int) -> Policies:
    """Mixed ones. Entropies are eighths, whose sums are exact in any order."""
    draw = section.draw(7)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw, device=section.device)

    return Policies(
        entropy=(uniform(count, width) * 30).round() / 8,
        bound=torch.where(uniform(count) < 0.3, NO_BOUND, (uniform(count) * 40).round() / 8),
        standing=uniform(count, width),
        remask=torch.where(uniform(count) < 0.3, NO_REMASK, uniform(count)),
        mask_id=mask_id,
    )


def audit(section: Section) -> Row:
    """Acceptance on this device against its plain form on the CPU: equal in all."""
    blocks, width, draw = 64, 32, section.draw(6)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw, device=section.device)

    canvas = torch.randint(0, 30, (blocks, width), generator=draw, device=section.device)
    agrees = uniform(blocks, width) < 0.9
    picks = torch.where(agrees, canvas.roll(-1, dims=1), canvas)
    ratios = torch.where(agrees, 0.0, -3 * uniform(blocks, width))
    length = torch.randint(1, width + 1, (blocks,), generator=draw, device=section.device)
    floors = torch.tensor([KEEP, EXACT, -1.0, -0.1], device=section.device).repeat(blocks // 4)
    got = accept(canvas, picks, ratios, length, floors)
    want = accept_torch(*(argument.cpu() for argument in (canvas, picks, ratios, length, floors)))
    same = torch.equal(got.kept.cpu(), want.kept) and torch.equal(got.pending.cpu(), want.pending)
    return {"rows": blocks, "passed": same}


def _statistics_off(got: Statistics, want: Statistics, rows: Tensor) -> float:
    """The largest difference of any statistic over `rows`, absolute below 1 and relative above; inf for NaN."""
    worst = 0.0
    for name in ("confidence", "entropy", "margin", "given_logprob", "given_ratio"):
        mine, plain = getattr(got, name)[rows].double(), getattr(want, name)[rows].double()
        errors = (mine - plain).abs() / plain.abs().clamp(min=1)
        if len(errors):
            worst = max(worst, float(errors.nan_to_num(nan=float("inf")).max()))
    return worst


def _largest_gap(logits: Tensor, asked: RowRules, got: Tensor, want: Tensor, rows: Tensor) -> float:
    """By how much the chosen token's score lies below the reference's, at most over `rows`."""
    if len(rows) == 0:
        return 0.0
    scores = logits[rows]
    if asked.noise is not None:
        noise = asked.noise
        place = noise.places[rows].long()
        scores = scores * noise.stretch[rows, None] + gumbel_noise(
            noise.seeds[rows], noise.positions[rows].long(), place & 255, place >> 8, noise.choices[rows].long(),
            logits.shape[1],
        )  # fmt: skip
    chosen, best = (scores.gather(1, tokens[rows, None])[:, 0] for tokens in (got, want))
    return float((best - chosen).max())
