"""The measured curve of quality against refinement, and the ladder that follows from it.

`python -m benchmarks.quality_curve --model DIR --output DIR` answers the small model's test tasks with every rung (step
budgets, thresholds, block lengths, AR and self-speculation beside them), writes `quality.json` and `quality.png`, and
from the calibration split `ladder.json`; `quality.json` and `ladder.json` are put beside the checkpoint as well, where
the engine and the planner read them. Every cell is a JSON lines file in DIR/cells: a run that was stopped goes on where
it was. Cells that `--minutes` leaves no time for are listed as missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.ladder_choice import choose_ladder, linear_fit
from benchmarks.machine import machine
from benchmarks.quality_cells import (
    BUDGETS,
    Cell,
    candidate,
    ladder_rungs,
    measure,
    measured_rungs,
    read_cell,
    summary,
    tasks_of,
)
from benchmarks.quality_plot import plot
from engine.config import EngineConfig
from engine.llm import LLM
from engine.plan import AR, diffusion, self_speculation

CHECKPOINT = Path(__file__).parent.parent / "engine" / "tiny" / "checkpoint"
LINEAR_BLOCK = 32
_llm: LLM


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, fits, plots and writes."""
    options = _options(arguments)
    cells_dir = options.output / "cells"
    cells_dir.mkdir(parents=True, exist_ok=True)
    cells = wanted_cells(options.prompts, options.calibration_prompts, options.alone_prompts)
    left = [cell for cell in cells if read_cell(cells_dir / f"{cell.name}.jsonl", cell.prompts) is None]
    print(f"{len(cells)} cells, {len(cells) - len(left)} of them measured before", flush=True)
    deadline = time.time() + 60 * options.minutes
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, _load, (options.model, options.batch)) as pool:
        for note in pool.imap_unordered(_run, [(cell, cells_dir, deadline) for cell in left]):
            print(note, flush=True)
    report = quality_report(cells, cells_dir, options)
    _write(options.output / "quality.json", report)
    plot(report, options.output / "quality.png")
    ladder = build_ladder(cells, cells_dir, report)
    _write(options.output / "ladder.json", ladder)
    if options.install and ladder["rungs"]:
        for name in ("quality.json", "ladder.json"):
            shutil.copyfile(options.output / name, options.model / name)
    print_summary(report, ladder)


def wanted_cells(prompts: int, calibration_prompts: int, alone_prompts: int) -> list[Cell]:
    """All cells, the ones that the ladder and the bar need before the rest of the curve."""
    test = [Cell(rung, "test", prompts) for rung in measured_rungs()]
    calibration = [Cell(rung, "calibration", calibration_prompts) for rung in ladder_rungs()]
    alone = [Cell(rung, "calibration", alone_prompts, alone=True) for rung in ladder_rungs()]
    return [*calibration, *alone, *test]


