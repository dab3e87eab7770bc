"""One request on its way: what was asked, and what the answer said it got."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from deployments.goal import Goal
    from deployments.history import Length
    from deployments.menu import Menu
    from deployments.tiers import Tier
    from engine.plan import Plan
    from engine.request import GenerationOptions


@dataclass(slots=True)
class Job:
    """A checked request.

    Attributes:
        options: all fields. fields: those that were set, seed and cache salt included, as a replica gets them.
        tier: whose SLO and bounds hold. weight: of the tier, within the key's bound.
        menu: the rungs that it may be given. scheduled: the plan that its `plan` field pins.
        arrived_s: `time.perf_counter()` when the ingress saw it. length: output tokens whatever the rung.
        page_keys: hash chain of its prompt's full pages.
    """

    request_id: str
    prompt: list[int]
    options: GenerationOptions
    fields: dict[str, Any]
    tier: Tier
    weight: float
    goal: Goal
    menu: Menu
    scheduled: Plan | None
    arrived_s: float
    length: Length
    page_keys: tuple[bytes, ...] = ()


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
