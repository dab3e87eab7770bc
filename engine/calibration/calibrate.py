"""`stepdial calibrate`: measures a checkpoint's cells, chooses its ladder and writes both beside it.

Two passes: candidates on the calibration split, which choose the ladder; then the chosen rungs on the selection split,
the curve on the test split, and answers above temperature 0. Every answer is a row in a file, so a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.calibration.cells import Cell, Split, bar_rungs, candidate_rungs, curve_rungs, sampled_rungs
from engine.calibration.files import CURVE_FILE, LADDER_FILE, Head, curve_file, ladder_file, write_json
from engine.calibration.frontier import Candidate, Choice, Omission, choose, quality_intervals, remeasured
from engine.calibration.measuring import Job, Row, read_rows
from engine.calibration.options import SHIPPED, CalibrationOptions
from engine.calibration.prompts import EvaluationError, EvaluationSet, Limits, built_in_set, read_prompts
from engine.calibration.report import REPORT_FILE, report_text
from engine.calibration.summary import cell_entry, costs, outcomes
from engine.calibration.workers import WorkerSettings, measure_all
from engine.checkpoint.config import ModelConfig, problem_list
from engine.checkpoint.identity import checkpoint_identity
from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.weights import check_weights
from engine.errors import CheckpointError
from engine.plan import AR, Decoding, Rung

if TYPE_CHECKING:
    from engine.calibration.bootstrap import Floats

PICTURE_FILE = "quality.png"


class Calibration:
    """One run: its evaluation set, its cells' files, and what they say."""

    def __init__(self, options: CalibrationOptions) -> None:
        """Raises CheckpointError for the checkpoint, EvaluationError for the prompts."""
        self.options = options
        self.config = ModelConfig.from_dir(options.model)
        if problems := check_weights(options.model, self.config).problems:
            raise CheckpointError(problem_list(f"{options.model} cannot be loaded", problems))
        self.identity = checkpoint_identity(options.model)
        self.evaluation = self._evaluation_set()
        self.counts: dict[Split, int] = {split: len(rows) for split, rows in self.evaluation.splits.items()}
        self.full_load = max(options.loads)
        # Rows of other weights, prompts or lengths are never mixed: they lie in another folder.
        setting = [self.identity, self.evaluation.digest, options.max_tokens, options.dtype, options.quantization]
        self.cells_dir = options.output / "cells" / hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:12]
        self.deadline_s = float("inf") if options.minutes is None else time.time() + 60 * options.minutes
        self._rows: dict[Cell, list[Row]] = {}

    def run(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Measures, chooses and writes. Returns the curve and the ladder; None for the ladder where AR is missing."""
        self.cells_dir.mkdir(parents=True, exist_ok=True)
        first = self.candidate_cells()
        self._measure(first, "candidates")
        choice = self._choose()
        second = self.second_cells([row.rung for row in choice.kept])
        self._measure(second, "curve")
        choice = self._with_selection(choice)
        cells = [*first, *second]
        head = Head(
            model=self.options.name,
            identity=self.identity,
            metric=self.evaluation.metric,
            source=self.evaluation.source,
            prompts=self.counts,
            loads=tuple(sorted(self.options.loads)),
            temperatures=tuple(sorted(self.options.temperatures)),
            dtype=self.options.dtype,
            quantization=self.options.quantization,
            workers=self.options.workers,
            threads=self.options.threads,
            max_tokens=self.options.max_tokens,
            repeated=self.evaluation.repeated,
            command=self.options.command,
        )
        entries = [entry for cell in cells if (entry := self._entry(cell)) is not None]
        missing = [cell.name for cell in cells if self.rows(cell) is None]
        curve = curve_file(head, entries, missing, self._token_differences(cells), self.config.block_size)
        has_ar = any(row.is_ar for row in choice.kept)
        ladder = ladder_file(head, choice, entries, self._quality_above_zero(choice)) if has_ar else None
        self._write(curve, ladder, choice)
        return curve, ladder

    def candidate_cells(self) -> list[Cell]:
        """The calibration split: every candidate's quality and cost at the largest load, then its cost at others."""
        rungs = candidate_rungs(self.config.block_size)
        cells = [Cell(rung, "calibration", self.full_load, self.counts["calibration"]) for rung in rungs]
        for load in sorted(self.options.loads)[:-1]:
            count = min(max(self.options.load_prompts, 8 * load), self.counts["calibration"])
            cells += [Cell(rung, "calibration", load, count) for rung in rungs]
        return cells

    def second_cells(self, ladder: Sequence[Rung]) -> list[Cell]:
        """The chosen rungs on the selection split, the curve on the test split and the answers above temperature 0, the
        ones that the ladder and a reader need first before the rest."""
        block_size = self.config.block_size
        selection = [Cell(rung, "selection", self.full_load, self.counts["selection"]) for rung in [AR, *ladder]]
        test = [Cell(rung, "test", self.full_load, self.counts["test"]) for rung in [*bar_rungs(block_size), *ladder]]
        sampled = [
            Cell(rung, "test", self.full_load, self._sampled_prompts, temperature, self.options.samples)
            for temperature in sorted(self.options.temperatures)
            if temperature > 0
            for rung in sampled_rungs(block_size, list(ladder))
        ]
        rest = [Cell(rung, "test", self.full_load, self.counts["test"]) for rung in curve_rungs(block_size)]
        return list(dict.fromkeys([*selection, *test, *sampled, *rest]))

    @property
    def _sampled_prompts(self) -> int:
        return min(self.options.sampled_prompts, self.counts["test"])

    def candidates(self) -> list[Candidate]:
        """Candidates whose quality and cost at every load are measured."""
        qualities = self._qualities("calibration", candidate_rungs(self.config.block_size))
        cost_cells: dict[Rung, list[Cell]] = {}
        for cell in self.candidate_cells():
            cost_cells.setdefault(cell.rung, []).append(cell)
        found = []
        for rung, quality in qualities.items():
            measured = {cell.load: costs(rows) for cell in cost_cells[rung] if (rows := self.rows(cell)) is not None}
            if len(measured) == len(self.options.loads):
                cost = {load: row["latency_ms" if load == 1 else "compute_ms"] for load, row in measured.items()}
                found.append(Candidate(rung, quality, cost, measured[self.full_load]["tokens_per_forward"]))
        return found

    def rows(self, cell: Cell) -> list[Row] | None:
        """A complete cell's rows; None where some are missing."""
        if cell not in self._rows:
            rows = read_rows(self._file(cell), cell, self.evaluation.splits[cell.split])
            if rows is None:
                return None
            self._rows[cell] = rows
        return self._rows[cell]

    def _choose(self) -> Choice:
        """The ladder from the calibration split; candidates that there was no time for are left out, and said so."""
        candidates = self.candidates()
        choice = choose(candidates)
        measured = {row.rung for row in candidates}
        late = [rung for rung in candidate_rungs(self.config.block_size) if rung not in measured]
        omitted = [Omission(rung, "not measured on the calibration split in time", {}) for rung in late]
        return Choice(choice.kept, (*choice.omitted, *omitted))

    def _with_selection(self, choice: Choice) -> Choice:
        qualities = self._qualities("selection", [row.rung for row in choice.kept])
        return remeasured(choice, qualities)

    def _qualities(self, split: Split, rungs: Sequence[Rung]) -> dict[Rung, Any]:
        """Intervals of the rungs that were measured on a split, at the largest load and temperature 0."""
        cells = {rung: Cell(rung, split, self.full_load, self.counts[split]) for rung in rungs}
        found = {rung: values for rung, cell in cells.items() if (values := self._outcomes(cell)) is not None}
        return quality_intervals(found)

    def _quality_above_zero(self, choice: Choice) -> dict[Rung, dict[str, Any]]:
        """Per rung of the ladder and temperature above 0 the quality measured there (test split)."""
        found: dict[Rung, dict[str, Any]] = {}
        for temperature in sorted(self.options.temperatures):
            measured: dict[Rung, Floats] = {}
            for rung in sampled_rungs(self.config.block_size, [row.rung for row in choice.kept]):
                cell = Cell(rung, "test", self.full_load, self._sampled_prompts, temperature, self.options.samples)
                if temperature > 0 and (values := self._outcomes(cell)) is not None:
                    measured[rung] = values
            for rung, interval in quality_intervals(measured).items():
                found.setdefault(rung, {})[f"{temperature:g}"] = interval
        return found

    def _outcomes(self, cell: Cell) -> Floats | None:
        rows = self.rows(cell)
        return None if rows is None else outcomes(rows, cell, self.evaluation.metric, self._references(cell.split))

    def _references(self, split: Split) -> list[list[int]] | None:
        """AR's tokens at temperature 0 on every prompt of a split."""
        rows = self.rows(Cell(AR, split, self.full_load, self.counts[split]))
        return None if rows is None else [row["ids"] for row in rows]

    def _entry(self, cell: Cell) -> dict[str, Any] | None:
        rows = self.rows(cell)
        if rows is None:
            return None
        ar_cell = Cell(AR, cell.split, cell.load, cell.prompts, cell.temperature, cell.samples)
        return cell_entry(
            cell,
            rows,
            self.evaluation.splits[cell.split],
            self.evaluation.metric,
            self._references(cell.split),
            self._outcomes(ar_cell),
        )

    def _token_differences(self, cells: Sequence[Cell]) -> dict[str, dict[str, int]]:
        """Answers of self-speculation whose tokens are not AR's with the same seed, by temperature and block length
        (test split); the two decode to the same tokens, so each must be 0 in float32."""
        found: dict[str, dict[str, int]] = {}
        for cell in cells:
            if cell.split != "test" or cell.rung.decoding is not Decoding.SELF_SPECULATION:
                continue
            mine = self.rows(cell)
            ar = self.rows(Cell(AR, "test", cell.load, cell.prompts, cell.temperature, cell.samples))
            if mine is not None and ar is not None:
                differing = sum(row["ids"] != other["ids"] for row, other in zip(mine, ar, strict=True))
                found.setdefault(f"{cell.temperature:g}", {})[str(cell.rung.block_length)] = differing
        return found

    def _measure(self, cells: Sequence[Cell], title: str) -> None:
        jobs = [
            Job(cell, self._file(cell), self.options.max_tokens, self.deadline_s)
            for cell in cells
            if self.rows(cell) is None
        ]
        prompts = self.evaluation.splits
        longest = max(len(prompt.token_ids) for rows in prompts.values() for prompt in rows)
        per_sequence = longest + self.options.max_tokens + 3 * self.config.block_size
        settings = WorkerSettings(
            self.options.model,
            prompts,
            self.options.dtype,
            self.options.quantization,
            self.full_load,
            self.full_load * per_sequence,
            self.options.threads,
        )
        measure_all(jobs, settings, self.options.workers, title)

    def _file(self, cell: Cell) -> Path:
        return self.cells_dir / f"{cell.name}.jsonl"

    def _evaluation_set(self) -> EvaluationSet:
        options = self.options
        counts: dict[Split, int] = {
            "calibration": options.calibration_prompts,
            "selection": options.selection_prompts,
            "test": options.test_prompts,
        }
        tokenizer = Tokenizer.from_dir(options.model)
        if options.prompts is not None:
            limits = Limits(self.config.vocab_size, self.config.max_position_embeddings, options.max_tokens)
            return read_prompts(options.prompts, tokenizer, limits, counts)
        if options.model.resolve() != SHIPPED and not options.built_in_tasks:
            raise EvaluationError(
                f"{options.model} is not stepdial-tiny, so its tasks say nothing of it; give --prompts FILE.jsonl "
                "(or --built-in-tasks for another training of stepdial-tiny)"
            )
        if tokenizer is None:
            raise EvaluationError(f"{options.model} has no tokenizer.json, which the built-in tasks need")
        return built_in_set(tokenizer, counts)

    def _write(self, curve: dict[str, Any], ladder: dict[str, Any] | None, choice: Choice) -> None:
        output = self.options.output
        write_json(output / CURVE_FILE, curve)
        (output / REPORT_FILE).write_text(report_text(curve, ladder, choice.omitted), encoding="utf-8")
        if any(cell["split"] == "test" for cell in curve["cells"]):
            from engine.calibration.plot import plot

            plot(curve, output / PICTURE_FILE)
        if ladder is None:
            return
        write_json(output / LADDER_FILE, ladder)
        if self.options.install:
            for name in (CURVE_FILE, LADDER_FILE):
                shutil.copyfile(output / name, self.options.model / name)


def calibrate(options: CalibrationOptions, say: Callable[[str], None] = print) -> bool:
    """Runs a calibration and says what came of it; False where there was no time for a ladder."""
    calibration = Calibration(options)
    _, ladder = calibration.run()
    say((options.output / REPORT_FILE).read_text(encoding="utf-8"))
    if ladder is None:
        say("No ladder was written: AR is not measured on the calibration and selection splits. Run it again to go on.")
        return False
    where = f" and {options.model}" if options.install else ""
    say(f"written to {options.output}{where}")
    return True
