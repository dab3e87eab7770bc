"""The trace of the promise's benchmark: the same for everybody, and SLOs that follow from AR's idle times."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from benchmarks.command import CHECKPOINT
from benchmarks.promise_trace import Idle, Slos, idle_of, length_class, requests_of, trace
from engine.checkpoint.tokenizer import Tokenizer
from engine.events import Report

SLOS = Slos(Idle(read_ms=0.1, token_ms=3.0, block_ms=12.0), {"realtime": 2.0, "interactive": 4.0, "standard": 10.0})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.from_dir(Path(CHECKPOINT))
    assert found is not None
    return found


def test_an_slo_is_a_multiple_of_ars_idle_latency_for_the_answers_length() -> None:
    # 50 prompt tokens are read in 5 ms; 12 + 8 tokens take 19 more forwards of 3 ms: 62 ms.
    assert SLOS.slo_ms("realtime", 50, 12) == pytest.approx(124.0)
    assert SLOS.slo_ms("standard", 50, 12) == pytest.approx(620.0)
    assert SLOS.slo_ms("batch", 50, 12) is None


def test_the_tightest_tier_may_be_measured_by_a_two_step_diffusion() -> None:
    slos = Slos(SLOS.idle, SLOS.factors, margin_tokens=8, tightest="diffusion")
    # 40 + 8 tokens are two blocks of 12 ms after 5 ms of reading: 29 ms, four times.
    assert slos.slo_ms("realtime", 50, 40) == pytest.approx(116.0)
    assert slos.slo_ms("interactive", 50, 40) == SLOS.slo_ms("interactive", 50, 40)


def test_idle_times_come_from_answers_given_alone() -> None:
    ar = [Report(prompt_tokens=50, completion_tokens=11, ttft_ms=5.0, latency_ms=35.0) for _ in range(3)]
    two_step = [Report(prompt_tokens=50, completion_tokens=40, latency_ms=29.0)]
    assert idle_of(ar, two_step) == Idle(pytest.approx(0.1), pytest.approx(3.0), pytest.approx(12.0))


def test_answers_of_one_token_say_nothing_about_the_next() -> None:
    one = Report(prompt_tokens=5, completion_tokens=1, ttft_ms=5.0, latency_ms=5.0)
    with pytest.raises(ValueError, match="more than one token"):
        idle_of([one], [one])


@pytest.mark.parametrize(("answer", "bound"), [(1, 16), (16, 16), (17, 32), (129, 256), (257, 512)])
def test_callers_bound_the_answer_by_the_next_class(answer: int, bound: int) -> None:
    assert length_class(answer) == bound


def test_requests_hold_their_answers_and_are_the_same_for_the_same_seed(tokenizer: Tokenizer) -> None:
    requests = list(islice(requests_of(tokenizer, SLOS, 3), 60))
    assert requests == list(islice(requests_of(tokenizer, SLOS, 3), 60))
    assert requests != list(islice(requests_of(tokenizer, SLOS, 4), 60))
    assert {request.tier for request in requests} == {"realtime", "interactive", "standard", "batch"}
    for request in requests:
        assert len(tokenizer.encode(request.answer, add_bos=False)) < request.max_tokens
        assert (request.slo_ms is None) == (request.tier == "batch")


def test_a_higher_load_is_the_same_requests_closer_together(tokenizer: Tokenizer) -> None:
    slow = trace(requests_of(tokenizer, SLOS, 1), rate=4.0, duration_s=5.0, seed=1)
    fast = trace(requests_of(tokenizer, SLOS, 1), rate=8.0, duration_s=5.0, seed=1)
    assert len(slow) < len(fast)
    for one, other in zip(slow, fast, strict=False):
        assert one.request == other.request
        assert one.due_s == pytest.approx(2 * other.due_s)
    assert all(arrival.due_s < 5.0 for arrival in fast)
