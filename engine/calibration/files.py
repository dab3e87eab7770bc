"""What a calibration leaves for the engine and the planner: `quality.json` and `ladder.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.calibration.bootstrap import Interval, linear_fit
from engine.calibration.cells import Split, describe, linear_block
from engine.calibration.frontier import Choice
from engine.calibration.prompts import METRICS, Metric
from engine.checkpoint.identity import IDENTITY_FIELD
from engine.machine import machine
from engine.plan import EQUAL_TO_AR, Rung

CURVE_FILE = "quality.json"
LADDER_FILE = "ladder.json"
INTERVALS = "percentile bootstrap over prompts, 95%, 2000 resamples; exact binomial bound where all outcomes are alike"


@dataclass(frozen=True, slots=True)
class Head:
    """What every file of a calibration says of itself."""

    model: str
    identity: str
    metric: Metric
    source: str
    prompts: Mapping[Split, int]
    loads: tuple[int, ...]
    temperatures: tuple[float, ...]
    dtype: str
    quantization: str
    workers: int
    threads: int
    max_tokens: int
    repeated: int
    command: str

    def measured(self) -> dict[str, Any]:
        """How the numbers were made."""
        return {
            "metric": self.metric,
            "metric_is": METRICS[self.metric],
            "intervals": INTERVALS,
            "evaluation_set": self.source,
            "prompts": dict(self.prompts),
            "repeated_prompts_left_out": self.repeated,
            "loads": list(self.loads),
            "temperature": 0.0,
            "temperatures": list(self.temperatures),
            "max_tokens": self.max_tokens,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "machine": {**machine(), "workers": self.workers, "torch_threads": self.threads},
            "command": self.command,
        }


def curve_file(
    head: Head,
    entries: Sequence[Mapping[str, Any]],
    missing: Sequence[str],
    differences: Mapping[str, Mapping[str, int]],
    block_size: int,
) -> dict[str, Any]:
    """`quality.json`: every measured cell, what is missing, and two checks of the engine."""
    return {
        "model": head.model,
        IDENTITY_FIELD: head.identity,
        "measured": head.measured(),
        "cells": list(entries),
        "missing": list(missing),
        "linearity": linearity(entries, linear_block(block_size)),
        "self_speculation_differs_from_ar": differences,
    }


def ladder_file(
    head: Head,
    choice: Choice,
    entries: Sequence[Mapping[str, Any]],
    above_zero: Mapping[Rung, Mapping[str, Interval]],
) -> dict[str, Any]:
    """`ladder.json`: the rungs that are offered, with their costs, and those that are not, with the reason.

    A rung's `expected_quality` is the lower bound on the selection split at temperature 0, `difference_to_ar` paired on
    the same prompts; `quality_at` has what was measured at others, on the test split.

    Args:
        entries: the curve's cells.
    """
    to_ar = {
        Rung.from_dict(dict(entry)).policy(): entry["difference_to_ar"]
        for entry in entries
        if entry["split"] == "selection"
    }
    rungs = []
    for row in choice.kept:
        difference = to_ar.get(row.rung.policy())
        rung = replace(
            row.rung,
            expected_quality=round(row.quality.low, 4),
            expected_tokens_per_forward=round(row.tokens_per_forward, 3),
            within_ar=difference is not None and difference["low"] >= -EQUAL_TO_AR,
        )
        at = {temperature: _dict(interval) for temperature, interval in above_zero.get(row.rung, {}).items()}
        cost = {str(load): round(value, 3) for load, value in sorted(row.cost_ms.items())}
        measured_of = {"quality": _dict(row.quality), "difference_to_ar": difference, "quality_at": at}
        rungs.append({**rung.to_dict(), **measured_of, "cost_ms_at_load": cost})
    omitted = [
        {
            **_policy(row.rung),
            "reason": row.reason,
            "dominated_by": {str(load): describe(rung) for load, rung in sorted(row.dominated_by.items())},
        }
        for row in choice.omitted
    ]
    measured = {
        **head.measured(),
        "chosen_on": "calibration",
        "split": "selection",
        "candidates": len(rungs) + len(omitted),
    }
    return {
        "model": head.model,
        IDENTITY_FIELD: head.identity,
        "measured": measured,
        "rungs": rungs,
        "omitted": omitted,
    }


def linearity(entries: Sequence[Mapping[str, Any]], block_length: int) -> dict[str, Any] | None:
    """Forwards and compute seconds per answer against the budget K without early commit (test split, temperature 0):
    the least-squares line and R2. None with fewer than three budgets."""
    cells = sorted(
        (
            cell
            for cell in entries
            if (cell["split"], cell["temperature"], cell["decoding"]) == ("test", 0, "diffusion")
            and (cell["block_length"], cell["threshold"], cell["audit"]) == (block_length, None, "off")
        ),
        key=lambda cell: int(cell["refinement_steps"]),
    )
    if len(cells) < 3:
        return None
    budgets = [float(cell["refinement_steps"]) for cell in cells]
    result: dict[str, Any] = {"block_length": block_length, "refinement_steps": budgets}
    for name, values in (
        ("forwards", [float(cell["forwards"]) for cell in cells]),
        ("compute_s", [cell["compute_ms"] / 1e3 for cell in cells]),
    ):
        intercept, slope, r2 = linear_fit(budgets, values)
        result[name] = {"values": values, "intercept": intercept, "slope": slope, "r2": r2}
    return result


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Writes an object with one line per entry of its lists, so that two runs can be compared line by line."""

    def text(value: Any) -> str:
        if isinstance(value, list) and value:
            return "[\n  " + ",\n  ".join(json.dumps(entry) for entry in value) + "\n ]"
        return json.dumps(value)

    lines = [f" {json.dumps(name)}: {text(value)}" for name, value in data.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _dict(interval: Interval) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(interval).items()}


def _policy(rung: Rung) -> dict[str, Any]:
    data = rung.to_dict()
    return {name: data[name] for name in ("decoding", "block_length", "refinement_steps", "threshold", "audit")}
