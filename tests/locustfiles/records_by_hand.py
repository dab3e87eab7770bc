"""A run with known answers: ten requests in ten seconds, of two kinds."""

from __future__ import annotations

from typing import Any

from locustfiles.record import Record

RUN: dict[str, Any] = {
    "title": "By hand", "purpose": "numbers that a person can check", "started_at": "2026-01-01T00:00:00+00:00",
    "command": "locust <b>", "host": "http://127.0.0.1:1", "seed": 1, "span_s": 10.0, "drained_s": 11.0, "end_s": 12.0,
    "at_once": None, "arrivals": {"arrivals": "by hand"}, "machine": {"cores": 2}, "cpu_problem": None,
    "refusals": None,
}  # fmt: skip


def fast(number: int, total_ms: float, right: bool, **more: Any) -> Record:
    """An answer with an SLO of 100 ms, a prediction of 80 ms and an expected quality of 0.9."""
    said = {
        "tier": "realtime", "slo_ms": 100.0, "ttft_slo_ms": None, "slo_met": True, "predicted_p95_ms": 80.0,
        "expected_quality": 0.9, "decoding": "diffusion", "denoise_steps": 4, "draft_steps": 0, "forwards": 10,
        "accelerator_ms": 250.0, "queue_ms": 1.0,
        "plan": [
            {"from_token": 0, "decoding": "diffusion", "block_length": 8, "refinement_steps": 2},
            {"from_token": 15, "decoding": "ar", "block_length": 1, "refinement_steps": None},
        ],
    }  # fmt: skip
    return Record(
        number, "fast", "gap", float(number), lag_ms=1.0, sent_ms=10.0, status=200, first_ms=total_ms / 2,
        total_ms=total_ms, gaps_ms=[5.0, 15.0], right=right, completion_tokens=20, said={**said, **more},
    )  # fmt: skip


def patient(number: int, right: bool) -> Record:
    """An answer without an SLO or a prediction."""
    said = {
        "tier": "batch", "decoding": "self_speculation", "draft_steps": 3, "forwards": 5, "accelerator_ms": 1000.0,
        "plan": [{"from_token": 0, "decoding": "self_speculation", "block_length": 32, "refinement_steps": 1}],
    }  # fmt: skip
    return Record(
        number, "patient", "code", float(number), status=200, first_ms=900.0, total_ms=1000.0, right=right,
        completion_tokens=20, said=said,
    )  # fmt: skip


RECORDS = [
    fast(0, 60.0, True),
    fast(1, 90.0, True),
    fast(2, 95.0, False),
    fast(3, 130.0, True),  # late by the client's clock
    Record(4, "fast", "gap", 4.0, status=429, code="slo_infeasible_under_load", total_ms=2.0),
    Record(5, "fast", "gap", 5.0, status=400, code="slo_infeasible", total_ms=4.0),
    Record(6, "fast", "gap", 6.0, status=200, error="the stream ended before its end"),
    Record(7, "fast", "gap", 7.0, status=400, code="invalid_value", error="status 400: no such field"),
    patient(8, True),
    patient(9, False),
]
