"""Which rungs a request may be given, by tier, floor and frontier; what its bounds are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.goal import goal_of
from deployments.menu import frontier, thinned
from deployments.prediction import most_forwards
from deployments.quality import QualityMap
from deployments.reason import name_of
from deployments.tiers import SERVICE_TIERS, TIERS, Tier, find_tier
from engine.errors import InvalidRequest
from engine.plan import Rung, diffusion
from engine.request import GenerationOptions
from tests.deployments.plans_by_hand import DEFAULT, MENUS, QUALITY, measured


@pytest.mark.parametrize("name", ["default", "standard", "scale"])
def test_a_named_exact_tier_keeps_quality_even_with_an_slo(name: str) -> None:
    options = GenerationOptions(latency_slo_ms=200)
    tier = find_tier(name, TIERS, SERVICE_TIERS)
    assert all(rung.exact for rung in MENUS.menu(options, tier, True, goal_of(options, tier)).rungs)


def test_a_lossy_tier_uses_lossy_rungs_above_its_floor() -> None:
    tier = find_tier("priority", TIERS, SERVICE_TIERS)
    options = GenerationOptions()
    rungs = MENUS.menu(options, tier, True, goal_of(options, tier)).rungs
    assert min(rung.expected_quality or 0 for rung in rungs) == 0.80


def test_a_tiers_steps_and_modes_are_kept() -> None:
    tier = Tier(
        name="narrow", latency_slo_ms=5000, lossy=True, min_refinement_steps=4, max_refinement_steps=8,
        decodings=("diffusion",),
    )  # fmt: skip
    options = GenerationOptions()
    rungs = MENUS.menu(options, tier, True, goal_of(options, tier)).rungs
    assert [rung.refinement_steps for rung in rungs] == [8, 4]
    with pytest.raises(InvalidRequest, match="no rung of this model fits"):
        MENUS.menu(options, tier.model_copy(update={"lossy": False}), True, goal_of(options, tier))


def test_a_floor_that_nothing_reaches_is_named() -> None:
    options = GenerationOptions(decoding="diffusion", latency_slo_ms=5000, min_expected_quality=0.94)
    with pytest.raises(InvalidRequest, match=r"min_expected_quality is 0\.94; allowed .* at most 0\.93"):
        MENUS.menu(options, DEFAULT, False, goal_of(options, DEFAULT))


def test_policies_of_diffusion_pin_it_also_with_an_slo() -> None:
    """Menus are kept by what they depend on: the second one is not the first."""
    for bound, remask, said in ((0.5, None, ", entropy bound 0.5"), (None, 0.1, ", threshold 0.9, remask 0.1")):
        options = GenerationOptions(decoding="diffusion", latency_slo_ms=5000, entropy_bound=bound, remask=remask)
        menu = MENUS.menu(options, DEFAULT, False, goal_of(options, DEFAULT))
        assert menu.pinned
        (rung,) = menu.rungs
        assert (rung.entropy_bound, rung.remask) == (bound, remask)
        assert rung.expected_quality is None, "nothing was measured with them"
        assert name_of(rung) == f"diffusion over blocks of 32 with 32 steps{said}"


def test_a_pin_below_the_floor_is_named() -> None:
    options = GenerationOptions(decoding="diffusion", block_length=32, refinement_steps=1, min_expected_quality=0.5)
    with pytest.raises(InvalidRequest, match=r"min_expected_quality is 0\.5 here, and what decoding pins has 0\.3"):
        MENUS.menu(options, DEFAULT, False, goal_of(options, DEFAULT))


rungs_measured = st.lists(
    st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([4, 8, 16, 32]), st.floats(0, 1), st.floats(1, 20)).map(
        lambda parts: measured(diffusion(parts[1], parts[0], 0.5), parts[2], parts[3])
    ),
    min_size=1, max_size=12, unique_by=lambda rung: rung.policy(),
)  # fmt: skip


@given(rungs_measured, st.floats(0, 1))
def test_the_frontier_loses_nothing_under_any_price(rungs: list[Rung], price: float) -> None:
    """For every quality asked for and every price of forwards against slots, the cheapest rung is on the frontier."""

    def cost(rung: Rung) -> float:
        per_token = min(most_forwards(rung, 1024) / 1024, 1 / (rung.expected_tokens_per_forward or 1))
        return per_token * (price + (1 - price) * rung.block_length)

    kept = frontier(rungs)
    assert set(kept) <= set(rungs)
    for asked in rungs:
        floor = asked.expected_quality or 0.0
        good = [cost(rung) for rung in rungs if (rung.expected_quality or 0.0) >= floor]
        found = [cost(rung) for rung in kept if (rung.expected_quality or 0.0) >= floor]
        assert min(found) <= min(good) * (1 + 1e-9)


def test_rungs_of_which_something_is_unmeasured_are_all_kept_in_their_order() -> None:
    worse, better = measured(diffusion(32, 8), 0.5, 1.0), measured(diffusion(32, 4), 0.9, 9.0)
    assert frontier([worse, better]) == (better,)
    unknown = diffusion(32, 2)
    assert frontier([worse, better, unknown]) == (worse, better, unknown)


@given(st.integers(1, 60), st.integers(2, 12))
def test_a_menu_is_thinned_evenly(count: int, most: int) -> None:
    rungs = [diffusion(64, steps) for steps in range(1, count + 1)]
    kept = [rung.refinement_steps for rung in thinned(rungs, most)]
    assert len(kept) == min(count, most)
    assert kept[0] == 1
    assert kept[-1] == count
    gaps = {after - before for before, after in pairwise(kept)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_an_slo_per_token_becomes_a_total() -> None:
    tier = Tier(name="steady", ttft_slo_ms=200, per_token_slo_ms=5, latency_slo_ms=900)
    assert goal_of(GenerationOptions(), tier, 100).latency_slo_ms == 700
    assert goal_of(GenerationOptions(), tier, 1000).latency_slo_ms == 900
    assert goal_of(GenerationOptions(latency_slo_ms=50), tier, 100).latency_slo_ms == 50


def test_quality_is_not_promised_outside_the_calibrated_range() -> None:
    rung = diffusion(32, 8)
    assert QUALITY.expected_quality(rung, 0.0) == 0.90
    assert QUALITY.expected_quality(rung, 0.7) is None
    assert QualityMap().expected_quality(rung, 0.0) is None
