"""The one policy of all modes (`requests.md` section 1), slowly, on transformers' modules, one request at a time.

Block length n, at most K draft steps, threshold, audit, limits and stop ids, at temperature 0. It extends the released
loops to what they do not have: any budget, both settings at once, tolerances, `max_tokens` that is no multiple of a
block, an entropy bound, tokens that are masked again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.reference_loops import ContextCache, ReferenceLoops


@dataclass(slots=True)
class SlowAnswer:
    """Tokens, how it ended, draft steps in all, and the most steps that any block took."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    steps: int = 0
    most_steps: int = 0
    canvases: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of one request; `audit` is off, score, exact or a tolerance."""

    block_length: int
    steps: int
    threshold: float | None
    audit: str | float
    drafted: bool
    max_tokens: int
    stop_ids: frozenset[int]
    entropy_bound: float | None = None
    remask: float | None = None


@torch.inference_mode()
def slow_answer(loops: ReferenceLoops, prompt: list[int], policy: Policy) -> SlowAnswer:
    """Follows `requests.md` line by line."""
    answer = SlowAnswer()
    cache = ContextCache(config=loops.model.config)
    answer.token_ids.append(int(_choices(loops, loops.model.lm_head(loops.causal(prompt, cache)[-1:]))[0]))
    if _ended(answer, policy, 0):
        return answer
    while True:
        canvas, masked = _draft(loops, cache, answer, policy)
        place = len(answer.token_ids)
        end = _end_inside(canvas, masked, answer, policy) if not policy.drafted else None
        canvas = canvas[:end] if end is not None else canvas
        if end is not None and policy.audit == "off":
            answer.token_ids += canvas[1:]
            _ended(answer, policy, place)
            return answer
        logits = loops.model.lm_head(loops.causal(canvas, cache))
        picks = _choices(loops, logits).tolist()
        kept = _kept(canvas, picks, logits, policy.audit)
        if kept < len(canvas):
            cache.crop(kept - len(canvas))
        answer.token_ids += [*canvas[1:kept], picks[kept - 1]]
        if _ended(answer, policy, place):
            return answer


def _draft(
    loops: ReferenceLoops, cache: ContextCache, answer: SlowAnswer, policy: Policy
) -> tuple[list[int], list[bool]]:
    length = policy.block_length
    canvas = [answer.token_ids[-1]] + [loops.mask_id] * (length - 1)
    masked = [False] + [True] * (length - 1)
    taken_back: set[int] = set()
    for step in range(policy.steps):
        left = [offset for offset in range(length) if masked[offset]]
        if not left:
            break
        logits = loops.bidirectional(canvas, cache, policy.drafted)
        chosen = _choices(loops, logits).tolist()
        confidence = logits.softmax(-1).gather(1, torch.tensor(chosen)[:, None])[:, 0].tolist()
        ranked = sorted(left, key=lambda offset: (-confidence[offset], offset))
        confident = sum(policy.threshold is not None and confidence[offset] >= policy.threshold for offset in left)
        commit = ranked[: max(math.ceil(len(left) / (policy.steps - step)), confident)]
        commit += [offset for offset in _sure(logits, left, policy.entropy_bound) if offset not in commit]
        doubtful = []
        if policy.remask is not None and step < policy.steps - 1:
            settled = [offset for offset in range(1, length) if not masked[offset] and offset not in taken_back]
            standing = logits.softmax(-1)
            doubtful = [offset for offset in settled if float(standing[offset, canvas[offset]]) < policy.remask]
        for offset in commit:
            canvas[offset], masked[offset] = chosen[offset], False
        for offset in doubtful:
            canvas[offset], masked[offset] = loops.mask_id, True
        taken_back |= set(doubtful)
        answer.steps += 1
        answer.most_steps = max(answer.most_steps, step + 1)
        answer.canvases.append(list(canvas))
        if not policy.drafted and _end_inside(canvas, masked, answer, policy) is not None:
            break
    return canvas, masked


def _sure(logits: Tensor, left: list[int], bound: float | None) -> list[int]:
    """The longest run of masks in ascending entropy whose entropies, but for the largest, sum to the bound at most."""
    if bound is None:
        return []
    entropy = {offset: float(torch.distributions.Categorical(logits=logits[offset]).entropy()) for offset in left}
    sure: list[int] = []
    for offset in sorted(left, key=lambda one: (entropy[one], one)):
        if sum(entropy[one] for one in sure) > bound:
            break
        sure.append(offset)
    return sure


def _end_inside(canvas: list[int], masked: list[bool], answer: SlowAnswer, policy: Policy) -> int | None:
    """Canvas tokens up to the first stop id, or up to `max_tokens`, if no mask precedes that point."""
    room = policy.max_tokens - (len(answer.token_ids) - 1)
    for offset in range(min(len(canvas), room)):
        if masked[offset]:
            return None
        if canvas[offset] in policy.stop_ids or offset + 1 == room:
            return offset + 1
    return None


def _kept(canvas: list[int], picks: list[int], logits: Tensor, audit: str | float) -> int:
    if audit in ("off", "score"):
        return len(canvas)
    for offset in range(len(canvas) - 1):
        token = canvas[offset + 1]
        ratio = math.exp(float(logits[offset, token] - logits[offset, picks[offset]]))
        if (token != picks[offset]) if audit == "exact" else (ratio < float(audit)):
            return offset + 1
    return len(canvas)


def _ended(answer: SlowAnswer, policy: Policy, place: int) -> bool:
    for offset in range(place, min(len(answer.token_ids), policy.max_tokens)):
        if answer.token_ids[offset] in policy.stop_ids:
            del answer.token_ids[offset + 1 :]
            answer.finish_reason = "stop"
            return True
    if len(answer.token_ids) >= policy.max_tokens:
        del answer.token_ids[policy.max_tokens :]
        answer.finish_reason = "length"
        return True
    return False


def _choices(loops: ReferenceLoops, logits: Tensor) -> Tensor:
    """The most likely token of each row; the mask id is never a candidate."""
    logits = logits.clone()
    logits[:, loops.mask_id] = -torch.inf
    return logits.argmax(-1)
