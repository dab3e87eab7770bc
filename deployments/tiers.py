"""Tiers: named SLOs with what a request of each may ask for, and OpenAI's `service_tier` values mapped onto them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.errors import InvalidRequest

DEFAULT_TIER = "default"
Mode = Literal["ar", "diffusion", "self_speculation"]


class Tier(BaseModel):
    """One named SLO, and the bounds of what its requests may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, description="What `service_tier` says to ask for it.")
    latency_slo_ms: float | None = Field(None, gt=0, description="Total latency, milliseconds; null = no deadline.")
    per_token_slo_ms: float | None = Field(
        None, gt=0, description="Milliseconds per output token after the first text; with ttft_slo_ms it makes a total "
        "latency once the length to reckon with is known."
    )  # fmt: skip
    ttft_slo_ms: float | None = Field(None, gt=0, description="Latency up to the first text, milliseconds.")
    tightest_latency_slo_ms: float | None = Field(
        None, gt=0, description="A request's own latency_slo_ms may not be below it; null = any."
    )
    tightest_ttft_slo_ms: float | None = Field(
        None, gt=0, description="A request's own ttft_slo_ms may not be below it; null = any."
    )
    lossy: bool = Field(False, description="Whether rungs below AR's quality may be used. An SLO of a request's own "
                        "allows them too where it names no tier.")  # fmt: skip
    min_refinement_steps: int | None = Field(None, ge=1, description="Floor of a diffusion block's step budget.")
    max_refinement_steps: int | None = Field(None, ge=1, description="Ceiling of a diffusion block's step budget.")
    min_expected_quality: float | None = Field(None, ge=0, le=1, description="Floor of expected quality, 0..1.")
    decodings: tuple[Mode, ...] = Field(
        ("ar", "diffusion", "self_speculation"), min_length=1, description="Decoding modes that may be used."
    )
    on_infeasible: Literal["reject", "degrade"] = Field(
        "degrade", description="When no rung meets the tier's SLO: refuse, or answer late on the fastest rung."
    )
    on_deadline: Literal["finish", "cut"] = Field(
        "finish", description="At the deadline: go on, or return what is there."
    )
    weight: float = Field(1.0, gt=0, le=1000, description="Share of the forwards against other tiers, and who goes "
                          "first where not all deadlines can be kept.")  # fmt: skip
    reserved_share: float = Field(
        0.0, ge=0, lt=1, description="Share of every replica that tiers of a lower weight may not be promised."
    )
    target_queue_s: float | None = Field(
        None, gt=0, le=3600, description="Seconds of this tier's work per replica to scale for; null = the "
        "application's target_queue_s."
    )  # fmt: skip

    @model_validator(mode="after")
    def _steps_have_room(self) -> Tier:
        low, high = self.min_refinement_steps, self.max_refinement_steps
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"min_refinement_steps of tier {self.name!r} is {low}; allowed: at most max_refinement_steps ({high})"
            )
        return self

    def total_slo_ms(self, output_tokens: int) -> float | None:
        """The tier's total latency for an answer of so many tokens, milliseconds; None = no deadline."""
        if self.per_token_slo_ms is None:
            return self.latency_slo_ms
        total = (self.ttft_slo_ms or 0.0) + self.per_token_slo_ms * output_tokens
        return total if self.latency_slo_ms is None else min(total, self.latency_slo_ms)


TIERS: tuple[Tier, ...] = (
    Tier(name=DEFAULT_TIER, weight=2),
    Tier(
        name="realtime", latency_slo_ms=500, lossy=True, on_infeasible="reject", weight=8, reserved_share=0.1,
        target_queue_s=0.5,
    ),
    Tier(
        name="interactive", latency_slo_ms=2_000, lossy=True, min_expected_quality=0.5, weight=4,
        tightest_latency_slo_ms=100, tightest_ttft_slo_ms=50,
    ),
    Tier(name="standard", latency_slo_ms=10_000, weight=2, tightest_latency_slo_ms=1_000, tightest_ttft_slo_ms=200),
    Tier(
        name="batch", weight=1, tightest_latency_slo_ms=60_000, tightest_ttft_slo_ms=10_000, target_queue_s=60,
    ),
)  # fmt: skip
"""The shipped tiers. `default`, `standard` and `batch` keep AR's quality."""

SERVICE_TIERS: Mapping[str, str] = {
    "auto": DEFAULT_TIER,
    "default": DEFAULT_TIER,
    "flex": "batch",
    "scale": "standard",
    "priority": "interactive",
}
"""OpenAI's values of `service_tier`."""


def find_tier(service_tier: str | None, tiers: Sequence[Tier], service_tiers: Mapping[str, str]) -> Tier:
    """The tier that a request's `service_tier` names. Raises InvalidRequest with the names that exist."""
    by_name = {tier.name: tier for tier in tiers}
    asked = service_tier or DEFAULT_TIER
    tier = by_name.get(asked) or by_name.get(service_tiers.get(asked, ""))
    if tier is None:
        allowed = ", ".join(sorted({*by_name, *service_tiers}))
        raise InvalidRequest("service_tier", f"service_tier is {asked!r}; allowed: {allowed}")
    return tier


def capacity_share(tier: Tier, tiers: Sequence[Tier]) -> float:
    """The share of a replica that may be promised to this tier and those below it: what heavier tiers reserve is out.

    In (0, 1]; settings refuse tiers that reserve everything.
    """
    return 1.0 - sum(other.reserved_share for other in tiers if other.weight > tier.weight)
