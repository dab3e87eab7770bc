"""What is asked in the benchmark of the promise: test tasks with tiers and SLOs, and when each is due.

A trace depends on its seed and rate alone, so every policy sees the same requests at the same times; a higher load is
the same requests, closer together. An SLO is a multiple of AR's latency for an answer of that length on an idle engine.
The length is the right answer's plus a margin; only the client knows it, and only to choose its SLO and, rounded up to
a class, its `max_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import ceil
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Literal

from engine.tiny.tasks import generate
from locustfiles.arrivals import poisson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.checkpoint.tokenizer import Tokenizer
    from engine.events import Report
    from engine.plan import Rung

MOST_REQUESTS = 100_000
LENGTH_CLASSES = (16, 32, 64, 128, 256)
"""What callers say in `max_tokens`: the next of these that holds the answer."""
SHARES: Mapping[str, float] = {"realtime": 0.25, "interactive": 0.25, "standard": 0.3, "batch": 0.2}
"""Tiers of the trace by share of arrivals."""
EQUIVALENT_TIERS = frozenset({"standard", "batch"})
"""Tiers whose answers must be as good as AR's."""
BLOCK = 32
"""Block length of the two-step diffusion that the tightest SLO may be measured by."""
TWO_STEP_FACTOR = 4.0

Tightest = Literal["ar", "diffusion"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as the client knows it.

    Attributes:
        index: its place in the trace. prompt: token ids. answer: the only right text. answer_tokens: of it, with its
            EOS.
        slo_ms: from its scheduled arrival; None = no deadline. ignore_eos: goes on up to max_tokens.
        rung: that the client pins; None = the service chooses.
    """

    index: int
    prompt: list[int]
    answer: str
    answer_tokens: int
    family: str
    tier: str
    max_tokens: int
    slo_ms: float | None
    ignore_eos: bool = False
    rung: Rung | None = None


@dataclass(frozen=True, slots=True)
class Idle:
    """Times of one request on an idle engine, milliseconds.

    Attributes:
        read_ms: per prompt token, up to the first token. token_ms: per further token of AR.
        block_ms: per block of `BLOCK` tokens of a two-step diffusion.
    """

    read_ms: float
    token_ms: float
    block_ms: float

    def ar_ms(self, prompt_tokens: int, output_tokens: int) -> float:
        """AR's latency."""
        return self.read_ms * prompt_tokens + self.token_ms * max(output_tokens - 1, 0)

    def two_step_ms(self, prompt_tokens: int, output_tokens: int) -> float:
        """Latency of a diffusion in two steps a block."""
        return self.read_ms * prompt_tokens + self.block_ms * ceil(output_tokens / BLOCK)


def idle_of(ar: Sequence[Report], two_step: Sequence[Report]) -> Idle:
    """From answers given one at a time. Raises ValueError where no answer of AR has a second token."""
    read_ms = median((report.ttft_ms or report.latency_ms) / report.prompt_tokens for report in ar)
    steps = [
        (report.latency_ms - report.ttft_ms) / (report.completion_tokens - 1)
        for report in ar
        if report.ttft_ms is not None and report.completion_tokens > 1
    ]
    if not steps:
        raise ValueError("no answer has more than one token; more prompts are needed to measure AR's time per token")
    blocks = [
        max(report.latency_ms - read_ms * report.prompt_tokens, 0.0) / ceil(report.completion_tokens / BLOCK)
        for report in two_step
        if report.completion_tokens
    ]
    return Idle(read_ms, median(steps), median(blocks))


@dataclass(frozen=True, slots=True)
class Slos:
    """How an SLO follows from a request.

    Attributes:
        factors: multiples of AR's idle latency by tier; a tier without one has no deadline.
        margin_tokens: what the caller adds to the length that it expects.
        tightest: what the tightest tier, `realtime`, is measured by: AR with its factor, or a two-step diffusion times
            `TWO_STEP_FACTOR`.
    """

    idle: Idle
    factors: Mapping[str, float]
    margin_tokens: int = 8
    tightest: Tightest = "ar"

    def slo_ms(self, tier: str, prompt_tokens: int, answer_tokens: int) -> float | None:
        """The SLO of one request; None for a tier without deadline."""
        length = answer_tokens + self.margin_tokens
        if tier == "realtime" and self.tightest == "diffusion":
            return TWO_STEP_FACTOR * self.idle.two_step_ms(prompt_tokens, length)
        factor = self.factors.get(tier)
        return None if factor is None else factor * self.idle.ar_ms(prompt_tokens, length)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it is due, seconds after the start."""

    due_s: float
    request: Request


def requests_of(tokenizer: Tokenizer, slos: Slos, seed: int, shares: Mapping[str, float] = SHARES) -> Iterator[Request]:
    """Requests of the test split, the same for the same seed."""
    rng = Random(f"tiers {seed}")
    tiers, weights = list(shares), list(shares.values())
    for index, task in enumerate(generate("test", MOST_REQUESTS, seed)):
        prompt = tokenizer.render_chat(task.messages)
        # The answer ends with an EOS, which counts.
        answer_tokens = len(tokenizer.encode(task.answer, add_bos=False)) + 1
        tier = rng.choices(tiers, weights)[0]
        yield Request(
            index=index,
            prompt=prompt,
            answer=task.answer,
            answer_tokens=answer_tokens,
            family=task.task,
            tier=tier,
            max_tokens=length_class(answer_tokens),
            slo_ms=slos.slo_ms(tier, len(prompt), answer_tokens),
        )


def length_class(answer_tokens: int) -> int:
    """The `max_tokens` of a caller who expects so many; beyond the classes a multiple of the largest."""
    largest = LENGTH_CLASSES[-1]
    return next((most for most in LENGTH_CLASSES if most >= answer_tokens), ceil(answer_tokens / largest) * largest)


def trace(requests: Iterator[Request], rate: float, duration_s: float, seed: int) -> list[Arrival]:
    """Poisson arrivals at `rate` per second. Raises ValueError for a rate or duration that is not above 0."""
    times = list(poisson(rate, duration_s, Random(f"arrivals {seed}")))
    return [Arrival(due_s, request) for due_s, request in zip(times, islice(requests, len(times)), strict=True)]
