"""The policies that are compared: what each decides, on the real engine with the model that ships."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter

import pytest

from benchmarks.command import CHECKPOINT
from benchmarks.mixture import single_modes
from benchmarks.policies import (
    Admitted,
    ByDeadline,
    ByLoad,
    Decision,
    Fixed,
    Pinned,
    Policy,
    Refused,
    Served,
    fastest_by_load,
)
from benchmarks.policy_run import Outcome, Window, closed_loop, in_loop, new_engine, open_loop
from benchmarks.promise_setup import tokenizer_of
from benchmarks.promise_trace import Arrival, Idle, Request, Slos, requests_of
from benchmarks.router_process import RouterProcess
from benchmarks.stepdial_policy import Stepdial
from engine.engine import Engine
from engine.events import Finished, Report
from engine.plan import AR, Plan, diffusion, self_speculation
from engine.request import GenerationOptions, equivalent_to_ar

LONG, SHORT = self_speculation(32), self_speculation(4)
PROFILE = {LONG: {1: 900.0, 8: 1000.0, 64: 1100.0}, SHORT: {1: 300.0, 8: 1010.0, 64: 2000.0}}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = new_engine(CHECKPOINT, 8192)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def stepdial(engine: Engine) -> Iterator[Stepdial]:
    policy = Stepdial(engine, RouterProcess(str(CHECKPOINT)))
    yield policy
    policy.close()


def request(slo_ms: float | None = None, tier: str = "standard", index: int = 0, max_tokens: int = 16) -> Request:
    return Request(index, list(range(300, 340)), "none", 5, "addition", tier, max_tokens, slo_ms)


def wait(engine: Engine, sequences: int) -> None:
    """Puts sequences into an engine whose loop does not run."""
    for _ in range(sequences):
        engine.core.add(engine.intake.sequence("one", [1, 2, 3], GenerationOptions(max_tokens=4), Plan(), 0.0))


def decided(policy: Policy, asked: Request, ago_s: float = 0.0) -> Decision:
    """What becomes of a request that arrived so long ago."""
    return in_loop(policy.decide(asked, perf_counter() - ago_s))


def served(policy: Policy, asked: Request, ago_s: float = 0.0) -> Served:
    decision = decided(policy, asked, ago_s)
    assert isinstance(decision, Served)
    return decision


def test_a_fixed_policy_gives_everybody_its_rung_and_tells_no_deadline() -> None:
    decision = served(Fixed("drafts", LONG), request(1.0))
    assert decision.plan.ladder == (LONG,)
    assert decision.latency_slo_ms is None


def test_a_profile_gives_the_fastest_rung_of_every_load() -> None:
    assert fastest_by_load(PROFILE) == {1: LONG, 8: SHORT, 64: SHORT}


@pytest.mark.parametrize(("open_already", "rung"), [(0, LONG), (1, LONG), (7, SHORT), (200, SHORT)])
def test_the_rung_by_load_is_that_of_the_nearest_measured_load(open_already: int, rung: object) -> None:
    idle = new_engine(CHECKPOINT, 8192)
    wait(idle, open_already)
    assert served(ByLoad("by load", idle, PROFILE), request()).plan.first == rung


@pytest.mark.parametrize("profile", [{}, {LONG: {}}])
def test_an_empty_profile_is_refused(engine: Engine, profile: dict) -> None:
    with pytest.raises(ValueError, match="profile of 'by load' is empty"):
        ByLoad("by load", engine, profile)


def test_the_threshold_follows_the_deadline(engine: Engine) -> None:
    rungs = [diffusion(32, None, level) for level in (0.95, 0.5, 0.1)]
    policy = ByDeadline("by deadline", engine, rungs)
    assert served(policy, request(None)).plan.first == rungs[0]
    loose, tight = (served(policy, request(slo)) for slo in (1e6, 0.5))
    assert loose.plan.first == rungs[0]
    assert tight.plan.first == rungs[-1]
    assert loose.latency_slo_ms == pytest.approx(1e6, rel=0.01)


def test_admission_refuses_what_cannot_be_in_time_and_lets_the_rest_in_with_its_deadline(engine: Engine) -> None:
    policy = Admitted(Fixed("ar", AR), engine)
    assert decided(policy, request(1.0)) == Refused(429)
    assert decided(policy, request(5_000.0), 10.0) == Refused(429)
    loose = served(policy, request(1e6))
    assert loose.plan.ladder == (AR,)
    assert loose.latency_slo_ms == pytest.approx(1e6, rel=0.01)
    assert served(policy, request(None)).latency_slo_ms is None


def test_stepdial_refuses_for_good_what_no_idle_engine_could_do(stepdial: Stepdial) -> None:
    assert decided(stepdial, request(0.5, "realtime")) == Refused(400)


def test_stepdial_keeps_ars_quality_where_the_tier_asks_for_it(engine: Engine, stepdial: Stepdial) -> None:
    equal = {rung.policy() for rung in equivalent_to_ar(engine.ladder)}
    for index, asked in enumerate([request(None, "batch"), request(1e6, "standard")]):
        decision = served(stepdial, replace(asked, index=index))
        assert {rung.policy() for rung in decision.plan.ladder} <= equal


def test_stepdial_tells_the_engine_the_deadline_less_what_has_passed(stepdial: Stepdial) -> None:
    decision = served(stepdial, request(1e6), 400.0)
    assert decision.latency_slo_ms == pytest.approx(6e5, rel=0.01)
    assert decision.predicted_p95_ms is not None


def test_every_single_mode_of_the_mixture_runs_the_rung_that_it_is_named_after(
    engine: Engine, stepdial: Stepdial
) -> None:
    for rung in single_modes(engine.ladder):
        plan = served(Pinned("one", rung, stepdial), request(None, "default")).plan
        assert [one.policy() for one in plan.ladder] == [rung.policy()]


def test_stepdial_learns_lengths_from_answers(stepdial: Stepdial) -> None:
    for index in range(20):
        asked = request(None, "batch", index, max_tokens=256)
        served(stepdial, asked)
        stepdial.learn(asked, Finished("stop", Report(prompt_tokens=40, completion_tokens=10, latency_ms=20.0)), 21.0)
    assert served(stepdial, request(None, "batch", 20, max_tokens=256)).plan.expected_tokens == 10


def test_a_router_that_has_ended_is_an_error_and_no_endless_wait(stepdial: Stepdial) -> None:
    served(stepdial, request(1e6))
    stepdial._router._process.kill()
    stepdial._router._process.wait()
    with pytest.raises((RuntimeError, BrokenPipeError)):
        decided(stepdial, request(1e6, index=1))


def test_an_open_loop_fills_in_what_came_of_every_request(engine: Engine) -> None:
    arrivals = [Arrival(0.0, request(1e6)), Arrival(0.02, request(1e6, index=1))]
    outcomes = in_loop(open_loop(engine, Fixed("ar", AR), arrivals, end_s=60.0))
    for outcome in outcomes:
        assert outcome.in_time
        assert 0 < outcome.tokens <= 16
        assert outcome.first_ms is not None
        assert outcome.latency_ms is not None
        assert 0 < outcome.first_ms <= outcome.latency_ms
        assert [entry.rung for entry in outcome.entries] == [AR]
    assert not any(outcome.right for outcome in outcomes)


def test_what_is_open_at_the_end_is_cut_off_and_frees_the_engine(engine: Engine) -> None:
    asked = next(one for one in requests_of(tokenizer_of(engine), Slos(Idle(0, 0, 0), {}), 1) if one.family == "code")
    # Forty answers of several blocks in 32 steps each take seconds, on any machine.
    outcomes = in_loop(open_loop(engine, Fixed("slow", diffusion(32, 32)), [Arrival(0.0, asked)] * 40, end_s=0.1))
    assert all(outcome.latency_ms is None and not outcome.in_time for outcome in outcomes)
    assert engine.present() == []


def test_a_refused_request_costs_no_forward(engine: Engine) -> None:
    before = engine.stats().forwards
    policy = Admitted(Fixed("ar", AR), engine)
    outcomes: list[Outcome] = in_loop(open_loop(engine, policy, [Arrival(0.0, request(1.0))], end_s=5.0))
    assert outcomes[0].refused == 429
    assert outcomes[0].latency_ms is None
    assert engine.stats().forwards == before


def test_a_closed_loop_counts_what_ends_in_its_window(engine: Engine) -> None:
    run = closed_loop(engine, Fixed("ar", AR), [request(max_tokens=4)], 2, Window(0.0, 0.1, least_ended=6))
    closed = in_loop(run)
    assert len(closed.ended) >= 6
    assert closed.tokens >= 6
    assert closed.tokens_per_s == pytest.approx(closed.tokens / closed.seconds)
    assert engine.present() == []
