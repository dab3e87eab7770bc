"""Loads: what the meter makes of counters, what the board keeps, and the quantiles of what was seen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from deployments.history import OutputLengths, Quantile
from deployments.load import LoadMeter, ReplicaLoad, load_met
from deployments.load_board import LoadBoard
from deployments.prediction import Size, predict
from engine.cost_model import ForwardCostModel
from engine.decoding.rung_choice import TokensPerForward
from engine.plan import diffusion, self_speculation
from engine.stats import EngineStats


def stats(**values: Any) -> EngineStats:
    return EngineStats(
        **{"running": 2, "waiting": 1, "open_slots": 60, "open_context": 50, "queue_s": 1.0,
           "cost_model": ForwardCostModel().to_dict(), **values}
    )  # fmt: skip


def test_a_load_says_what_the_open_requests_put_into_a_forward_and_travels_whole() -> None:
    load = LoadMeter("a", 256).read(stats(), 2.0, {"ar": 1.2})
    assert (load.sequences, load.slots, load.context) == (3, 60, 50)
    assert load.latency_tail == {"ar": 1.2}
    cost = load.cost
    assert load.others_s == pytest.approx(3 * cost.per_sequence_s + 60 * cost.per_token_s + 50 * cost.per_context_s)
    assert ReplicaLoad.from_dict(json.loads(json.dumps(load.to_dict()))) == load


def test_measured_tokens_per_forward_reach_the_prediction() -> None:
    rung, other = self_speculation(8), diffusion(16, 3, 0.77)
    meter = TokensPerForward()
    for _ in range(50):
        meter.observe(rung, 6, 2)
        meter.observe(other, 6, 2)
    load = LoadMeter("a", 256, [rung]).read(stats(tokens_per_forward=meter.to_dict()), 1.0, {})
    [value] = load.tokens_per_forward.values()
    assert round(value, 9) == 3, "rungs that only a client's pin named are left out"
    calibrated = predict(
        replace(rung, expected_tokens_per_forward=3), Size(10, 60), replace(load, tokens_per_forward={})
    )
    assert predict(rung, Size(10, 60), load) == pytest.approx(calibrated)


def test_the_board_keeps_the_newest_report_and_adds_what_was_sent_since() -> None:
    board = LoadBoard()
    board.report(ReplicaLoad("a", at_s=5, queue_s=2))
    board.report(ReplicaLoad("a", at_s=4, queue_s=9))
    board.sent("a", "request", 1.5, 32)
    assert board.queue_s("a") == 3.5
    assert [(load.queue_s, load.slots, load.sequences) for load in board.loads()] == [(3.5, 32, 1)]
    assert board.place_of("request") == "a"
    board.report(ReplicaLoad("a", at_s=6, queue_s=3))
    assert board.queue_s("a") == 3


def test_the_board_follows_the_set_of_replicas_and_avoids_one_that_failed() -> None:
    board = LoadBoard()
    board.keep_only({"a", "b"})
    board.forget("a")
    board.keep_only({"a", "b"})
    board.report(ReplicaLoad("a", at_s=1))
    assert [load.replica for load in board.loads()] == ["b"]
    board.keep_only({"c"})
    assert [load.replica for load in board.loads()] == ["c"]


def test_a_replica_that_failed_is_given_another_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    board, now = LoadBoard(), 100.0
    monkeypatch.setattr("deployments.load_board.time.monotonic", lambda: now)
    board.forget("a")
    for now, known in ((109.9, []), (110.0, ["a"])):
        board.keep_only({"a"})
        board.report(ReplicaLoad("a", at_s=now))
        assert [load.replica for load in board.loads()] == known


def test_an_answer_met_the_mean_of_the_loads_at_both_its_ends() -> None:
    before = ReplicaLoad("a", slots=10, sequences=3, context=100, queue_s=1.0, timed_share=0.5)
    after = ReplicaLoad("a", slots=40, sequences=6, context=500, queue_s=9.0, timed_share=0.7)
    met = load_met(before, after, latency_s=2.5)
    assert (met.slots, met.sequences, met.context, met.timed_share) == (25, 4, 300, 0.0)
    assert met.queue_s == 2.5, "it waited for no more than it took"
    assert load_met(before, after, latency_s=0.5).queue_s == 1.0


@pytest.mark.parametrize("forward_s", [0.0, 0.05])
def test_what_deadlines_add_to_a_forward_is_without_its_base(forward_s: float) -> None:
    load = LoadMeter("a", 256).read(stats(timed_forward_s=forward_s), 1.0, {})
    assert load.timed_others_s == pytest.approx(max(0.0, forward_s - load.cost.base_s))


def test_a_quantile_starts_at_its_prior_and_then_follows_what_was_seen() -> None:
    seen = Quantile(prior=10, q=0.95, window=100, enough=20)
    seen.observe(1)
    assert seen.value == 10
    for value in range(1, 101):
        seen.observe(value)
    assert seen.value == 95


def test_lengths_are_bounded_by_max_tokens_and_by_similar_prompts() -> None:
    lengths = OutputLengths(prior_tokens=200, enough=3)
    assert lengths.bound(30, 64) == 64
    assert lengths.bound(30, 4000) == 200
    for _ in range(3):
        lengths.observe(30, 12)
    assert lengths.bound(20, 4000) == 12
    assert lengths.bound(300, 4000) == 200, "other prompt lengths are another bucket"
