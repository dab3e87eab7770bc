"""The numbers of each kind of request: attainment, quality-goodput, latencies, rungs, accelerator time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from deployments.history import quantile
from locustfiles.record import Record

ALL = "all"


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a number of values; None where there was none."""

    count: int
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


@dataclass(slots=True)
class Summary:
    """What became of one kind of request.

    Attributes:
        tiers: the tiers that answered.
        offered: arrivals. refused: by HTTP status, before any forward. errors: by text. answered: complete answers.
        admitted: offered and not refused; an error counts as admitted.
        has_slo: whether these requests have an SLO. in_time: answers within it by the client's clock.
        attainment_of_offered, attainment_of_admitted: `in_time` over these; None without an SLO.
        server_slo_met: share of the answers with an SLO that say `slo_met`.
        right: right answers among `checked` ones. delivered_quality: their share.
        expected_quality, delivered_where_expected: means over the checked answers that state an expected quality.
        right_in_time: right answers within their SLO; where none is stated, right answers.
        goodput_per_s: those per second of arrivals. goodput_of_offered: those over the requests offered. Both None
            where no answer could be checked.
        first_ms, gap_ms, total_ms: to the first block, between blocks, to the last byte. queue_ms: as the engine says.
        refused_ms: time of a refusal. lag_ms: how late the load generator was.
        rungs: share of output tokens by rung. denoise_steps, draft_steps, forwards, tokens: means per answer.
        tokens_per_forward: tokens over forwards, all answers. accelerator_s: sum of the answers' shares.
    """

    label: str
    tiers: list[str] = field(default_factory=list)
    offered: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    admitted: int = 0
    answered: int = 0
    has_slo: bool = False
    in_time: int = 0
    attainment_of_offered: float | None = None
    attainment_of_admitted: float | None = None
    server_slo_met: float | None = None
    checked: int = 0
    right: int = 0
    delivered_quality: float | None = None
    expected_quality: float | None = None
    delivered_where_expected: float | None = None
    right_in_time: int = 0
    goodput_per_s: float | None = None
    goodput_of_offered: float | None = None
    first_ms: Percentiles | None = None
    gap_ms: Percentiles | None = None
    total_ms: Percentiles | None = None
    queue_ms: Percentiles | None = None
    refused_ms: Percentiles | None = None
    lag_ms: Percentiles | None = None
    rungs: dict[str, float] = field(default_factory=dict)
    denoise_steps: float | None = None
    draft_steps: float | None = None
    forwards: float | None = None
    tokens: float | None = None
    tokens_per_forward: float | None = None
    accelerator_s: float = 0.0


def percentiles(values: Iterable[float | None]) -> Percentiles:
    """p50 to p99 of the values that are there."""
    known = [value for value in values if value is not None]
    if not known:
        return Percentiles(0, None, None, None, None)
    return Percentiles(len(known), *(quantile(known, q) for q in (0.5, 0.9, 0.95, 0.99)))


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def summaries(records: Sequence[Record], span_s: float) -> tuple[Summary, list[Summary]]:
    """Of all records, and of each kind in order of first arrival; `span_s` is the time in which they arrived."""
    labels = list(dict.fromkeys(record.label for record in records))
    kinds = [summary(label, [each for each in records if each.label == label], span_s) for label in labels]
    return summary(ALL, records, span_s), kinds


def summary(label: str, records: Sequence[Record], span_s: float) -> Summary:
    """The numbers of one kind."""
    refused = [record for record in records if record.refused]
    answered = [record for record in records if record.answered]
    bounded = [record for record in answered if record.has_slo]
    checked = [record for record in answered if record.right is not None]
    expecting = [record for record in checked if record.said.get("expected_quality") is not None]
    in_time = sum(record.in_time for record in answered)
    right_in_time = sum(bool(record.right) and record.in_time for record in checked)
    said = [record.said for record in answered]
    forwards = sum(each.get("forwards", 0) for each in said)
    tokens = sum(record.completion_tokens for record in answered)
    # A kind that was refused throughout says so by its refusals: without an SLO nothing is refused for time.
    has_slo = bool(bounded) or any((record.code or "").startswith("slo_") for record in refused)
    result = Summary(
        label,
        tiers=sorted({each["tier"] for each in said if each.get("tier")}),
        offered=len(records),
        refused=dict(sorted(Counter(str(record.status) for record in refused).items())),
        errors=dict(Counter(record.error for record in records if record.error is not None)),
        admitted=len(records) - len(refused),
        answered=len(answered),
        has_slo=has_slo,
        in_time=in_time,
        checked=len(checked),
        right=sum(bool(record.right) for record in checked),
        right_in_time=right_in_time,
        first_ms=percentiles(record.first_ms for record in answered),
        gap_ms=percentiles(gap for record in answered for gap in record.gaps_ms),
        total_ms=percentiles(record.total_ms for record in answered),
        queue_ms=percentiles(each.get("queue_ms") for each in said),
        refused_ms=percentiles(record.total_ms for record in refused),
        lag_ms=percentiles(record.lag_ms for record in records),
        rungs=rung_shares(answered),
        accelerator_s=sum(each.get("accelerator_ms") or 0.0 for each in said) / 1e3,
    )
    if has_slo:
        result.attainment_of_offered = share(in_time, len(records))
        result.attainment_of_admitted = share(in_time, result.admitted)
        result.server_slo_met = share(sum(each.said.get("slo_met") is True for each in bounded), len(bounded))
    result.delivered_quality = share(result.right, len(checked))
    if expecting:
        result.expected_quality = fmean(record.said["expected_quality"] for record in expecting)
        result.delivered_where_expected = fmean(bool(record.right) for record in expecting)
    if checked or (records and not answered):
        result.goodput_per_s = right_in_time / span_s if span_s > 0 else None
        result.goodput_of_offered = share(right_in_time, len(records))
    if said:
        result.denoise_steps = fmean(each.get("denoise_steps", 0) for each in said)
        result.draft_steps = fmean(each.get("draft_steps", 0) for each in said)
        result.forwards = forwards / len(said)
        result.tokens = tokens / len(said)
        result.tokens_per_forward = tokens / forwards if forwards else None
    return result


def rung_shares(records: Sequence[Record]) -> dict[str, float]:
    """Share of the output tokens that were made on each rung, most used first."""
    made: Counter[str] = Counter()
    for record in records:
        plan = record.said.get("plan") or []
        starts = [entry["from_token"] for entry in plan[1:]]
        for entry, end in zip(plan, [*starts, record.completion_tokens], strict=True):
            made[rung_name(entry)] += max(0, end - entry["from_token"])
    total = sum(made.values())
    return {name: count / total for name, count in made.most_common()} if total else {}


def rung_name(entry: dict[str, Any]) -> str:
    """A rung in a few characters: mode, block length, and what else sets it apart."""
    decoding = entry["decoding"]
    if decoding == "ar":
        return "ar"
    name = f"{decoding} n={entry['block_length']}"
    if decoding == "diffusion":
        name += f" K={entry['refinement_steps']}"
        if entry.get("threshold") is not None:
            name += f" t={entry['threshold']:g}"
        if entry.get("audit") not in (None, "off"):
            name += f" audit={entry['audit']}"
    return name
