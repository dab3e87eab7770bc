"""The page for people, `calibration.md`: the ladder, what is not offered and why, the curve, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.calibration.cells import describe
from engine.calibration.frontier import Omission
from engine.checkpoint.identity import IDENTITY_FIELD
from engine.plan import Rung

REPORT_FILE = "calibration.md"


def report_text(curve: Mapping[str, Any], ladder: Mapping[str, Any] | None, omitted: Sequence[Omission]) -> str:
    """The whole page. `ladder` is None where AR was not measured."""
    made = curve["measured"]
    box = made["machine"]
    lines = [
        f"# Calibration of {curve['model']}",
        "",
        f"Quality is `{made['metric']}`: {made['metric_is']}. Intervals: {made['intervals']}.",
        f"Prompts: {made['evaluation_set']}, {_counts(made['prompts'])}; <= {made['max_tokens']} tokens an answer.",
        f"Machine: {box['cpu']}, {box['cores']} cores, {box['workers']} processes of {box['torch_threads']} threads, "
        f"torch {box['torch']}, {made['dtype']}. Checkpoint: `{curve[IDENTITY_FIELD]}`.",
        f"Command: `{made['command']}`",
        "",
    ]
    lines += _ladder_lines(ladder, made["loads"])
    if omitted:
        lines += ["## Measured and not offered", ""]
        lines += [f"- {describe(row.rung)}: {row.reason}." for row in omitted] + [""]
    lines += _curve_lines(curve)
    if curve["linearity"]:
        line = curve["linearity"]
        lines += [
            f"Forwards are linear in the step budget at block {line['block_length']} with R2 "
            f"{line['forwards']['r2']:.4f}, compute seconds with R2 {line['compute_s']['r2']:.4f}.",
            "",
        ]
    for temperature, counts in curve["self_speculation_differs_from_ar"].items():
        shown = ", ".join(f"{count} over blocks of {length}" for length, count in counts.items())
        lines += [f"Answers of self-speculation that differ from AR's at temperature {temperature}: {shown}.", ""]
    if curve["missing"]:
        lines += ["## Missing", "", "Not measured in the time that was given:", ""]
        lines += [f"- {name}" for name in curve["missing"]] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _ladder_lines(ladder: Mapping[str, Any] | None, loads: Sequence[int]) -> list[str]:
    if ladder is None:
        return ["## Ladder", "", "None: AR is not measured on the calibration and selection splits.", ""]
    above = [f"{value:g}" for value in ladder["measured"]["temperatures"] if value > 0]
    titles = ["rung", "quality (selection)", "difference to AR", "of AR's quality", "tokens per forward"]
    titles += [f"ms at load {load}" for load in loads] + [f"quality at {value}" for value in above]
    rows = []
    for entry in ladder["rungs"]:
        rung = Rung.from_dict(entry)
        row = [describe(rung), _shown(entry["quality"]), _shown(entry["difference_to_ar"])]
        row += ["yes" if rung.keeps_ar_quality else "no", f"{entry['expected_tokens_per_forward']:.2f}"]
        row += [f"{entry['cost_ms_at_load'][str(load)]:.1f}" for load in loads]
        row += [_shown(entry["quality_at"].get(value)) for value in above]
        rows.append(row)
    return ["## Ladder", "", *_table(titles, rows), ""]


def _curve_lines(curve: Mapping[str, Any]) -> list[str]:
    titles = ["rung", "quality", "difference to AR", "log p_AR", "tokens per forward", "forwards", "compute ms"]
    lines = []
    for temperature in curve["measured"]["temperatures"]:
        cells = [cell for cell in curve["cells"] if (cell["split"], cell["temperature"]) == ("test", temperature)]
        rows = [
            [
                describe(Rung.from_dict(cell)),
                f"{cell['quality']:.3f} ({cell['quality_low']:.3f} to {cell['quality_high']:.3f})",
                _shown(cell["difference_to_ar"]),
                "" if cell["audit_logprob"] is None else f"{cell['audit_logprob']:.4f}",
                f"{cell['tokens_per_forward']:.2f}",
                f"{cell['forwards']:.1f}",
                f"{cell['compute_ms']:.1f}",
            ]
            for cell in cells
        ]
        if rows:
            prompts, samples = cells[0]["prompts"], cells[0]["samples"]
            answers = "" if samples == 1 else f", {samples} answers each"
            lines += [f"## Test split at temperature {temperature:g} ({prompts} prompts{answers})", ""]
            lines += [*_table(titles, rows), ""]
    return lines


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in [titles, *rows]) for place in range(len(titles))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [titles, *rows]]
    ruled = [padded[0], ["-" * width for width in widths], *padded[1:]]
    return [f"| {' | '.join(row)} |" for row in ruled]


def _shown(interval: Mapping[str, float] | None) -> str:
    return "" if interval is None else f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _counts(prompts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in prompts.items())
