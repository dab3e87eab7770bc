"""The numbers of one measured cell: quality, AR log-probability and cost, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.calibration.bootstrap import Floats, Interval, mean_interval, rate_interval, ratio_interval

if TYPE_CHECKING:
    from engine.calibration.cells import Cell
    from engine.calibration.measuring import Row
    from engine.calibration.prompts import Metric, Prompt


def outcomes(
    rows: Sequence[Row], cell: Cell, metric: Metric, references: Sequence[Sequence[int]] | None
) -> Floats | None:
    """Quality per prompt, `[prompts]` in 0..1, the mean over a prompt's samples.

    Args:
        rows: in order of prompt and sample. references: AR's own tokens at temperature 0 per prompt of the split.

    Returns None where the metric needs references that were not measured.
    """
    if metric == "exact_match":
        values = [float(row["exact"]) for row in rows]
    elif references is None or len(references) < cell.prompts:
        return None
    else:
        values = [float(list(references[row["prompt"]]) == row["ids"]) for row in rows]
    means: Floats = np.asarray(values).reshape(cell.prompts, cell.samples).mean(axis=1)
    return means


def cell_entry(
    cell: Cell,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    metric: Metric,
    references: Sequence[Sequence[int]] | None,
    ar: Floats | None,
) -> dict[str, Any] | None:
    """A cell as `quality.json` holds it; None where its metric cannot be told (see `outcomes`).

    Args:
        ar: AR's outcomes on the same prompts, split and temperature, for the paired difference.
    """
    quality = outcomes(rows, cell, metric, references)
    if quality is None:
        return None
    rung = cell.rung.to_dict()
    entry: dict[str, Any] = {
        "split": cell.split,
        "temperature": cell.temperature,
        "load": cell.load,
        **{name: rung[name] for name in ("decoding", "block_length", "refinement_steps", "threshold", "audit")},
        "prompts": cell.prompts,
        "samples": cell.samples,
        "metric": metric,
        **_named("quality", rate_interval(quality)),
        "difference_to_ar": None if ar is None else asdict(_rounded(mean_interval(quality - ar))),
        **_log_probability(rows, cell),
        **costs(rows),
    }
    labels = [prompt.label for prompt in prompts[: cell.prompts]]
    entry["by_label"] = {label: _of_label(label, labels, quality) for label in sorted(set(labels))}
    answered = np.asarray([prompt.answer is not None for prompt in prompts[: cell.prompts]])
    if metric != "exact_match" and answered.any():
        values = np.asarray([np.nan if row["exact"] is None else float(row["exact"]) for row in rows])
        exact = values.reshape(cell.prompts, cell.samples).mean(axis=1)[answered]
        entry["exact_match"] = {"prompts": len(exact), **asdict(_rounded(rate_interval(exact)))}
    return entry


def costs(rows: Sequence[Row]) -> dict[str, float]:
    """Means per answer. A prompt is read in one forward; the others make tokens."""
    count = len(rows)
    tokens = sum(row["tokens"] for row in rows)
    return {
        "tokens": round(tokens / count, 3),
        "tokens_per_forward": round(tokens / max(sum(row["forwards"] - 1 for row in rows), 1), 4),
        "forwards": round(sum(row["forwards"] for row in rows) / count, 4),
        "steps": round(sum(row["steps"] for row in rows) / count, 4),
        "compute_ms": round(sum(row["compute_ms"] for row in rows) / count, 4),
        "latency_ms": round(sum(row["latency_ms"] for row in rows) / count, 4),
    }


def _log_probability(rows: Sequence[Row], cell: Cell) -> Mapping[str, float | None]:
    """Mean log p_AR of a token, over the tokens of scored answers; null where the rung's audit scores none."""
    shape = (cell.prompts, cell.samples)
    scored = [(row["audit_logprob"] or 0.0, 0 if row["audit_logprob"] is None else row["tokens"]) for row in rows]
    tokens = np.asarray([count for _, count in scored], dtype=np.float64)
    if not tokens.any():
        return {"audit_logprob": None, "audit_logprob_low": None, "audit_logprob_high": None}
    sums = np.asarray([value for value, _ in scored], dtype=np.float64) * tokens
    interval = ratio_interval(sums.reshape(shape).sum(axis=1), tokens.reshape(shape).sum(axis=1))
    return {**_named("audit_logprob", interval, places=5)}


def _of_label(label: str, labels: Sequence[str], quality: Floats) -> dict[str, float]:
    part = quality[np.asarray([own == label for own in labels])]
    return {"prompts": len(part), **_named("quality", rate_interval(part))}


def _named(name: str, interval: Interval, places: int = 4) -> dict[str, float]:
    rounded = _rounded(interval, places)
    return {name: rounded.value, f"{name}_low": rounded.low, f"{name}_high": rounded.high}


def _rounded(interval: Interval, places: int = 4) -> Interval:
    return Interval(round(interval.value, places), round(interval.low, places), round(interval.high, places))
