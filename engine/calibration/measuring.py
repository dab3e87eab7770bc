"""One cell measured: answers as they come, one row of a JSON lines file each."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.events import Delta
from engine.llm import Output

if TYPE_CHECKING:
    from engine.calibration.cells import Cell
    from engine.calibration.prompts import Prompt
    from engine.engine import Engine
    from engine.request import GenerationOptions
    from engine.sequence import Sequence

Row = dict[str, Any]
FIELDS = frozenset(
    (
        "prompt",
        "sample",
        "of",
        "exact",
        "tokens",
        "forwards",
        "steps",
        "compute_ms",
        "latency_ms",
        "audit_logprob",
        "ids",
    )
)


@dataclass(frozen=True, slots=True)
class Job:
    """A cell with what is needed to measure it in another process.

    Attributes:
        file: where its rows go. max_tokens: longest answer.
        deadline_s: on `time.time`'s clock; what is not answered by then is left.
    """

    cell: Cell
    file: Path
    max_tokens: int
    deadline_s: float


def read_rows(file: Path, cell: Cell, prompts: Seq[Prompt]) -> list[Row] | None:
    """The cell's rows in order of prompt and sample, or None where some are missing. `prompts`: those of its split."""
    wanted = [(prompt, sample) for prompt in range(cell.prompts) for sample in range(cell.samples)]
    rows = _saved_rows(file, prompts)
    return [rows[place] for place in wanted] if all(place in rows for place in wanted) else None


def measure(
    engine: Engine,
    job: Job,
    prompts: Seq[Prompt],
    advance: Callable[[int], None],
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Measures what the cell's file lacks and appends it, row by row; True when the cell is complete.

    Args:
        prompts: those of the cell's split. advance: told how many answers were found or made.
        stopped: asked after every answer.
    """
    saved = _saved_rows(job.file, prompts)
    cell = job.cell
    wanted = [(prompt, sample) for prompt in range(cell.prompts) for sample in range(cell.samples)]
    missing = [place for place in wanted if place not in saved]
    advance(len(wanted) - len(missing))
    # Written anew without what a killed run left of its last line.
    partial = job.file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in saved.values()), encoding="utf-8")
    partial.replace(job.file)
    requests = [(prompts[prompt].token_ids, cell.options(sample, prompt, job.max_tokens)) for prompt, sample in missing]
    with job.file.open("a", encoding="utf-8") as file:
        for index, output in answers(engine, requests, cell.load):
            prompt, sample = missing[index]
            row = {"prompt": prompt, "sample": sample, **_row(prompts[prompt], output)}
            file.write(json.dumps(row) + "\n")
            file.flush()
            advance(1)
            if time.time() > job.deadline_s or stopped():
                break
    return read_rows(job.file, cell, prompts) is not None


def answers(
    engine: Engine, requests: Seq[tuple[Seq[int], GenerationOptions]], load: int
) -> Iterator[tuple[int, Output]]:
    """Answers all requests on the caller's thread with `load` of them in the engine at any time, as they finish.

    A sliding window and not batches of `load`: a batch's last answers would run nearly alone. An answer's latency
    starts when it enters the window. For engines whose loop was not started; leaving early frees what is running.
    """
    core = engine.core
    waiting = deque(enumerate(requests))
    running: dict[Sequence, tuple[int, Output]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < load:
                index, (prompt, options) = waiting.popleft()
                sequence = engine.intake.sequence(f"prompt-{index}", prompt, options, None, core.clock())
                core.add(sequence)
                running[sequence] = (index, Output())
            for sequence, event in core.step():
                index, output = running[sequence]
                if isinstance(event, Delta):
                    output.token_ids += event.token_ids
                    output.text += event.text
                else:
                    output.finish_reason, output.report = event.finish_reason, event.report
                    del running[sequence]
                    yield index, output
    finally:
        for sequence in running:
            core.cancel(sequence)


def _row(prompt: Prompt, output: Output) -> Row:
    report = output.report
    if report is None:
        raise RuntimeError("an answer ended without a report")
    return {
        "of": prompt.key,
        "exact": None if prompt.answer is None else output.text.strip() == prompt.answer.strip(),
        "tokens": len(output.token_ids),
        "forwards": report.forwards,
        "steps": report.denoise_steps + report.draft_steps,
        "compute_ms": round(report.accelerator_ms, 4),
        "latency_ms": round(report.latency_ms, 4),
        "audit_logprob": report.audit_logprob,
        "finish_reason": output.finish_reason,
        "ids": output.token_ids,
    }


def _saved_rows(file: Path, prompts: Seq[Prompt]) -> dict[tuple[int, int], Row]:
    """Whole rows of a file by prompt and sample. The last line of a killed run may be cut and is left out, and so are
    rows of a prompt that has become another one."""
    if not file.exists():
        return {}
    rows: dict[tuple[int, int], Row] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict) or not row.keys() >= FIELDS:
            continue
        if row["prompt"] < len(prompts) and row["of"] == prompts[row["prompt"]].key:
            rows[row["prompt"], row["sample"]] = row
    return rows
