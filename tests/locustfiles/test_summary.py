"""The report's numbers, from records whose answers are known."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from locustfiles.record import Record, read_records, write_records
from locustfiles.report.prediction import prediction
from locustfiles.report.summary import Summary, percentiles, rung_name, summaries
from tests.locustfiles.records_by_hand import RECORDS, fast, patient


@pytest.fixture
def total() -> Summary:
    return summaries(RECORDS, 10.0)[0]


@pytest.fixture
def kinds() -> dict[str, Summary]:
    return {kind.label: kind for kind in summaries(RECORDS, 10.0)[1]}


def test_who_was_offered_admitted_refused_and_failed(kinds: dict[str, Summary]) -> None:
    each = kinds["fast"]
    assert (each.offered, each.admitted, each.answered) == (8, 6, 4)
    assert each.refused == {"400": 1, "429": 1}
    assert each.errors == {"the stream ended before its end": 1, "status 400: no such field": 1}


def test_attainment_is_the_client_s_over_offered_and_admitted(kinds: dict[str, Summary]) -> None:
    each = kinds["fast"]
    assert each.in_time == 3
    assert each.attainment_of_offered == pytest.approx(3 / 8)
    assert each.attainment_of_admitted == pytest.approx(3 / 6)
    assert each.server_slo_met == 1.0
    assert kinds["patient"].attainment_of_offered is None
    assert not kinds["patient"].has_slo


def test_a_first_text_slo_counts_too() -> None:
    late_first = fast(0, 90.0, True, slo_ms=None, ttft_slo_ms=40.0)
    assert late_first.has_slo
    assert not late_first.in_time
    assert fast(0, 90.0, True, slo_ms=None, ttft_slo_ms=45.0).in_time


def test_goodput_needs_right_answers_in_time(kinds: dict[str, Summary], total: Summary) -> None:
    assert kinds["fast"].right_in_time == 2  # three right, one of them late
    assert kinds["fast"].goodput_per_s == pytest.approx(0.2)
    assert kinds["fast"].goodput_of_offered == pytest.approx(2 / 8)
    assert kinds["patient"].goodput_per_s == pytest.approx(0.1)
    assert total.goodput_per_s == pytest.approx(0.3)
    assert total.goodput_of_offered == pytest.approx(0.3)


def test_quality_delivered_beside_quality_expected(kinds: dict[str, Summary], total: Summary) -> None:
    assert kinds["fast"].delivered_quality == pytest.approx(3 / 4)
    assert kinds["fast"].expected_quality == pytest.approx(0.9)
    assert kinds["patient"].expected_quality is None
    assert total.delivered_quality == pytest.approx(4 / 6)
    assert total.delivered_where_expected == pytest.approx(3 / 4)


def test_without_right_answers_quality_is_not_counted() -> None:
    unknown = patient(0, True)
    unknown.right = None
    total, _ = summaries([unknown], 10.0)
    assert total.answered == 1
    assert (total.delivered_quality, total.goodput_per_s, total.goodput_of_offered) == (None, None, None)


def test_latencies_steps_and_accelerator_time(kinds: dict[str, Summary], total: Summary) -> None:
    each = kinds["fast"]
    assert each.total_ms == percentiles([60.0, 90.0, 95.0, 130.0])
    assert each.total_ms is not None
    assert (each.total_ms.p50, each.total_ms.p90, each.total_ms.p99) == (90.0, 130.0, 130.0)
    assert each.gap_ms is not None
    assert (each.gap_ms.count, each.gap_ms.p50, each.gap_ms.p90) == (8, 5.0, 15.0)
    assert each.refused_ms is not None
    assert (each.refused_ms.count, each.refused_ms.p99) == (2, 4.0)
    assert each.accelerator_s == pytest.approx(1.0)
    assert (each.denoise_steps, each.forwards, each.tokens_per_forward) == (4, 10, 2)
    assert total.accelerator_s == pytest.approx(3.0)
    assert total.tokens_per_forward == pytest.approx(120 / 50)


def test_percentiles_of_a_hundred_values() -> None:
    values = percentiles([float(value) for value in range(100, 0, -1)])
    assert (values.p50, values.p90, values.p95, values.p99) == (50.0, 90.0, 95.0, 99.0)
    assert percentiles([None]).p50 is None


def test_rungs_share_the_tokens(kinds: dict[str, Summary], total: Summary) -> None:
    assert kinds["fast"].rungs == {"diffusion n=8 K=2": 0.75, "ar": 0.25}
    assert total.rungs["self_speculation n=32"] == pytest.approx(40 / 120)


def test_a_rung_s_name_says_what_sets_it_apart() -> None:
    rung = {"decoding": "diffusion", "block_length": 16, "refinement_steps": 4, "threshold": 0.9, "audit": 0.3}
    assert rung_name(rung) == "diffusion n=16 K=4 t=0.9 audit=0.3"


def test_a_kind_that_was_refused_throughout_has_an_slo() -> None:
    _, (kind,) = summaries([Record(0, "k", "f", 0.0, status=429, code="slo_infeasible_under_load")], 10.0)
    assert kind.has_slo
    assert kind.attainment_of_offered == 0
    assert kind.attainment_of_admitted is None
    assert kind.goodput_per_s == 0


def test_predictions_compare_with_the_time_on_the_wire() -> None:
    seen = prediction(RECORDS)
    assert seen.overall is not None
    # 50, 80, 85 and 120 ms after sending, against 80 ms.
    assert seen.overall.answers == 4
    assert seen.overall.within == pytest.approx(0.5)
    assert seen.overall.ratio_p95 == pytest.approx(1.5)
    assert seen.overall.actual_p50_ms == pytest.approx(80.0)
    assert [mode.name for mode in seen.modes] == ["diffusion"]


def test_calibration_is_divided_by_size_of_the_prediction() -> None:
    records = []
    for number in range(200):
        # Predictions of 1 to 200 ms; the larger half is kept, the smaller half never.
        predicted_ms = number + 1.0
        actual_ms = predicted_ms * (0.5 if number >= 100 else 2.0)
        records.append(fast(number, actual_ms + 10.0, True, predicted_p95_ms=predicted_ms))
    deciles = prediction(records).deciles
    assert [group.answers for group in deciles] == [20] * 10
    assert [group.within for group in deciles] == [0.0] * 5 + [1.0] * 5
    assert deciles[9].predicted_ms == pytest.approx(190.0)


def test_no_predictions_is_no_error() -> None:
    assert prediction([patient(0, True)]).overall is None


def test_records_survive_their_file(tmp_path: Path) -> None:
    write_records(tmp_path / "r.jsonl", RECORDS)
    assert [asdict(each) for each in read_records(tmp_path / "r.jsonl")] == [asdict(each) for each in RECORDS]


def test_a_broken_record_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    write_records(file, RECORDS[:2])
    file.write_text(file.read_text() + '{"number": 1}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl:3: "):
        read_records(file)
