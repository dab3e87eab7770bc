"""Loads: what the meter makes of counters, what the board keeps, and the quantiles of what was seen."""

from __future__ import annotations

from deployments.history import OutputLengths, Quantile
from deployments.load import LoadMeter, ReplicaLoad
from deployments.load_board import LoadBoard
from deployments.prediction import expected_forwards
from engine.cost_model import ForwardCostModel
from engine.decoding.rung_choice import TokensPerForward
from engine.plan import diffusion, self_speculation
from engine.stats import EngineStats


def stats(forwards: int, slots: int, forward_s: float, busy_s: float, running: int = 2) -> EngineStats:
    return EngineStats(
        running=running, forwards=forwards, slots={"look": slots}, forward_s=forward_s, busy_s=busy_s, queue_s=1.0,
        cost_model=ForwardCostModel().to_dict(),
    )  # fmt: skip


def test_the_meter_gives_means_of_the_last_window() -> None:
    meter = LoadMeter("a", 256)
    meter.read(stats(10, 100, 1.0, 1.1), 1.0, 60, 50, {})
    load = meter.read(stats(20, 700, 2.0, 2.3), 2.0, 60, 50, {"ar": 1.2})
    assert (load.slots, load.context) == (60, 50)
    assert abs(load.engine_s - 0.02) < 1e-12
    assert load.latency_tail == {"ar": 1.2}
    assert ReplicaLoad.from_dict(load.to_dict()) == load


def test_measured_tokens_per_forward_reach_the_prediction() -> None:
    rung, other = self_speculation(8), diffusion(16, 3, 0.77)
    meter = TokensPerForward()
    for _ in range(50):
        meter.observe(rung, 6, 2)
        meter.observe(other, 6, 2)
    running = stats(10, 100, 1.0, 1.1)
    running.tokens_per_forward = meter.to_dict()
    load = LoadMeter("a", 256, [rung]).read(running, 1.0, 0, 0, {})
    [value] = load.tokens_per_forward.values()
    assert round(value, 9) == 3, "rungs that only a client's pin named are left out"
    assert round(expected_forwards(rung, 60, load.tokens_per_forward), 9) == 20


def test_the_board_keeps_the_newest_report_and_adds_what_was_sent_since() -> None:
    board = LoadBoard()
    board.report(ReplicaLoad("a", at_s=5, queue_s=2))
    board.report(ReplicaLoad("a", at_s=4, queue_s=9))
    board.sent("a", "request", 1.5, 32)
    assert board.queue_s("a") == 3.5
    assert [(load.queue_s, load.slots) for load in board.loads()] == [(3.5, 32)]
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
