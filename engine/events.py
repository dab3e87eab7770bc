"""What a request's stream carries, and what its answer says (`requests.md` section 6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from engine.plan import PlanEntry

FinishReason = Literal["stop", "length"]


class Spent(NamedTuple):
    """The fields of a `Report` that grow as a sequence goes on."""

    denoise_steps: int = 0
    draft_steps: int = 0
    forwards: int = 0
    accelerator_ms: float = 0.0
    queue_ms: float = 0.0
    preemptions: int = 0

    def and_then(self, more: Spent) -> Spent:
        """Both together."""
        return Spent._make(before + after for before, after in zip(self, more, strict=True))


@dataclass(slots=True)
class Report:
    """What a sequence did, kept by the engine; the `stepdial` object of an answer is made from it.

    Attributes:
        plan: one entry per change of rung.
        denoise_steps, draft_steps: denoise and draft forwards that this sequence used.
        forwards: real forwards it took part in, prefill included.
        prompt_tokens, cached_prompt_tokens: length of the prompt, and how much of it came from shared pages.
        completion_tokens: output tokens, EOS included.
        accelerator_ms: its share of each forward, by slots.
        audit_logprob: mean log p_AR of its audited tokens; None with audit off.
        queue_ms: from submission to its first forward. latency_ms: from submission to its end, engine only.
        preemptions: times its K/V was dropped and computed again. cut_at_deadline: whether the deadline ended it.
    """

    seed: int = 0
    plan: list[PlanEntry] = field(default_factory=list)
    denoise_steps: int = 0
    draft_steps: int = 0
    forwards: int = 0
    blocks: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    accelerator_ms: float = 0.0
    audit_logprob: float | None = None
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    latency_ms: float = 0.0
    preemptions: int = 0
    cut_at_deadline: bool = False

    @property
    def tokens_per_forward(self) -> float | None:
        return self.completion_tokens / self.forwards if self.forwards else None

    @property
    def spent(self) -> Spent:
        """What it took so far."""
        return Spent(
            self.denoise_steps, self.draft_steps, self.forwards, self.accelerator_ms, self.queue_ms, self.preemptions
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields of the answer's `stepdial` object that the engine knows."""
        first = self.plan[0].to_dict() if self.plan else {}
        return {
            "decoding": first.get("decoding"),
            "block_length": first.get("block_length"),
            "refinement_steps": first.get("refinement_steps"),
            "threshold": first.get("threshold"),
            "plan": [entry.to_dict() for entry in self.plan],
            "denoise_steps": self.denoise_steps,
            "draft_steps": self.draft_steps,
            "forwards": self.forwards,
            "tokens_per_forward": self.tokens_per_forward,
            "accelerator_ms": self.accelerator_ms,
            "audit_logprob": self.audit_logprob,
            "seed": self.seed,
            "queue_ms": self.queue_ms,
            "latency_ms": self.latency_ms,
            "preemptions": self.preemptions,
            "cached_prompt_tokens": self.cached_prompt_tokens,
        }


@dataclass(slots=True)
class Delta:
    """Committed tokens and the text that became certain with them (never half a character, never a stop string).

    `token_ids` and `text` need not line up: text is held back while a stop string or a character may still grow.
    `spent`: by the sequence until then.
    """

    token_ids: list[int]
    text: str
    spent: Spent


@dataclass(slots=True)
class Finished:
    """The last event of a stream."""

    finish_reason: FinishReason
    report: Report


Event = Delta | Finished
