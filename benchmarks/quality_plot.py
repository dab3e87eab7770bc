"""The quality curve as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {4: "tab:green", 8: "tab:blue", 16: "tab:orange", 32: "tab:red"}


def plot(report: dict[str, Any], file: Path) -> None:
    """Draws `quality.json` (test split): against budget, against threshold, per task, and against cost."""
    cells = [cell for cell in report["cells"] if cell["split"] == "test"]
    if not cells:
        return
    figure, axes = plt.subplots(2, 3, figsize=(17, 9.5))
    ar = next((cell for cell in cells if cell["decoding"] == "ar"), None)
    diffusion = [cell for cell in cells if cell["decoding"] == "diffusion"]
    fixed = [cell for cell in diffusion if cell["threshold"] is None]
    early = [cell for cell in diffusion if cell["threshold"] is not None]
    _lines(axes[0][0], fixed, "refinement_steps", "exact_match", ar, "step budget K (no early commit)", "exact match")
    _lines(axes[0][1], early, "threshold", "exact_match", ar, "threshold", "exact match")
    _lines(axes[0][2], fixed, "refinement_steps", "audit_logprob", ar, "step budget K", "mean log p_AR of a token")
    _lines(axes[1][0], fixed, "refinement_steps", "compute_ms", ar, "step budget K", "compute ms per answer")
    for axis in (axes[0][0], axes[0][2], axes[1][0]):
        axis.set_xscale("log", base=2)
    _cost(axes[1][1], cells)
    _tasks(axes[1][2], [cell for cell in fixed if cell["block_length"] == 32], ar)
    made = report["machine"]
    figure.suptitle(
        f"{report['model']}: {cells[0]['prompts']} test prompts per point, {made['cpu']}, torch {made['torch']}"
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _lines(axis: Axes, cells: list[dict[str, Any]], x: str, y: str, ar: dict[str, Any] | None, *labels: str) -> None:
    for length, colour in COLOURS.items():
        points = sorted((cell[x], cell[y]) for cell in cells if cell["block_length"] == length and cell[y] is not None)
        if points:
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=f"block {length}")
    if ar is not None and ar[y] is not None:
        axis.axhline(ar[y], color="black", linestyle="--", label="AR")
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.grid(alpha=0.3)
    axis.legend()


def _cost(axis: Axes, cells: list[dict[str, Any]]) -> None:
    for name, marker in (("ar", "s"), ("self_speculation", "^"), ("diffusion", "o")):
        for length, colour in {1: "black", **COLOURS}.items():
            points = [cell for cell in cells if cell["decoding"] == name and cell["block_length"] == length]
            if points:
                axis.scatter(
                    [cell["tokens_per_forward"] for cell in points],
                    [cell["exact_match"] for cell in points],
                    marker=marker,
                    color=colour,
                    label=f"{name} {length}" if length > 1 else name,
                )
    axis.set_xlabel("tokens per forward")
    axis.set_ylabel("exact match")
    axis.set_xscale("log", base=2)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _tasks(axis: Axes, cells: list[dict[str, Any]], ar: dict[str, Any] | None) -> None:
    ordered = sorted(cells, key=lambda cell: cell["refinement_steps"])
    for task in sorted(ordered[0]["by_task"]) if ordered else []:
        line = axis.plot(
            [cell["refinement_steps"] for cell in ordered],
            [cell["by_task"][task]["exact_match"] for cell in ordered],
            "o-",
            label=task,
        )[0]
        if ar is not None:
            axis.scatter([40], [ar["by_task"][task]["exact_match"]], marker="s", color=line.get_color())
    axis.set_xscale("log", base=2)
    axis.set_xlabel("step budget K at block 32 (squares: AR)")
    axis.set_ylabel("exact match")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
