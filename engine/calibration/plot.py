"""The quality curve as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {1: "black", 4: "tab:green", 8: "tab:blue", 16: "tab:orange", 32: "tab:red"}
OTHER_COLOUR = "tab:purple"
"""For a model's own block length where it is none of the usual ones."""
LOG_PROBABILITY = "mean log p_AR of a token"

Cells = list[dict[str, Any]]


def plot(curve: dict[str, Any], file: Path) -> None:
    """Draws the test split of `quality.json` at temperature 0: quality with its intervals against budget, threshold and
    tokens per forward, AR's log-probability, compute, and each label."""
    cells = [cell for cell in curve["cells"] if (cell["split"], cell["temperature"]) == ("test", 0)]
    if not cells:
        return
    quality = curve["measured"]["metric"].replace("_", " ")
    ar = next((cell for cell in cells if cell["decoding"] == "ar"), None)
    diffusion = [cell for cell in cells if cell["decoding"] == "diffusion" and cell["audit"] == "off"]
    fixed = [cell for cell in diffusion if cell["threshold"] is None]
    early = [cell for cell in diffusion if cell["threshold"] and cell["refinement_steps"] == cell["block_length"]]
    budget = "step budget K, no early commit"
    figure, axes = plt.subplots(2, 3, figsize=(17, 9.5))
    _lines(axes[0][0], fixed, ("refinement_steps", budget), ("quality", quality), ar)
    _lines(axes[0][1], early, ("threshold", "threshold"), ("quality", quality), ar)
    _lines(axes[0][2], fixed, ("refinement_steps", budget), ("audit_logprob", LOG_PROBABILITY), ar)
    _lines(axes[1][0], fixed, ("refinement_steps", budget), ("compute_ms", "compute ms per answer"), ar)
    for axis in (axes[0][0], axes[0][2], axes[1][0]):
        axis.set_xscale("log", base=2)
    _speed(axes[1][1], cells, quality)
    _labels(axes[1][2], fixed, ar, quality)
    made = curve["measured"]["machine"]
    figure.suptitle(
        f"{curve['model']}: {cells[0]['prompts']} test prompts per point, {made['cpu']}, torch {made['torch']}"
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _lines(axis: Axes, cells: Cells, x: tuple[str, str], y: tuple[str, str], ar: dict[str, Any] | None) -> None:
    """One line per block length, with intervals where the cells have them; `x` and `y` are a field and its title."""
    (across, across_title), (up, up_title) = x, y
    for length in sorted({cell["block_length"] for cell in cells}):
        points = [cell for cell in cells if cell["block_length"] == length and cell[up] is not None]
        points.sort(key=lambda cell: float(cell[across]))
        if not points:
            continue
        colour = COLOURS.get(length, OTHER_COLOUR)
        places = [cell[across] for cell in points]
        axis.plot(places, [cell[up] for cell in points], "o-", color=colour, label=f"block {length}")
        if f"{up}_low" in points[0]:
            lows, highs = [cell[f"{up}_low"] for cell in points], [cell[f"{up}_high"] for cell in points]
            axis.fill_between(places, lows, highs, color=colour, alpha=0.15)
    if ar is not None and ar[up] is not None:
        axis.axhline(ar[up], color="black", linestyle="--", label="AR")
    _finish(axis, across_title, up_title)


def _speed(axis: Axes, cells: Cells, quality: str) -> None:
    for name, marker in (("ar", "s"), ("self_speculation", "^"), ("diffusion", "o")):
        for length in sorted({cell["block_length"] for cell in cells if cell["decoding"] == name}):
            points = [cell for cell in cells if cell["decoding"] == name and cell["block_length"] == length]
            axis.scatter(
                [cell["tokens_per_forward"] for cell in points],
                [cell["quality"] for cell in points],
                marker=marker,
                color=COLOURS.get(length, OTHER_COLOUR),
                label=f"{name} {length}" if length > 1 else name,
            )
    axis.set_xscale("log", base=2)
    _finish(axis, "tokens per forward", quality)


def _labels(axis: Axes, fixed: Cells, ar: dict[str, Any] | None, quality: str) -> None:
    """Each workload label's quality against the budget at the longest block; AR's beside the last point."""
    longest = max((cell["block_length"] for cell in fixed), default=1)
    cells = sorted(
        (cell for cell in fixed if cell["block_length"] == longest), key=lambda cell: int(cell["refinement_steps"])
    )
    for label in sorted(cells[0]["by_label"]) if cells else []:
        budgets = [cell["refinement_steps"] for cell in cells]
        line = axis.plot(budgets, [cell["by_label"][label]["quality"] for cell in cells], "o-", label=label)[0]
        if ar is not None:
            axis.scatter([1.25 * longest], [ar["by_label"][label]["quality"]], marker="s", color=line.get_color())
    axis.set_xscale("log", base=2)
    _finish(axis, f"step budget K at block {longest} (squares: AR)", quality)


def _finish(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)
