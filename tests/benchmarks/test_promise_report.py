"""What the promise's benchmark makes of outcomes, on outcomes written by hand."""

from __future__ import annotations

import pytest

from benchmarks.policy_run import Outcome
from benchmarks.promise_bars import bars
from benchmarks.promise_report import (
    Cell,
    comparison,
    equivalence,
    equivalence_pairs,
    goodput,
    judged,
    mean_over_seeds,
    metrics,
    predictions,
    summary,
)
from benchmarks.promise_trace import Request
from engine.plan import AR, Plan, PlanEntry, diffusion, self_speculation

DRAFTS = self_speculation(16)


def outcome(
    index: int = 0,
    tier: str = "standard",
    slo_ms: float | None = 100.0,
    latency_ms: float | None = 50.0,
    right: bool = True,
    refused: int | None = None,
    due_s: float = 0.0,
    own_ms: float = 1.0,
    predicted_ms: float | None = None,
) -> Outcome:
    request = Request(index, [1, 2, 3], "answer", 7, "addition", tier, 32, slo_ms)
    return Outcome(
        request,
        due_s,
        own_ms=own_ms,
        refused=refused,
        latency_ms=None if refused else latency_ms,
        right=right and not refused,
        plan=None if refused else Plan(ladder=(DRAFTS,)),
        predicted_p95_ms=predicted_ms,
        entries=[] if refused else [PlanEntry(0, DRAFTS)],
    )


def cell(policy: str, load: float, *outcomes: Outcome, seed: int = 1) -> Cell:
    return Cell(policy, load, seed, duration_s=10.0, end_s=13.0, outcomes=list(outcomes))


def verdict(cells: list[Cell], start: str) -> bool:
    found = [bar for bar in bars(cells, {}) if bar.text.startswith(start)]
    assert len(found) == 1, f"{start}: {[bar.text for bar in bars(cells, {})]}"
    return found[0].passed


def test_goodput_counts_what_is_right_and_in_time() -> None:
    right = outcome()
    late = outcome(latency_ms=100.1)
    wrong = outcome(right=False)
    batch = outcome(tier="batch", slo_ms=None, latency_ms=9000.0)
    unfinished = outcome(tier="batch", slo_ms=None, latency_ms=None, right=False)
    refused = outcome(refused=429)
    assert goodput(cell("stepdial", 0.5, right, late, wrong, batch, unfinished, refused)) == pytest.approx(0.2)


def test_requests_whose_slo_reaches_beyond_the_cut_are_not_judged() -> None:
    inside, beyond = outcome(due_s=12.0, slo_ms=1000.0), outcome(due_s=12.5, slo_ms=1000.0)
    assert judged(cell("stepdial", 0.5, inside, beyond)) == [inside]


def test_a_cells_numbers_count_by_tier() -> None:
    row = metrics(
        cell(
            "stepdial", 0.5, outcome(), outcome(latency_ms=150.0), outcome(refused=429),
            outcome(tier="batch", slo_ms=None, right=False),
        )
    )  # fmt: skip
    assert (row["offered"], row["admitted"], row["refused"], row["late"]) == (4, 3, 1, 1)
    standard = row["tiers"]["standard"]
    assert standard["attainment_of_admitted"] == pytest.approx(1 / 2)
    assert standard["attainment_of_offered"] == pytest.approx(1 / 3)
    assert row["tiers"]["batch"]["attainment_of_admitted"] == 1.0
    assert row["refused_by_status"] == {"429": 1}
    assert row["started_on"] == {"self-speculation 16": 3}


def test_how_late_answers_were_is_told_of_those_that_never_came_too() -> None:
    late, missing = outcome(latency_ms=150.0), outcome(due_s=12.0, latency_ms=None)
    overloaded = cell("stepdial", 1.5, outcome(), late, missing)
    found = metrics(overloaded)["late_by_ms"]
    assert found["most"] == pytest.approx(900.0)  # from 12.1 s to the end at 13 s
    assert found["p50"] == pytest.approx((50 + 900) / 2)
    text = next(bar.text for bar in bars([overloaded], {}) if bar.text.startswith("waited past"))
    assert text.endswith("half of them by at most 475 ms, all by at most 900")
    assert metrics(cell("stepdial", 1.5, outcome()))["late_by_ms"] is None


def test_a_mean_over_three_seeds_has_students_interval() -> None:
    interval = mean_over_seeds([1.0, 2.0, 3.0])
    assert interval.value == 2.0
    assert interval.high - interval.value == pytest.approx(4.303 / 3**0.5)


def test_policies_are_compared_request_by_request() -> None:
    cells = [
        cell("stepdial", 0.5, outcome(0), outcome(1)),
        cell("ar", 0.5, outcome(0), outcome(1, latency_ms=500.0)),
        cell("stepdial", 0.5, outcome(0), outcome(1), seed=2),
        cell("ar", 0.5, outcome(0), outcome(1), seed=2),
    ]
    row = comparison(cells, 0.5, "ar")
    assert row["seeds"] == 2
    assert row["difference_per_s"]["value"] == pytest.approx(0.05)
    assert row["paired_difference_per_request"]["value"] == pytest.approx(0.25)


