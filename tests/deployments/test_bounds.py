"""What tiers and API keys let a request ask for, and how a request that asks for more is told so."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.bounds import check_decoding, check_rungs, check_slos, quality_floor, tier_for
from deployments.errors import ApiError
from deployments.keys import ApiKey, by_hash, key_of
from deployments.settings import AppArgs
from deployments.tiers import SERVICE_TIERS, TIERS, Tier, capacity_share, find_tier
from engine.errors import InvalidRequest
from engine.plan import AR, diffusion
from engine.request import GenerationOptions

SECRET = "sk-a-secret"
KEY = ApiKey(
    name="lab", sha256=hashlib.sha256(SECRET.encode()).hexdigest(), tiers=("standard", "batch"),
    tightest_latency_slo_ms=3_000, min_expected_quality=0.9, max_weight=1.5,
)  # fmt: skip
STANDARD = find_tier("standard", TIERS, SERVICE_TIERS)
NARROW = Tier(name="narrow", decodings=("diffusion", "ar"), min_refinement_steps=2, max_refinement_steps=8)


def test_an_slo_below_the_tiers_bound_is_named() -> None:
    with pytest.raises(InvalidRequest, match="latency_slo_ms is 900; allowed in tier 'standard': at least 1000"):
        check_slos(GenerationOptions(latency_slo_ms=900), STANDARD, None)
    with pytest.raises(InvalidRequest, match="ttft_slo_ms is 50; allowed"):
        check_slos(GenerationOptions(ttft_slo_ms=50), STANDARD, None)
    check_slos(GenerationOptions(latency_slo_ms=1000, ttft_slo_ms=200), STANDARD, None)


def test_a_keys_bound_tightens_no_tiers() -> None:
    with pytest.raises(InvalidRequest, match="at least 3000"):
        check_slos(GenerationOptions(latency_slo_ms=2999), STANDARD, KEY)
    batch = find_tier("batch", TIERS, SERVICE_TIERS)
    with pytest.raises(InvalidRequest, match="at least 60000"):
        check_slos(GenerationOptions(latency_slo_ms=59_999), batch, KEY)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"decoding": "self_speculation"}, "decoding"),
        ({"decoding": "diffusion", "refinement_steps": 1}, "refinement_steps"),
        ({"decoding": "diffusion", "refinement_steps": 9}, "refinement_steps"),
        ({"min_refinement_steps": 9}, "min_refinement_steps"),
        ({"max_refinement_steps": 1}, "max_refinement_steps"),
    ],
)
def test_what_a_tier_does_not_allow_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match="narrow") as caught:
        check_decoding(GenerationOptions(**fields), NARROW)
    assert caught.value.field == field


def test_pinned_rungs_are_held_to_the_tier() -> None:
    check_rungs([AR, diffusion(8, 2)], "plan", None, NARROW)
    with pytest.raises(InvalidRequest, match="plan asks for 16 refinement steps; allowed in tier 'narrow': 2 to 8"):
        check_rungs([AR, diffusion(32, 16)], "plan", None, NARROW)


@given(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))
def test_the_highest_floor_holds(own: float | None, tiers: float | None, keys: float | None) -> None:
    tier = Tier(name="t", min_expected_quality=tiers)
    key = KEY.model_copy(update={"min_expected_quality": keys})
    floor = quality_floor(GenerationOptions(min_expected_quality=own), tier, key)
    given_floors = [value for value in (own, tiers, keys) if value is not None]
    assert floor == (max(given_floors) if given_floors else None)


def test_a_key_restricts_tiers_and_replaces_the_unnamed_one() -> None:
    assert tier_for("flex", TIERS, SERVICE_TIERS, KEY).name == "batch"
    assert tier_for(None, TIERS, SERVICE_TIERS, KEY).name == "standard", "the first of the key's"
    assert tier_for(None, TIERS, SERVICE_TIERS, None).name == "default"
    with pytest.raises(InvalidRequest, match="service_tier is 'priority'; allowed with this API key: standard, batch"):
        tier_for("priority", TIERS, SERVICE_TIERS, KEY)


def test_keys_are_known_by_their_hash() -> None:
    keys = by_hash([KEY])
    assert key_of(f"Bearer {SECRET}", keys) is KEY
    assert key_of(f"bearer  {SECRET} ", keys) is KEY
    assert key_of("Bearer whatever", {}) is None, "without keys in the settings none is needed"
    for wrong in (None, "", "Bearer", "Bearer wrong", SECRET, f"Basic {SECRET}"):
        with pytest.raises(ApiError) as caught:
            key_of(wrong, keys)
        assert caught.value.status == 401
        error = caught.value.body()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert SECRET not in error["message"]


def test_keys_do_not_share_cached_prefixes() -> None:
    other = KEY.model_copy(update={"name": "other"})
    salts = [KEY.salt(None), KEY.salt(""), KEY.salt("a"), other.salt(None), other.salt("a")]
    assert len(set(salts)) == 5
    assert KEY.salt("a") == KEY.salt("a")
    assert all(len(salt) <= 256 for salt in [KEY.salt("x" * 256)])


def test_shares_are_reserved_from_lighter_tiers_only() -> None:
    tiers = (
        Tier(name="a", weight=8, reserved_share=0.2), Tier(name="b", weight=4, reserved_share=0.3),
        Tier(name="c", weight=4), Tier(name="d", weight=1),
    )  # fmt: skip
    assert [round(capacity_share(tier, tiers), 9) for tier in tiers] == [1.0, 0.8, 0.8, 0.5]


def test_shipped_tiers_keep_quality_where_they_must() -> None:
    by_name = {tier.name: tier for tier in TIERS}
    assert {"realtime", "interactive", "standard", "batch"} <= set(by_name)
    assert not by_name["default"].lossy
    assert not by_name["standard"].lossy
    assert {"auto", "default", "flex", "priority"} <= set(SERVICE_TIERS)
    assert by_name["default"].latency_slo_ms is None


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"tiers": [{"name": "default"}, {"name": "default"}]}, "'default' twice"),
        ({"tiers": [{"name": "gold"}], "service_tiers": {}}, "no 'default'"),
        ({"tiers": [{"name": "default"}]}, "service_tiers maps"),
        ({"tiers": [{"name": "default", "weight": 0}]}, "weight"),
        ({"tiers": [{"name": "default", "min_refinement_steps": 5, "max_refinement_steps": 4}]}, "at most"),
        ({"api_keys": [{"name": "a", "sha256": "short"}]}, "sha256"),
        ({"api_keys": [{"name": "a", "sha256": "0" * 64, "tiers": ["gold"]}]}, "'gold'"),
        ({"api_keys": [{"name": "a", "sha256": "0" * 64}, {"name": "a", "sha256": "1" * 64}]}, "twice"),
        (
            {"service_tiers": {}, "tiers": [
                {"name": "default"}, {"name": "x", "weight": 2, "reserved_share": 0.5},
                {"name": "y", "weight": 3, "reserved_share": 0.5},
            ]},
            "leave nothing to tier 'default'",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        AppArgs(**wrong)
