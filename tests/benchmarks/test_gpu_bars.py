"""The bars of the GPU benchmark, and what makes it fail."""

from __future__ import annotations

from typing import Any

import pytest

import benchmarks.gpu.__main__ as command
from benchmarks.gpu.bars import NOT_MEASURED, judge


def test_a_wrong_check_is_a_failure_and_a_missed_bar_is_not() -> None:
    def status(**row: Any) -> bool:
        return command.succeeded({"one": {"rows": [{"name": "a", **row}], "errors": []}})

    assert status(passed=True)
    assert status(over_eager=0.1)
    assert not status(passed=False)


def test_bars_are_judged_by_the_rows_they_name() -> None:
    def one(name: str, **figures: Any) -> dict[str, Any]:
        return {"rows": [{"name": name, **figures}], "errors": []}

    bars = judge(
        {
            "forward": {
                "rows": [
                    {"name": "14B, 1 x 512", "of_bandwidth": 0.78},
                    {"name": "14B narrow, 1 x 512", "of_bandwidth": 0.79},
                ],
                "errors": [],
            },
            "kernels": one(
                "head, 32 rows, greedy",
                over_eager=2.0,
                over_compiled=1.2,
                extra_bytes=5,
                eager_bytes=200,
                compiled_bytes=100,
            ),
            "end_to_end": {
                "rows": [
                    {"name": "engine, ar, 32", "tokens_per_s": 1300.0},
                    {"name": "reference, ar", "tokens_per_s": 100.0},
                ],
                "errors": [],
            },
        }
    )
    judged = {bar["bar"]: (bar["value"], bar["passed"]) for bar in bars}
    best = judged["14B, one canvas at 512: <= 1.25x its memory floor (the best form: 14B narrow)"]
    assert best == (pytest.approx(1 / 0.79), False)
    assert judged["14B, one canvas at 4096: <= 1.25x its memory floor"] == (None, NOT_MEASURED)
    assert judged["head, 32 rows, greedy: >= 1.3x torch's faster form"] == (1.2, False)
    assert judged["head, 32 rows, greedy: < 5% of the extra memory of torch's leaner form"] == (0.05, False)
    assert judged["tokens/s, ar, 32 at once: >= 12.0x the reference loop"] == (13.0, True)
    assert judged["tokens/s, ar, 1 at once: >= 1.5x the reference loop"] == (None, NOT_MEASURED)


def test_a_rival_that_was_not_measured_leaves_its_bar_open() -> None:
    row = {"name": "head, 32 rows, greedy", "over_eager": 2.0, "over_compiled": None}
    judged = {bar["bar"]: bar["passed"] for bar in judge({"kernels": {"rows": [row], "errors": []}})}
    assert judged["head, 32 rows, greedy: >= 1.3x torch's faster form"] == NOT_MEASURED