def test_a_load_with_every_deadline_kept_passes_and_one_with_a_late_tier_fails() -> None:
    kept = [outcome(index, "realtime") for index in range(100)]
    late = [outcome(index, "standard", latency_ms=101.0 if index < 2 else 50.0) for index in range(100)]
    cells = [cell("stepdial", 0.5, *kept, *late)]
    assert verdict(cells, "realtime at 50%")
    assert not verdict(cells, "standard at 50%")
    assert verdict(cells, "refused at 50%")


def test_too_many_refusals_fail() -> None:
    cells = [cell("stepdial", 0.5, *[outcome(index, refused=429 if index < 3 else None) for index in range(100)])]
    assert not verdict(cells, "refused at 50%")


def test_a_slow_refusal_fails() -> None:
    assert verdict([cell("stepdial", 3.0, outcome(refused=429, own_ms=49.0))], "the longest of 1 refusals")
    assert not verdict([cell("stepdial", 3.0, outcome(refused=429, own_ms=51.0))], "the longest of 1 refusals")


def test_goodput_below_another_policy_beyond_the_interval_fails() -> None:
    def cells(ours: int) -> list[Cell]:
        return [
            cell(policy, 0.8, *[outcome(index, right=index < good + seed % 2) for index in range(60)], seed=seed)
            for seed in (1, 2, 3)
            for policy, good in (("stepdial", ours), ("ar", 40))
        ]

    assert verdict(cells(40), "goodput at 80% against ar")
    assert verdict(cells(50), "goodput at 80% against ar")
    assert not verdict(cells(30), "goodput at 80% against ar")


def test_goodput_that_collapses_under_overload_fails() -> None:
    steady = cell("stepdial", 0.8, *[outcome(index) for index in range(20)])
    most = cell("stepdial", 1.5, *[outcome(index) for index in range(19)])
    little = cell("stepdial", 3.0, *[outcome(index) for index in range(10)])
    assert verdict([steady, most, little], "goodput at 150%: ")
    assert not verdict([steady, most, little], "goodput at 300%: ")


def test_equal_answers_are_equivalent_only_when_there_are_enough() -> None:
    few, many = equivalence([(True, True)] * 10), equivalence([(True, True), (False, False)] * 400)
    assert few is not None
    assert many is not None
    assert few["difference"]["low"] < -0.01 < many["difference"]["low"]


def test_answers_below_ars_are_not_equivalent() -> None:
    found = equivalence([(True, True)] * 90 + [(False, True)] * 10)
    assert found is not None
    assert found["difference"]["value"] == pytest.approx(-0.1)
    assert found["difference"]["high"] < -0.01


def test_only_stepdials_answers_of_the_equivalent_tiers_are_paired() -> None:
    cells = [
        cell("stepdial", 0.5, outcome(0), outcome(1, "realtime"), outcome(2, refused=429), outcome(3)),
        cell("stepdial", 3.0, outcome(0, right=False), outcome(1, "realtime"), outcome(2, latency_ms=None)),
        cell("ar", 0.5, outcome(0)),
    ]
    assert equivalence_pairs(cells, {(1, 0): True, (1, 1): True, (1, 2): True}) == [(0.5, 1.0)]


def test_predictions_are_judged_by_mode_and_apart_where_the_rung_was_kept() -> None:
    kept = outcome(latency_ms=90.0, predicted_ms=100.0)
    moved = outcome(latency_ms=120.0, predicted_ms=100.0)
    moved.entries.append(PlanEntry(8, AR))
    found = predictions([cell("stepdial", 0.5, kept, moved)], 0.5)
    assert found["self_speculation"]["answers"] == 2
    assert found["self_speculation"]["within_prediction"] == 0.5
    assert found["self_speculation, rung kept"]["ratio"]["p95"] == pytest.approx(0.9)


def test_a_prediction_off_by_more_than_a_fifth_fails() -> None:
    def cells(latency_ms: float) -> list[Cell]:
        return [cell("stepdial", 0.8, *[outcome(i, latency_ms=latency_ms, predicted_ms=50.0) for i in range(20)])]

    assert verdict(cells(55.0), "p95 prediction of self_speculation")
    assert not verdict(cells(61.0), "p95 prediction of self_speculation")
    assert not verdict(cells(39.0), "p95 prediction of self_speculation")


def test_a_run_that_was_stopped_early_still_has_a_summary() -> None:
    only_other = summary([cell("ar", 0.5, outcome())], {})
    assert only_other["against_stepdial"] == []
    cells = [cell("ar", 0.5, outcome()), cell("stepdial", 0.8, outcome())]
    assert summary(cells, {})["against_stepdial"] == []
    assert all("against" not in bar.text for bar in bars(cells, {}))


def test_rungs_have_short_names() -> None:
    row = outcome()
    row.entries = [PlanEntry(0, diffusion(32, 2, 0.9, 0.5)), PlanEntry(8, AR)]
    assert metrics(cell("stepdial", 0.5, row))["used"] == {"diffusion 32 K2 threshold 0.9 audit 0.5": 1, "ar": 1}
