"""Tiers: named SLOs with what a request of each may be given, and OpenAI's `service_tier` values mapped onto them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.errors import InvalidRequest

DEFAULT_TIER = "default"


class Tier(BaseModel):
    """One named SLO."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, description="What `service_tier` says to ask for it.")
    latency_slo_ms: float | None = Field(None, gt=0, description="Total latency, milliseconds; null = no deadline.")
    ttft_slo_ms: float | None = Field(None, gt=0, description="Latency up to the first text, milliseconds.")
    lossy: bool = Field(False, description="Whether rungs below AR's quality may be used. An SLO of a request's own "
                        "allows them too where it names no tier.")  # fmt: skip
    min_expected_quality: float | None = Field(None, ge=0, le=1, description="Floor of expected quality, 0..1.")
    on_infeasible: Literal["reject", "degrade"] = Field(
        "degrade", description="When no rung meets the tier's SLO: refuse, or answer late on the fastest rung."
    )
    on_deadline: Literal["finish", "cut"] = Field(
        "finish", description="At the deadline: go on, or return what is there."
    )


TIERS: tuple[Tier, ...] = (
    Tier(name=DEFAULT_TIER),
    Tier(name="realtime", latency_slo_ms=500, lossy=True, on_infeasible="reject"),
    Tier(name="interactive", latency_slo_ms=2_000, lossy=True, min_expected_quality=0.5),
    Tier(name="standard", latency_slo_ms=10_000),
    Tier(name="batch"),
)
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
