"""The scheduler's benchmark: what it times is the engine's own loop, on a clock that only forwards move."""

from __future__ import annotations

import pytest

from benchmarks.command import CHECKPOINT
from benchmarks.policy_run import new_engine
from benchmarks.scheduler_overhead import INSIDE, PARTS, DrawnExecutor, drawn, judge
from engine.batch import Segment
from engine.cost_model import ForwardCost
from engine.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine(CHECKPOINT, 4096)


def test_a_drawn_forward_takes_what_its_cost_says(engine: Engine) -> None:
    executor = DrawnExecutor(engine.core.executor, ForwardCost(1e-3, 0.0, 1e-4, 0.0), seed=0)
    batch = executor.batch([Segment([5, 6, 7, 8], 0, True, False, [3], [1])])
    logits = executor.run(batch)
    assert executor.now_s == pytest.approx(1e-3 + 4e-4)
    assert logits.shape == (1, engine.model_config.vocab_size)


def test_every_part_of_the_decisions_is_timed(engine: Engine) -> None:
    row = drawn(engine, count=6, steps=12, seed=0)
    assert row["steps"] == 12
    assert set(row["parts_us"]) == {*PARTS, *INSIDE}
    assert all(row["parts_us"][name] > 0 for name in ("deadlines and prices", "slots and pages"))
    assert 0 < row["parts_us"]["sharing slots"] < row["parts_us"]["slots and pages"]
    assert row["p95_us"] >= row["p50_us"] > row["decisions_p50_us"] > 0


def test_the_bar_is_a_millisecond_with_256_sequences() -> None:
    rows = [{"sequences": 8, "decisions_p50_us": 5000.0}, {"sequences": 256, "decisions_p50_us": 900.0}]
    assert [passed for _, passed in judge(rows)] == [True]
    assert [passed for _, passed in judge([{"sequences": 256, "decisions_p50_us": 1100.0}])] == [False]
