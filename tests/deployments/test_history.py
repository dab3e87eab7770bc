"""What was seen: the length to expect, by how much it is known, and what predictions were off by."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from deployments.history import ENOUGH, MOST_TAIL, TAIL_EVERY_S, Calibration, LatencyTails, OutputLengths


def seen(lengths: OutputLengths, values: list[int], tier: str = "t", rung: str = "r", prompt: int = 30) -> None:
    for value in values:
        lengths.observe(prompt, value, tier, rung)


def test_the_finest_histogram_with_enough_answers_is_used_and_said_so() -> None:
    lengths = OutputLengths(prior_tokens=200, enough=5)
    seen(lengths, [10, 20, 30, 40, 50])
    seen(lengths, [100] * 4, rung="other")
    here = lengths.expect(20, 4000, "t", "r")
    assert (here.median, here.reckoned) == (30, 50)
    assert here.source == "5 answers of this tier, rung and prompt length"
    coarse = lengths.expect(20, 4000, "t", "other")
    assert (coarse.median, coarse.reckoned) == (50, 100)
    assert coarse.source == "9 answers of this tier and prompt length"
    assert lengths.expect(20, 4000, "another tier", "r").source == "9 answers of any tier and prompt length"
    assert lengths.expect(500, 4000, "t", "r").reckoned == 200
    assert "settings" in lengths.expect(500, 4000, "t", "r").source


@given(st.lists(st.integers(1, 5000), max_size=60), st.integers(1, 3000), st.integers(0, 3000))
def test_lengths_stay_within_the_requests_limits(values: list[int], most: int, least: int) -> None:
    lengths = OutputLengths(prior_tokens=256, enough=5)
    seen(lengths, values)
    expected = lengths.expect(30, most, "t", "r", least)
    assert 1 <= expected.median <= expected.reckoned <= most
    assert expected.median >= min(least, most)


def test_what_the_request_fixes_is_known() -> None:
    lengths = OutputLengths(prior_tokens=256)
    fixed = lengths.expect(30, 2000, least=2000)
    assert (fixed.median, fixed.reckoned) == (2000, 2000)
    assert "fixes" in fixed.source


def test_answers_that_a_small_limit_cut_do_not_make_long_ones_rare() -> None:
    lengths = OutputLengths(prior_tokens=256, enough=5)
    seen(lengths, [300] * 10)
    for _ in range(100):
        lengths.observe_cut(30, 8, "t", "r")
    assert lengths.expect(30, 4000, "t", "r").reckoned == 300
    for _ in range(20):
        lengths.observe_cut(30, 900, "t", "r")
    assert lengths.expect(30, 4000, "t", "r").reckoned == 900


def test_experience_is_by_tier_and_mode_and_within_bounds() -> None:
    calibration = Calibration()
    calibration.observe("t", True, "diffusion", 1.4)
    assert calibration.scale("t", True, "diffusion") == 1.0, "one answer is no experience"
    for _ in range(30):
        calibration.observe("t", True, "ar", 0.5)
        calibration.observe("t", True, "diffusion", 1.4)
        calibration.observe("t", True, "self_speculation", 90.0)
    assert calibration.scale("t", True, "ar") == 0.5
    assert calibration.scale("another", True, "ar") == calibration.scale("t", False, "ar") == 1.0
    assert calibration.scale("t", True, "diffusion") == 1.4
    assert calibration.scale("t", True, "self_speculation") == MOST_TAIL
    assert Calibration().scale("t", True, "ar") == 1.0


def test_of_many_answers_that_end_at_once_one_is_compared_with_its_prediction() -> None:
    tails = LatencyTails()
    asked_s = [index * TAIL_EVERY_S / 10 for index in range(100)]
    wanted = [now_s for now_s in asked_s if tails.wants(now_s)]
    assert wanted[0] == 0.0
    assert len(wanted) == 10
    assert min(later - earlier for earlier, later in pairwise(wanted)) >= TAIL_EVERY_S * (1 - 1e-9)
    assert tails.wants(asked_s[-1] + 60)


def test_a_tail_counts_once_there_are_enough_answers() -> None:
    tails = LatencyTails()
    for count in range(ENOUGH):
        assert tails.values() == {}, count
        tails.observe("diffusion", 1.1)
    assert tails.values() == {"diffusion": 1.1}
    for _ in range(200):
        tails.observe("diffusion", 100.0)
    assert tails.values() == {"diffusion": MOST_TAIL}
