"""Deadlines that slip although they were reckoned to be kept: admission asks for more time until they no longer do."""

from __future__ import annotations

import random

import pytest

from engine.admission import CLOSE, Admission, Newcomer
from engine.cost_model import ForwardCost, ForwardCostModel
from engine.outlook import MOST_SLIP, SLIPPED, Outlook
from engine.plan import AR, Plan
from engine.scheduler import HOLD

COST = ForwardCost(base_s=4e-3, per_sequence_s=0.0, per_token_s=1e-4, per_context_s=0.0)


def outlook() -> Outlook:
    return Outlook(ForwardCostModel(prior=COST), prefill_chunk=256)


def test_every_miss_makes_the_next_newcomer_ask_for_more_time() -> None:
    made = outlook()
    newcomer = Newcomer(Plan(ladder=(AR,)), prompt_tokens=20, output_tokens=10, left_s=1.0)
    admission, company = Admission(made), made.company(made.view([], 0.0))
    before = admission.earliest_s(newcomer, company)
    for _ in range(8):
        made.ended(in_time=False)
    assert made.slip_s == pytest.approx(8 * COST.base_s)
    assert admission.earliest_s(newcomer, company) == pytest.approx(before + 8 * COST.base_s, rel=CLOSE)
    assert admission.rung_for(newcomer.due_in(before * (1 + CLOSE)), company) is None


def test_kept_deadlines_give_the_time_back_and_others_say_nothing() -> None:
    made = outlook()
    made.ended(in_time=False)
    made.ended(None)
    assert made.slip_s == pytest.approx(COST.base_s)
    for _ in range(round(1 / SLIPPED) + 1):
        made.ended(in_time=True)
    assert made.slip_s == 0.0


def test_while_deadlines_slip_forwards_are_held_to_the_tightest_pace() -> None:
    made = outlook()
    assert made.hold == HOLD
    made.ended(in_time=False)
    assert made.hold == 1.0
    holds = []
    for _ in range(round(1 / SLIPPED) + 1):
        made.ended(in_time=True)
        holds.append(made.hold)
    assert holds == sorted(holds)
    assert holds[-1] == HOLD


def test_it_comes_to_rest_where_few_deadlines_are_missed_and_never_grows_without_end() -> None:
    """Delays of up to ten bases that nobody foresees: a deadline is missed if its delay exceeds the slip."""
    made, rng = outlook(), random.Random(0)
    missed = []
    for _ in range(20_000):
        in_time = rng.expovariate(1 / (2 * COST.base_s)) <= made.slip_s + COST.base_s
        missed.append(not in_time)
        made.ended(in_time)
    assert sum(missed[5000:]) / 15_000 == pytest.approx(SLIPPED, rel=0.3)
    for _ in range(1000):
        made.ended(in_time=False)
    assert made.slip_s == pytest.approx(MOST_SLIP * COST.base_s)


@pytest.mark.parametrize(
    ("predicted_ms", "slo_ms", "promised"),
    [(90.0, 100.0, True), (110.0, 100.0, False), (None, 100.0, False), (90.0, None, False)],
)
def test_only_what_was_expected_in_time_was_promised(
    predicted_ms: float | None, slo_ms: float | None, promised: bool
) -> None:
    assert Plan(predicted_p95_ms=predicted_ms, slo_ms=slo_ms).promised is promised
