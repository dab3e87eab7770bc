"""The same request gives the same answer (`requests.md` section 3).

Bit for bit in any batch and any order of arrival. After another chunking, prefix hits or preemption a difference may
start only where a float64 reference is undecided to 1e-5.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from tests.oracle.float64_reference import DecidedDifference, Float64Reference
from tests.oracle.golden_cases import CASES
from tests.oracle.mixed_requests import Request, Result, Shown, engine, long_requests, mixed_requests, run

REQUESTS = mixed_requests()


@pytest.fixture(scope="module")
def shared_engine() -> Engine:
    return engine()


@pytest.fixture(scope="module")
def alone(shared_engine: Engine) -> list[Result]:
    """Every request by itself: what all other runs are compared with."""
    return [run(shared_engine, [request])[0] for request in REQUESTS]


@pytest.fixture(scope="module")
def reference() -> Float64Reference:
    return Float64Reference()


def assert_same_bits(got: list[Result], wanted: list[Result]) -> None:
    for index, (mine, other) in enumerate(zip(got, wanted, strict=True)):
        assert mine.bits == other.bits, f"request {index}: {REQUESTS[index].fields}"


def test_a_mixed_batch_gives_the_bits_of_lone_requests(shared_engine: Engine, alone: list[Result]) -> None:
    assert_same_bits(run(shared_engine, REQUESTS), alone)
    assert any(len(result.token_ids) > 30 for result in alone)


@settings(max_examples=3)
@given(seed=st.integers(0, 2**32))
def test_any_order_of_arrival_gives_the_same_bits(shared_engine: Engine, alone: list[Result], seed: int) -> None:
    rng = Random(seed)
    order = rng.sample(range(len(REQUESTS)), len(REQUESTS))
    gaps = [rng.choice([0, 0, 1, 3]) for _ in REQUESTS]
    assert_same_bits(run(shared_engine, REQUESTS, order, gaps), alone)


def test_a_batch_that_does_not_fit_one_forward_gives_the_same_bits(alone: list[Result]) -> None:
    assert_same_bits(run(engine(max_forward_tokens=256, max_sequences=9), REQUESTS), alone)


def test_long_prompts_cut_into_chunks_by_a_full_batch_give_the_same_bits(shared_engine: Engine) -> None:
    requests = long_requests()
    single = [run(shared_engine, [request])[0] for request in requests]
    crowded = run(engine(max_forward_tokens=256), requests)
    odd = run(engine(prefill_chunk=100), requests)
    for first, *others in zip(single, crowded, odd, strict=True):
        assert [other.bits for other in others] == [first.bits, first.bits]


def test_without_a_seed_answers_differ() -> None:
    request = Request(CASES[0]["prompt"][:4], {"decoding": "ar", "temperature": 2.0, "max_tokens": 30})
    first, second = run(engine(), [request, request])
    assert first.token_ids != second.token_ids


CHANGES = {
    "prefix-reuse": {"prefix_reuse": True},
    "chunks-of-1": {"prefill_chunk": 1},
    "chunks-of-7": {"prefill_chunk": 7},
    "preemption": {"kv_tokens": 512},
    "preemption-and-prefix-reuse": {"kv_tokens": 512, "prefix_reuse": True, "prefill_chunk": 16},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_starts_only_where_float64_is_undecided(
    change: str, alone: list[Result], reference: Float64Reference, record_property: pytest.RecordProperty
) -> None:
    changed = engine(**CHANGES[change])
    results = run(changed, REQUESTS)
    if CHANGES[change].get("prefix_reuse"):
        # Requests share prompts, and come a second time to what the first left.
        results[::2] = run(changed, REQUESTS[::2])
        assert changed.stats().prefix_hit_tokens > 0
    if "kv_tokens" in CHANGES[change]:
        assert changed.stats().preemptions > 0
    differing = [
        index
        for index, (mine, other) in enumerate(zip(results, alone, strict=True))
        if mine.token_ids != other.token_ids or mine.canvases != other.canvases
    ]
    for index in differing:
        reference.assert_undecided(REQUESTS[index], results[index], alone[index])
    record_property("requests_that_differ", len(differing))
    for mine, other in zip(results, alone, strict=True):
        if mine.token_ids == other.token_ids:
            assert mine.report is not None
            assert other.report is not None
            assert mine.report.audit_logprob == pytest.approx(other.report.audit_logprob, abs=1e-5)


@pytest.mark.parametrize("sampling", [{"temperature": 0.7}, {"temperature": 1.3, "top_k": 20, "top_p": 0.95}])
def test_self_speculation_gives_the_tokens_of_ar_for_the_same_seed(shared_engine: Engine, sampling: dict) -> None:
    prompts = [CASES[index]["prompt"] for index in range(0, len(CASES), 60)]
    for seed, prompt in enumerate(prompts):
        base = {**sampling, "seed": seed, "max_tokens": 40}
        lengths = (2, 3, 8, 17, 32)
        requests = [Request(prompt, {**base, "decoding": "ar"})]
        requests += [Request(prompt, {**base, "decoding": "self_speculation", "block_length": n}) for n in lengths]
        requests += [Request(prompt, {**requests[-1].fields, "threshold": 0.6})]
        ar, *others = run(shared_engine, requests)
        for other in others:
            assert other.token_ids == ar.token_ids


def test_a_smaller_max_tokens_gives_a_prefix(shared_engine: Engine, alone: list[Result]) -> None:
    requests = [Request(request.prompt, {**request.fields, "max_tokens": 11}) for request in REQUESTS]
    for short, long in zip(run(shared_engine, requests), alone, strict=True):
        assert short.token_ids == long.token_ids[:11]


def test_the_reference_refuses_differences_that_are_decided(alone: list[Result], reference: Float64Reference) -> None:
    for request, good in zip(REQUESTS, alone, strict=True):
        tokens = [*good.token_ids[:-2], good.token_ids[-2] ^ 1, good.token_ids[-1]]
        with pytest.raises(DecidedDifference):
            reference.assert_undecided(request, Result(tokens, good.canvases), good)
        if good.canvases:
            *before, last = good.canvases
            changed = Shown(last.start, [last.tokens[0], *(token ^ 1 for token in last.tokens[1:])])
            with pytest.raises(DecidedDifference):
                reference.assert_undecided(request, Result(good.token_ids, [*before, changed]), good)
