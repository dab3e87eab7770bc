"""Any policy through the engine equals the policy written slowly: what the released loops cannot be asked for."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import pytest

from benchmarks.reference_loops import ReferenceLoops
from engine.engine import Engine
from engine.plan import diffusion
from tests.oracle.golden_cases import CASES, EOS, GOLDEN, MASK
from tests.oracle.mixed_requests import Request, Result, engine, run
from tests.oracle.slow_policy import Policy, SlowAnswer, slow_answer

COUNT = 48
WITH_POLICIES = 24
"""Further ones, of diffusion with an entropy bound, with remask, or with both."""


def random_case(index: int) -> tuple[Request, Policy]:
    """A request with random settings, and the same as a policy."""
    rng = Random(f"policy {index}")
    prompt = rng.choice(CASES)["prompt"]
    length = rng.choice([1, 2, 3, 5, 8, 11, 16, 24, 31, 32])
    stop = frozenset(rng.sample(range(14, 60), rng.choice([0, 0, 2, 6])))
    fields: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": rng.choice([1, 2, 13, 30, 33, 47]),
        "block_length": length,
        "stop_token_ids": sorted(stop),
    }
    stop_ids = stop | {EOS}
    if index % 4 == 3 and index < COUNT:
        threshold = rng.choice([None, 0.4, 0.8])
        fields |= {"decoding": "self_speculation", "threshold": threshold}
        steps = 1 if threshold is None else length
        return Request(prompt, fields), Policy(length, steps, threshold, "exact", True, fields["max_tokens"], stop_ids)
    steps = rng.randint(1, length)
    threshold = rng.choice([None, None, 0.3, 0.7, 0.95])
    audit = rng.choice(["off", "off", "score", "exact", 0.5, 0.05])
    fields |= {"decoding": "diffusion", "refinement_steps": steps, "threshold": threshold, "audit": audit}
    bound = remask = None
    if index >= COUNT:
        # Blocks and answers so long that there is something to commit early and to take back.
        length = rng.choice([8, 16, 31, 32])
        steps = rng.randint(3, length)
        bound, remask = rng.choice([(0.0, None), (2.0, None), (9.0, None), (None, 0.1), (None, 0.6), (4.0, 0.3)])
        fields |= {"block_length": length, "refinement_steps": steps, "max_tokens": rng.choice([30, 47])}
        fields |= {"entropy_bound": bound, "remask": remask}
    policy = Policy(length, steps, threshold, audit, False, fields["max_tokens"], stop_ids, bound, remask)
    return Request(prompt, fields), policy


@pytest.fixture(scope="module")
def cases() -> list[tuple[Request, Policy]]:
    return [random_case(index) for index in range(COUNT + WITH_POLICIES)]


@pytest.fixture(scope="module")
def shared_engine() -> Engine:
    return engine()


@pytest.fixture(scope="module")
def results(shared_engine: Engine, cases: list[tuple[Request, Policy]]) -> list[Result]:
    """All of them in one batch."""
    return run(shared_engine, [request for request, _ in cases])


@pytest.fixture(scope="module")
def slow(cases: list[tuple[Request, Policy]]) -> list[SlowAnswer]:
    loops = ReferenceLoops(GOLDEN)
    return [slow_answer(loops, request.prompt, policy) for request, policy in cases]


@pytest.mark.parametrize("index", range(COUNT + WITH_POLICIES))
def test_engine_follows_the_policy(
    index: int, cases: list[tuple[Request, Policy]], results: list[Result], slow: list[SlowAnswer]
) -> None:
    (request, policy), got, wanted = cases[index], results[index], slow[index]
    assert got.report is not None
    assert got.token_ids == wanted.token_ids, request.fields
    assert got.finish_reason == wanted.finish_reason
    assert got.report.denoise_steps + got.report.draft_steps == wanted.steps, request.fields
    assert [shown.tokens for shown in got.canvases] == wanted.canvases
    assert (got.report.draft_steps == 0) != policy.drafted or wanted.steps == 0


@pytest.mark.parametrize("length", [3, 4, 8, 16])
def test_no_block_takes_more_forwards_than_its_rung_says(shared_engine: Engine, length: int) -> None:
    """With remask the bound is reached: a step may commit a mask that another one takes back."""
    base = {"temperature": 0, "decoding": "diffusion", "block_length": length, "max_tokens": 48, "ignore_eos": True}
    most = 0
    for remask in (None, 0.3, 1.0):
        rung = diffusion(length, length, None, "off", None, remask)
        (got,) = run(shared_engine, [Request(CASES[0]["prompt"], {**base, "threshold": None, "remask": remask})])
        starts = [shown.start for shown in got.canvases]
        most = max(starts.count(start) for start in starts)
        assert most + 1 <= rung.most_forwards_per_block
    assert most == length


def test_a_budget_is_a_guarantee(cases: list[tuple[Request, Policy]], results: list[Result]) -> None:
    for (_, policy), got in zip(cases, results, strict=True):
        starts = [shown.start for shown in got.canvases]
        assert max((starts.count(start) for start in starts), default=0) <= policy.steps


def test_policies_change_something(
    shared_engine: Engine, cases: list[tuple[Request, Policy]], results: list[Result]
) -> None:
    """Without them other canvases are shown; fewer steps are taken with a bound; with remask masks come back."""
    some = range(COUNT, COUNT + WITH_POLICIES)
    plain = [{**cases[place][0].fields, "entropy_bound": None, "remask": None} for place in some]
    asked = [Request(cases[place][0].prompt, fields) for place, fields in zip(some, plain, strict=True)]
    without = dict(zip(some, run(shared_engine, asked), strict=True))
    differing = [place for place in some if results[place].canvases != without[place].canvases]
    assert len(differing) > WITH_POLICIES / 2
    bounded = [place for place in differing if cases[place][1].remask is None]
    assert any(len(results[place].canvases) < len(without[place].canvases) for place in bounded)
    came_back = 0
    for place in some:
        for before, after in itertools.pairwise(results[place].canvases):
            pairs = zip(before.tokens, after.tokens, strict=False)
            came_back += before.start == after.start and any(one != MASK == other for one, other in pairs)
    assert came_back > 3


def test_policies_give_the_same_bits_alone_and_in_any_batch(
    shared_engine: Engine, cases: list[tuple[Request, Policy]], results: list[Result]
) -> None:
    for (request, _), together in list(zip(cases, results, strict=True))[COUNT : COUNT + 8]:
        assert run(shared_engine, [request])[0].bits == together.bits, request.fields


@pytest.mark.parametrize("length", range(1, 33))
def test_without_threshold_a_block_takes_exactly_its_budget(shared_engine: Engine, length: int) -> None:
    prompt = CASES[0]["prompt"]
    base = {"temperature": 0, "decoding": "diffusion", "block_length": length, "max_tokens": length, "ignore_eos": True}
    budgets = range(1, length + 1) if length % 8 == 0 else (1, (length + 1) // 2, length)
    requests = [Request(prompt, {**base, "refinement_steps": steps, "audit": "score"}) for steps in budgets]
    for steps, got in zip(budgets, run(shared_engine, requests), strict=True):
        assert got.report is not None
        # One token of a block is its seed, so there are length - 1 masks and at most so many steps.
        assert got.report.denoise_steps == min(steps, length - 1)
        assert len(got.token_ids) == length
