"""The cells of the quality curve: which rungs are measured, on what, and what one measurement is."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ladder_choice import Candidate, wilson_low
from engine.llm import LLM, Output
from engine.plan import AR, Decoding, Rung, diffusion, self_speculation
from engine.request import GenerationOptions
from engine.tiny.tasks import Split, Task, generate

BLOCK_LENGTHS = (4, 8, 16, 32)
BUDGETS = (1, 2, 4, 8, 16, 32)
THRESHOLDS = (0.5, 0.7, 0.9, 0.95, 0.99)
TOLERANCES = (0.5, 0.1)
TASK_SEED = 7
MAX_TOKENS = 288


@dataclass(frozen=True, slots=True)
class Cell:
    """A rung measured on a split. `alone`: one prompt at a time, for the time of a lone answer."""

    rung: Rung
    split: Split
    prompts: int
    alone: bool = False

    @property
    def name(self) -> str:
        rung = self.rung
        parts = [self.split, rung.decoding.value, f"n{rung.block_length}", f"k{rung.refinement_steps}"]
        if rung.threshold is not None:
            parts.append(f"t{rung.threshold}")
        if rung.tolerance is not None:
            parts.append(f"audit{rung.tolerance}")
        return "-".join([*parts, f"{self.prompts}{'alone' if self.alone else ''}"])


def measured_rungs() -> list[Rung]:
    """All rungs of the report, the ones that the bar names first."""
    bar = [AR, *(self_speculation(length) for length in BLOCK_LENGTHS)]
    bar += [diffusion(32, steps) for steps in (1, 2, 4, 8, 32)]
    bar += [diffusion(length, length) for length in (8, 4, 16)]
    budgets = [diffusion(length, steps) for length in reversed(BLOCK_LENGTHS) for steps in BUDGETS if steps <= length]
    thresholds = [diffusion(length, None, 0.9) for length in BLOCK_LENGTHS]
    thresholds += [diffusion(length, None, value) for value in THRESHOLDS for length in (32, 8)]
    return list(dict.fromkeys([*bar, *thresholds, *budgets]))


def ladder_rungs() -> list[Rung]:
    """Rungs that may enter a ladder: exact ones, small budgets with and without early commit, and tolerances.

    A budget of more than 8 steps costs more than self-speculation and is no better, so none is tried.
    """
    lossy = [
        diffusion(length, steps, threshold)
        for threshold in (None, 0.9)
        for length in (8, 16, 32)
        for steps in ((1, 2, 4) if threshold is None else (2, 4, 8))
    ]
    tolerant = [diffusion(length, 1, None, tolerance) for length in (8, 16) for tolerance in TOLERANCES]
    return [AR, *(self_speculation(length) for length in BLOCK_LENGTHS), *lossy, *tolerant]


def tasks_of(split: Split, count: int) -> list[Task]:
    """The same prompts for every cell."""
    return list(generate(split, count, TASK_SEED))


def options_of(rung: Rung) -> GenerationOptions:
    """Greedy options that pin `rung`. The audit `score` reads the log-probability and changes no token."""
    fields: dict[str, Any] = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "decoding": rung.decoding.value}
    if rung.decoding is Decoding.AR:
        return GenerationOptions(**fields, audit="score")
    fields["block_length"] = rung.block_length
    if rung.is_diffusion:
        fields |= {"refinement_steps": rung.refinement_steps, "threshold": rung.threshold}
        fields["audit"] = "score" if rung.audit == "off" else rung.audit
    return GenerationOptions(**fields)


def measure(llm: LLM, cell: Cell, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """One row per prompt: whether it was answered exactly, and what it cost."""
    options = options_of(cell.rung)
    prompts = [llm.encode(task.messages) for task in tasks]
    groups = [[prompt] for prompt in prompts] if cell.alone else [prompts]
    outputs = [output for group in groups for output in llm.generate(group, options, progress=False)]
    return [_row(task, output) for task, output in zip(tasks, outputs, strict=True)]


def _row(task: Task, output: Output) -> dict[str, Any]:
    report = output.report
    if report is None:
        raise RuntimeError("an answer ended without a report")
    return {
        "task": task.task,
        "exact": output.text == task.answer,
        "tokens": len(output.token_ids),
        "forwards": report.forwards,
        "steps": report.denoise_steps + report.draft_steps,
        "compute_ms": round(report.accelerator_ms, 4),
        "latency_ms": round(report.latency_ms, 4),
        "audit_logprob": report.audit_logprob,
        "finish_reason": output.finish_reason,
        "ids": output.token_ids,
    }


def read_cell(file: Path, prompts: int) -> list[dict[str, Any]] | None:
    """The rows of a finished cell, None where it was not measured or not to its end."""
    if not file.exists():
        return None
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    return rows if len(rows) == prompts else None


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A cell's numbers: over all prompts, and per task."""
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    return _numbers(rows) | {"by_task": {task: _numbers(part) for task, part in sorted(by_task.items())}}


def candidate(rung: Rung, rows: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> Candidate:
    """What the choice of a ladder needs to know of a rung."""
    numbers = _numbers(rows)
    return Candidate(
        rung=rung,
        exact=sum(row["exact"] for row in rows),
        prompts=len(rows),
        batched_ms=numbers["compute_ms"],
        alone_ms=sum(row["latency_ms"] for row in alone) / len(alone),
        tokens_per_forward=numbers["tokens_per_forward"],
    )


def _numbers(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    count = len(rows)
    exact = sum(row["exact"] for row in rows)
    scored = [(row["audit_logprob"], row["tokens"]) for row in rows if row["audit_logprob"] is not None]
    weight = sum(tokens for _, tokens in scored)
    # A prompt is read in one forward; the rest make tokens.
    forwards = sum(row["forwards"] - 1 for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    return {
        "prompts": count,
        "exact_match": exact / count,
        "exact_match_low": wilson_low(exact, count),
        "audit_logprob": sum(value * tokens for value, tokens in scored) / weight if weight else None,
        "tokens": tokens / count,
        "tokens_per_forward": tokens / max(forwards, 1),
        "forwards": sum(row["forwards"] for row in rows) / count,
        "steps": sum(row["steps"] for row in rows) / count,
        "compute_ms": sum(row["compute_ms"] for row in rows) / count,
    }
