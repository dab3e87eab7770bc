"""The bars of the mixture, on numbers written by hand."""

from __future__ import annotations

from benchmarks.mixture import AUTO, Measured, best_single, contenders, judge, single_modes
from engine.plan import AR, diffusion, self_speculation


def measured(tokens_per_s: float, p95_ms: float, lossy: bool = False, repeats: int = 3) -> Measured:
    latencies = {(0, place): p95_ms if place < 5 else p95_ms / 2 for place in range(50)}
    return Measured(lossy, [tokens_per_s] * repeats, latencies)


def verdicts(auto: Measured) -> list[bool]:
    row = {AUTO: auto, "ar": measured(500, 300), "self-speculation 16": measured(1000, 100)}
    row["diffusion 8 K1"] = measured(2000, 50, lossy=True)
    return [passed for _, passed in judge({4: row})]


def test_the_best_single_mode_has_ars_quality() -> None:
    row = {AUTO: measured(9, 1), "ar": measured(5, 1), "self-speculation 16": measured(7, 1)}
    row["diffusion 8 K1"] = measured(8, 1, lossy=True)
    assert best_single(row) == "self-speculation 16"


def test_auto_passes_close_to_the_best_and_must_be_above_it_somewhere() -> None:
    assert verdicts(measured(960, 104)) == [True, True, False]
    assert verdicts(measured(1010, 104)) == [True, True, True]


def test_auto_fails_when_it_is_slower_or_its_answers_take_longer() -> None:
    assert verdicts(measured(940, 100)) == [False, True, False]
    assert verdicts(measured(1010, 106)) == [True, False, True]


def test_latencies_are_compared_on_what_both_have_answered() -> None:
    slow, fast = measured(1, 100), measured(1, 50)
    fast.latency_ms |= {(1, place): 900.0 for place in range(50)}
    assert slow.p95_over(fast) == 2.0


def test_speeds_are_compared_within_a_repeat() -> None:
    row = {AUTO: measured(0, 1), "ar": measured(0, 1)}
    row[AUTO].tokens_per_s, row["ar"].tokens_per_s = [10, 50, 90], [10, 60, 60]  # paired 1, 0.83 and 1.5
    assert judge({1: row})[0] == ("auto at 1: 100.0% of ar's tokens/s (at least 95%)", True)


def test_only_what_may_be_the_best_is_measured_further() -> None:
    row = {AUTO: measured(5, 1), "ar": measured(89, 1), "self-speculation 16": measured(91, 1)}
    row |= {"self-speculation 32": measured(100, 1), "diffusion 8 K1": measured(200, 1, lossy=True)}
    assert contenders(row) == [AUTO, "self-speculation 16", "self-speculation 32"]


def test_the_best_is_one_of_those_that_were_measured_to_the_end() -> None:
    row = {AUTO: measured(9, 1), "ar": measured(8, 1, repeats=2), "self-speculation 16": measured(7, 1)}
    assert best_single(row) == "self-speculation 16"


def test_single_modes_are_ar_four_drafts_and_the_ladders_diffusion() -> None:
    lossy = diffusion(16, 1)
    expected = [AR, *(self_speculation(length) for length in (4, 8, 16, 32)), lossy]
    assert single_modes([AR, self_speculation(16), lossy]) == expected
