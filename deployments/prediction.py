"""How long a request will take on a replica: pure functions of a rung, lengths and a load.

A forward costs t = base + per_token * slots + per_context * context (fitted by each replica), plus what the engine does
beside it. A request on a rung needs output / tokens-per-forward of them. Others ride in the same forwards, so they make
each one longer, but no more than their own work in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.plan import Rung

if TYPE_CHECKING:
    from deployments.load import ReplicaLoad

PRIOR_TAIL = 1.3
"""p95 of actual over predicted latency before a replica has measured its own."""


@dataclass(frozen=True, slots=True)
class Size:
    """Tokens of a request: the prompt's, and the output to reckon with."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds in the engine, from submission to the last token and to the first text."""

    p50_s: float
    p95_s: float
    first_text_p50_s: float
    first_text_p95_s: float


def most_forwards(rung: Rung, output_tokens: int) -> int:
    """Forwards after the prompt that a rung cannot exceed: a round settles at least a token, a block at most K + 1."""
    length = rung.block_length
    if length == 1:
        return output_tokens
    steps = min(rung.refinement_steps, length - 1)
    rounds = output_tokens if rung.audit not in ("off", "score") else math.ceil(output_tokens / length)
    return rounds * (steps + 1)


def expected_forwards(rung: Rung, output_tokens: int, measured: dict[str, float]) -> float:
    """Forwards after the prompt, from calibrated and measured tokens per forward, within what is possible."""
    most = most_forwards(rung, output_tokens)
    known = [value for value in (rung.expected_tokens_per_forward, measured.get(str(rung.policy()))) if value]
    if not known or (rung.is_diffusion and rung.threshold is None and rung.audit in ("off", "score")):
        return float(most)
    return min(float(most), max(1.0, output_tokens * len(known) / sum(known)))


def total_slots(rung: Rung, output_tokens: int) -> float:
    """Query tokens that an answer puts into forwards, the prompt's apart."""
    return rung.block_length * expected_forwards(rung, output_tokens, {})


def predict(rung: Rung, size: Size, load: ReplicaLoad) -> Prediction:
    """Latency of a request of `size` on `rung` at a replica with `load`."""
    forwards = expected_forwards(rung, size.output_tokens, load.tokens_per_forward)
    length = rung.block_length
    fixed_s = load.base_s + load.engine_s
    context = size.prompt_tokens + size.output_tokens / 2
    own_s = fixed_s + load.per_token_s * length + load.per_context_s * context
    others_s = load.per_token_s * load.slots + load.per_context_s * load.context
    chunks = math.ceil(size.prompt_tokens / load.prefill_chunk)
    prompt_s = chunks * fixed_s + load.per_token_s * size.prompt_tokens
    wait_s = load.queue_s * load.waiting / (load.waiting + load.running) if load.waiting else 0.0
    shared_s = min(others_s * (forwards + chunks), load.queue_s)
    p50_s = wait_s + prompt_s + forwards * own_s + shared_s
    first_forwards = min(forwards, rung.refinement_steps + 1.0) if rung.is_diffusion else 0.0
    first_s = wait_s + prompt_s + first_forwards * own_s + min(others_s * (first_forwards + chunks), load.queue_s)
    tail = load.latency_tail.get(rung.decoding.value, PRIOR_TAIL)

    def p95(median_s: float, count: float) -> float:
        # One forward's tail averages out over many; a mode's own spread does not.
        return median_s * max(tail, 1 + (load.tail_ratio - 1) / math.sqrt(max(count, 1.0)))

    return Prediction(p50_s, p95(p50_s, forwards + chunks), first_s, p95(first_s, first_forwards + chunks))
