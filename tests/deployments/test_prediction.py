"""Predicted latencies: known ones, and what they must never do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.load import ReplicaLoad
from deployments.prediction import Size, most_forwards, predict, predict_all
from deployments.prediction_tables import LoadTable, RungTable
from engine.plan import Decoding, Rung, diffusion, self_speculation
from tests.deployments.plans_by_hand import COST, LADDER, loads


@given(loads, st.integers(1, 400), st.sampled_from(LADDER))
def test_load_and_length_never_make_a_prediction_shorter(load: ReplicaLoad, output: int, rung: Rung) -> None:
    busy, idle = predict(rung, Size(50, output), load), predict(rung, Size(50, output), load.idle())
    assert idle.p95_s <= busy.p95_s + 1e-9
    assert busy.p50_s <= busy.p95_s
    assert busy.first_text_p95_s <= busy.p95_s + 1e-9
    assert predict(rung, Size(50, output + 40), load).p50_s >= busy.p50_s - 1e-9


@given(loads, st.integers(1, 400), st.integers(0, 400), st.sampled_from(LADDER))
def test_a_spread_of_lengths_widens_the_prediction_and_leaves_its_median(
    load: ReplicaLoad, median: int, more: int, rung: Rung
) -> None:
    load = replace(load, tail_ratio=1.0)  # else more forwards have a smaller tail, and lengths differ in forwards
    sure = predict(rung, Size(50, median), load)
    spread = predict(rung, Size(50, median + more, median), load)
    longest = predict(rung, Size(50, median + more), load)
    assert spread.p50_s == sure.p50_s
    assert spread.p95_s >= sure.p95_s - 1e-9
    assert spread.p95_s <= longest.p95_s + 1e-9, "both at their p95 at once would be rarer than one in twenty"


@given(loads, st.integers(40, 400), st.integers(0, 39), st.sampled_from(LADDER))
def test_a_cached_prefix_makes_it_shorter(load: ReplicaLoad, prompt: int, cached: int, rung: Rung) -> None:
    fresh, known = predict(rung, Size(prompt, 20), load), predict(rung, Size(prompt, 20, None, cached), load)
    assert known.p50_s <= fresh.p50_s
    assert known.accelerator_s <= fresh.accelerator_s + 1e-12


def test_only_what_depends_on_no_token_is_predicted_exactly() -> None:
    def fixed(*settings: Any) -> bool:
        return bool(RungTable((diffusion(32, 8, *settings),)).records["fixed"][0])

    assert fixed(None)
    assert not fixed(0.9)
    assert not fixed(None, "off", 0.5)
    assert not fixed(None, "off", None, 0.1)


def test_known_prediction() -> None:
    """An idle replica: 1 forward for 50 prompt tokens (5 + 5 ms), then 4 blocks of 5 forwards of 5 + 3.2 ms."""
    load = ReplicaLoad("a", cost=COST, latency_tail={"diffusion": 1.0}, tail_ratio=1.0)
    prediction = predict(diffusion(32, 4), Size(50, 128), load)
    assert abs(prediction.p50_s - (10e-3 + 20 * 8.2e-3)) < 1e-12
    assert prediction.p95_s == pytest.approx(prediction.p50_s)
    assert abs(prediction.first_text_p95_s - (10e-3 + 5 * 8.2e-3)) < 1e-12
    assert abs(prediction.accelerator_s - prediction.p50_s) < 1e-12, "alone it pays for all of its forwards"
    # What the prompt's last row chose is shown at once, where AR has the last word.
    for rung in (Rung(Decoding.AR), self_speculation(8)):
        known = predict(rung, Size(50, 128), replace(load, latency_tail={rung.decoding.value: 1.0}))
        assert abs(known.first_text_p95_s - 10e-3) < 1e-12
    # Beside 96 slots each forward lasts 9.6 ms longer, and a quarter of it is ours.
    busy = predict(diffusion(32, 4), Size(50, 128), replace(load, slots=96, queue_s=1e9))
    assert abs(busy.p50_s - (10e-3 + 20 * 8.2e-3 + 21 * 9.6e-3)) < 1e-12
    assert abs(busy.accelerator_s - ((10e-3 + 9.6e-3) * 50 / 146 + 20 * 17.8e-3 * 32 / 128)) < 1e-12


def test_a_newcomer_waits_for_a_forward_as_long_as_recent_ones_and_at_most_for_everybodys() -> None:
    crowd = ReplicaLoad("a", cost=COST, slots=960, queue_s=9.0, sequences=30, tail_ratio=1.5)
    alone = replace(crowd, sequences=0)
    everybody_s = COST.base_s + crowd.others_s
    for step_s, wait_s in ((0.0, everybody_s), (0.02, 0.03), (1.0, everybody_s)):
        met = predict(diffusion(32, 4), Size(50, 128), replace(crowd, step_s=step_s))
        served = predict(diffusion(32, 4), Size(50, 128), alone)
        assert met.p50_s - served.p50_s == pytest.approx(wait_s / 2)
        # Independent deviations from their medians: the wait is at most twice its median.
        spread_s = math.hypot(wait_s / 2, served.p95_s - served.p50_s)
        assert met.p95_s - met.p50_s == pytest.approx(spread_s)
        assert served.p95_s + wait_s / 2 < met.p95_s < served.p95_s + wait_s


def test_others_delay_by_no_more_than_the_work_that_they_have() -> None:
    load = ReplicaLoad("a", cost=COST, slots=960, queue_s=0.05, waiting=10, running=0)
    idle = predict(diffusion(32, 4), Size(50, 128), replace(load, slots=0, queue_s=0, waiting=0))
    assert abs(predict(diffusion(32, 4), Size(50, 128), load).p50_s - idle.p50_s - 0.05) < 1e-12


def test_who_comes_later_and_goes_first_takes_its_share_of_the_time() -> None:
    load = ReplicaLoad("a", cost=COST, queue_s=0.4, timed_s=0.1, slots=96, running=3)
    alone, met = (predict(diffusion(32, 4), Size(50, 128), one).p50_s for one in (replace(load, slots=0), load))
    others_s = met - alone
    busy = predict(diffusion(32, 4), Size(50, 128), replace(load, timed_share=0.75)).p50_s
    assert busy == pytest.approx((alone + 0.75 * others_s) / 0.25), "a quarter of what it finds has a deadline"
    # What has a deadline is reckoned with those that are there: who comes later has to leave it its time.
    table = LoadTable([replace(load, timed_share=0.75)], timed=True)
    bounded = predict_all(RungTable((diffusion(32, 4),)), table, 50, [0], [128], [128]).p50_s[0]
    assert bounded[0] == pytest.approx(met)
    unbounded = predict(diffusion(32, 4), Size(50, 128), replace(load, timed_share=1.0)).p50_s
    assert unbounded < 20 * busy, "a queue that grows without end is no prediction"


@given(st.lists(loads, min_size=1, max_size=4), st.integers(1, 400))
def test_all_at_once_are_as_one_by_one(met: list[ReplicaLoad], output: int) -> None:
    lengths = [output] * len(LADDER)
    together = predict_all(RungTable(LADDER), LoadTable(met), 50, [0] * len(met), lengths, lengths)
    for row, rung in enumerate(LADDER):
        for place, load in enumerate(met):
            assert together.at(row, place) == predict(rung, Size(50, output), load)


def test_known_forwards() -> None:
    assert most_forwards(Rung(Decoding.AR), 100) == 100
    assert most_forwards(diffusion(32, 4), 100) == 4 * 5
    assert most_forwards(diffusion(32, 32), 32) == 32  # the first token is the seed: 31 masks, then the commit
    assert most_forwards(self_speculation(8), 10) == 20
