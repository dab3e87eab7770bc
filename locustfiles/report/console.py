"""The report in the terminal: one line per kind of request, and what matters most beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from locustfiles.report.files import Report
    from locustfiles.report.summary import Percentiles

HEAD = (
    f"{'kind':26}{'offered':>8}{'refused':>8}{'errors':>7}{'SLO met':>9}{'admitted':>9}{'right':>7}{'goodput/s':>10}"
    f"{'first p50':>10}{'p95':>7}{'total p50':>10}{'p95':>7}{'steps':>6}{'accel s':>8}"
)


def as_text(report: Report) -> str:
    """A table for a person at a terminal."""
    lines = ["", HEAD]
    for each in (*report.kinds, report.total):
        lines.append(
            f"{each.label:26}{each.offered:8}{sum(each.refused.values()):8}{sum(each.errors.values()):7}"
            f"{percent(each.attainment_of_offered):>9}{percent(each.attainment_of_admitted):>9}"
            f"{percent(each.delivered_quality):>7}{number(each.goodput_per_s, 2):>10}{ms(each.first_ms, 'p50'):>10}"
            f"{ms(each.first_ms, 'p95'):>7}{ms(each.total_ms, 'p50'):>10}{ms(each.total_ms, 'p95'):>7}"
            f"{number(each.denoise_steps, 1):>6}{each.accelerator_s:8.2f}"
        )
    lines.append("times in ms from the scheduled arrival; SLO met: of the offered, then of the admitted")
    overall = report.prediction.overall
    if overall is not None:
        lines.append(
            f"predictions: {overall.within:.1%} of {overall.answers} answers within their predicted p95; "
            f"p95 of actual over predicted {overall.ratio_p95:.2f}"
        )
    cluster = report.cluster
    lines.append(f"replicas: {cluster.mean_replicas:.1f} on average, {cluster.most_replicas} at most")
    for use in cluster.processes[:6]:
        lines.append(f"CPU {use.name:28}{use.seconds:8.1f} s{use.mean:7.2f} cores, at most {use.peak:.2f}")
    refusals = report.run.get("refusals")
    if refusals and refusals["router_ms"] is not None:
        lines.append(
            f"refusals: {refusals['refusals']}, {refusals['router_ms']:.2f} ms of the router's CPU each "
            f"(at most {refusals['target_ms']:g} wanted)"
        )
    elif refusals:
        lines.append(f"refusals: {refusals['refusals']} (others: {refusals['others']}); the router's CPU was not seen")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def ms(values: Percentiles | None, which: str) -> str:
    value = None if values is None else getattr(values, which)
    return "-" if value is None else f"{value:.0f}"
