"""What a tier and an API key let a request ask for: checks that name field, value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from deployments.tiers import DEFAULT_TIER, find_tier
from engine.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deployments.keys import ApiKey
    from deployments.tiers import Tier
    from engine.plan import Rung
    from engine.request import GenerationOptions


def tier_for(
    service_tier: str | None, tiers: Sequence[Tier], service_tiers: Mapping[str, str], key: ApiKey | None
) -> Tier:
    """The tier of a request, within what its key allows. Raises InvalidRequest naming `service_tier`."""
    if key is None or key.tiers is None:
        return find_tier(service_tier, tiers, service_tiers)
    unnamed = service_tier in (None, "auto")
    tier = find_tier(service_tier, tiers, service_tiers)
    if unnamed and tier.name not in key.tiers:
        return find_tier(key.tiers[0], tiers, {})
    if tier.name not in key.tiers:
        raise InvalidRequest(
            "service_tier",
            f"service_tier is {service_tier or DEFAULT_TIER!r}; allowed with this API key: {', '.join(key.tiers)}",
        )
    return tier


def check_slos(options: GenerationOptions, tier: Tier, key: ApiKey | None) -> None:
    """An SLO tighter than tier or key allow would only be a way to jump the queue. Raises InvalidRequest."""
    for field in ("latency_slo_ms", "ttft_slo_ms"):
        value = getattr(options, field)
        tightest = _highest(getattr(tier, f"tightest_{field}"), getattr(key, f"tightest_{field}", None))
        if value is not None and tightest is not None and value < tightest:
            raise InvalidRequest(
                field, f"{field} is {value:g}; allowed in tier {tier.name!r}: at least {tightest:g} milliseconds"
            )


def check_decoding(options: GenerationOptions, tier: Tier) -> None:
    """Mode and step fields against the tier's. Raises InvalidRequest."""
    modes = ", ".join(tier.decodings)
    if options.decoding != "auto" and options.decoding not in tier.decodings:
        raise InvalidRequest("decoding", f"decoding is {options.decoding!r}; allowed in tier {tier.name!r}: {modes}")
    low, high = tier.min_refinement_steps, tier.max_refinement_steps
    steps = options.refinement_steps
    if steps is not None and not (low or 1) <= steps <= (high or steps):
        raise InvalidRequest("refinement_steps", _steps_text("refinement_steps", steps, tier))
    if high is not None and (options.min_refinement_steps or 1) > high:
        text = _steps_text("min_refinement_steps", options.min_refinement_steps or 1, tier)
        raise InvalidRequest("min_refinement_steps", text)
    if low is not None and options.max_refinement_steps is not None and options.max_refinement_steps < low:
        text = _steps_text("max_refinement_steps", options.max_refinement_steps, tier)
        raise InvalidRequest("max_refinement_steps", text)


def check_rungs(rungs: Iterable[Rung], field: str, floor: float | None, tier: Tier) -> None:
    """Rungs that a request pins, against modes, steps and quality floor of its tier. Raises InvalidRequest.

    Args:
        rungs: described with what was measured of them; one of unknown quality passes the floor: whoever pins it
            has decided. field: what the request pinned them with. floor: of request, tier and key.
    """
    for rung in rungs:
        name = rung.decoding.value
        if name not in tier.decodings:
            allowed = ", ".join(tier.decodings)
            raise InvalidRequest(field, f"{field} asks for {name!r}; allowed in tier {tier.name!r}: {allowed}")
        if rung.is_diffusion and not steps_allowed(rung, tier):
            raise InvalidRequest(field, _steps_text(field, rung.refinement_steps, tier))
        quality = rung.expected_quality
        if floor is not None and not rung.exact and quality is not None and quality < floor:
            raise InvalidRequest(
                "min_expected_quality",
                f"min_expected_quality is {floor:g} here, and what {field} pins has {quality:g}; allowed: rungs of at "
                "least that quality",
            )


def steps_allowed(rung: Rung, tier: Tier) -> bool:
    low, high = tier.min_refinement_steps, tier.max_refinement_steps
    return (low is None or rung.refinement_steps >= low) and (high is None or rung.refinement_steps <= high)


def quality_floor(options: GenerationOptions, tier: Tier, key: ApiKey | None) -> float | None:
    """The highest of the floors of request, tier and key."""
    return _highest(
        options.min_expected_quality, tier.min_expected_quality, None if key is None else key.min_expected_quality
    )


def _highest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _steps_text(field: str, value: int, tier: Tier) -> str:
    low, high = tier.min_refinement_steps or 1, tier.max_refinement_steps
    allowed = f"{low} to {high}" if high is not None else f"at least {low}"
    return f"{field} asks for {value} refinement steps; allowed in tier {tier.name!r}: {allowed}"
