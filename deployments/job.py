"""One request on its way: what was asked, and what the answer said it got."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from deployments.planner import Goal
    from deployments.tiers import Tier
    from engine.request import GenerationOptions


@dataclass(slots=True)
class Job:
    """A checked request.

    Attributes:
        options: all fields. fields: those that were set, seed included, as a replica gets them.
        tier_named: whether `service_tier` named a tier (`auto` names none).
        arrived_s: `time.perf_counter()` when the ingress saw it. output_tokens: length to reckon with.
    """

    request_id: str
    prompt: list[int]
    options: GenerationOptions
    fields: dict[str, Any]
    tier: Tier
    tier_named: bool
    goal: Goal
    arrived_s: float
    output_tokens: int


@dataclass(slots=True)
class Text:
    """New text of an answer, with the tokens that were committed with it."""

    text: str
    token_ids: list[int]


@dataclass(slots=True)
class End:
    """The end of an answer; `stepdial` is the object of `requests.md` section 6."""

    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    stepdial: dict[str, Any] = field(default_factory=dict)