def quality_report(cells: Sequence[Cell], cells_dir: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`quality.json`: every measured cell with its numbers per task, the linearity check, and how it was made."""
    entries, missing = [], []
    rows_of: dict[Any, list[dict[str, Any]]] = {}
    for cell in cells:
        rows = read_cell(cells_dir / f"{cell.name}.jsonl", cell.prompts)
        if rows is None:
            missing.append(cell.name)
            continue
        if cell.alone:
            continue
        rung = cell.rung.to_dict()
        policy = {name: rung[name] for name in ("decoding", "block_length", "refinement_steps", "threshold", "audit")}
        entries.append({"split": cell.split, **policy, **summary(rows)})
        if cell.split == "test":
            rows_of[cell.rung.policy()] = rows
    return {
        "model": options.model.name if options.model != CHECKPOINT else "stepdial-tiny",
        "command": "python -m benchmarks.quality_curve " + " ".join(
            f"--{name} {getattr(options, name.replace('-', '_'))}"
            for name in ("prompts", "calibration-prompts", "alone-prompts", "batch", "workers")
        ),
        "machine": machine() | {"torch_threads": 1},
        "cells": entries,
        "missing": missing,
        "linearity": linearity(rows_of),
        "self_speculation_differs_from_ar": _differences(rows_of),
    }  # fmt: skip


def linearity(rows_of: dict[Any, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """Forwards and compute seconds per answer against K at block 32 without early commit: line and R2."""
    points = []
    for steps in BUDGETS:
        rows = rows_of.get(diffusion(LINEAR_BLOCK, steps).policy())
        if rows:
            forwards = sum(row["forwards"] for row in rows) / len(rows)
            points.append((steps, forwards, sum(row["compute_ms"] for row in rows) / len(rows) / 1e3))
    if len(points) < 3:
        return None
    budgets = [float(point[0]) for point in points]
    result: dict[str, Any] = {"block_length": LINEAR_BLOCK, "refinement_steps": budgets}
    for place, name in ((1, "forwards"), (2, "compute_s")):
        values = [point[place] for point in points]
        intercept, slope, r2 = linear_fit(budgets, values)
        result[name] = {"values": values, "intercept": intercept, "slope": slope, "r2": r2}
    return result


def build_ladder(cells: Sequence[Cell], cells_dir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """`ladder.json` from the calibration split."""
    candidates = []
    found: dict[Any, dict[bool, list[dict[str, Any]]]] = {}
    for cell in cells:
        rows = read_cell(cells_dir / f"{cell.name}.jsonl", cell.prompts)
        if cell.split == "calibration" and rows is not None:
            found.setdefault(cell.rung, {})[cell.alone] = rows
    for rung, parts in found.items():
        if len(parts) == 2:
            candidates.append(candidate(rung, parts[False], parts[True]))
    measured = {
        "split": "calibration",
        "quality": "exact match, Wilson lower bound (95%, one-sided), isotonic over budgets",
        "prompts": max((row.prompts for row in candidates), default=0),
        "temperature": 0.0,
        "candidates": len(candidates),
        "machine": report["machine"],
        "command": report["command"],
    }
    return {
        "model": report["model"],
        "measured": measured,
        "rungs": [rung.to_dict() for rung in choose_ladder(candidates)],
    }


def print_summary(report: dict[str, Any], ladder: dict[str, Any]) -> None:
    """The curve as a table, and the ladder."""
    print(
        f"{'split':12}{'decoding':18}{'n':>4}{'K':>4}{'thr':>6}{'audit':>7}{'exact':>8}{'logp':>8}{'TPF':>7}{'ms':>8}"
    )
    for cell in report["cells"]:
        threshold = "" if cell["threshold"] is None else cell["threshold"]
        logprob = "" if cell["audit_logprob"] is None else f"{cell['audit_logprob']:.3f}"
        print(
            f"{cell['split']:12}{cell['decoding']:18}{cell['block_length']:4}{cell['refinement_steps']:4}{threshold!s:>6}"
            f"{cell['audit']!s:>7}{cell['exact_match']:8.3f}{logprob:>8}{cell['tokens_per_forward']:7.2f}"
            f"{cell['compute_ms']:8.2f}"
        )
    if report["linearity"]:
        line = report["linearity"]
        print(f"linear in K: forwards R2 {line['forwards']['r2']:.4f}, compute R2 {line['compute_s']['r2']:.4f}")
    print(f"self-speculation differs from AR: {report['self_speculation_differs_from_ar']}")
    print("ladder:")
    for rung in ladder["rungs"]:
        print(f"  {rung}")
    if report["missing"]:
        print(f"missing: {', '.join(report['missing'])}")


def _differences(rows_of: dict[Any, list[dict[str, Any]]]) -> dict[str, int]:
    """Answers of self-speculation whose tokens are not AR's, by block length; at temperature 0 there must be none."""
    ar = rows_of.get(AR.policy(), [])
    return {
        str(length): sum(mine["ids"] != other["ids"] for mine, other in zip(rows, ar, strict=True))
        for length in (4, 8, 16, 32)
        if (rows := rows_of.get(self_speculation(length).policy())) and ar
    }


def _load(model: Path, batch: int) -> None:
    """A worker's engine. Prefixes are not shared between cells, or the first would pay for the others."""
    global _llm
    _llm = LLM(model, EngineConfig(dtype="float32", threads=1, max_sequences=batch, prefix_reuse=False))


def _run(job: tuple[Cell, Path, float]) -> str:
    """Measures one cell in a worker and writes its file, whole or not at all."""
    cell, cells_dir, deadline = job
    file = cells_dir / f"{cell.name}.jsonl"
    if read_cell(file, cell.prompts) is not None:
        return f"{cell.name}: measured by another run meanwhile"
    if time.time() > deadline:
        return f"no time left for {cell.name}"
    torch.set_num_threads(1)
    begun = time.perf_counter()
    rows = measure(_llm, cell, tasks_of(cell.split, cell.prompts))
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.rename(file)
    exact = sum(row["exact"] for row in rows) / len(rows)
    return f"{cell.name}: exact {exact:.3f} in {time.perf_counter() - begun:.1f} s"


def _write(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=1) + "\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="checkpoint directory")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quality"), help="folder of the report")
    parser.add_argument("--prompts", type=int, default=1000, help="test prompts per cell")
    parser.add_argument("--calibration-prompts", type=int, default=500, help="prompts per cell for the ladder")
    parser.add_argument("--alone-prompts", type=int, default=20, help="prompts answered one at a time, for the ladder")
    parser.add_argument("--batch", type=int, default=64, help="sequences in one engine batch")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--minutes", type=float, default=15.0, help="no cell is begun after so long")
    parser.add_argument(
        "--install", action=argparse.BooleanOptionalAction, default=True, help="also write beside the checkpoint"
    )
    return parser.parse_args(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
