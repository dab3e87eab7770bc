"""The profile map as one picture: a row of maps per mode, a column per number of requests at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

FURTHEST = 6.0
"""Factors over AR at which the colours end: blue above AR, red below."""

Rows = Sequence[dict[str, Any]]
Cells = list[list[dict[str, Any] | None]]


def plot(rows: Rows, names: Sequence[str], file: Path) -> None:
    """Draws every mode over AR, and on top the winner among the modes of AR's quality."""
    concurrencies = list(dict.fromkeys(row["concurrency"] for row in rows))
    prompts = list(dict.fromkeys(row["prompt_tokens"] for row in rows))
    outputs = list(dict.fromkeys(row["output_tokens"] for row in rows))
    shown = [name for name in names if name != "ar"]
    figure, axes = plt.subplots(
        len(shown) + 1,
        len(concurrencies),
        figsize=(3.6 * len(concurrencies) + 1.5, 2.4 * (len(shown) + 1)),
        squeeze=False,
        layout="constrained",
    )
    image = None
    for column, concurrency in enumerate(concurrencies):
        here = {(row["prompt_tokens"], row["output_tokens"]): row for row in rows if row["concurrency"] == concurrency}
        cells = [[here.get((prompt, output)) for output in outputs] for prompt in prompts]
        image = _map(axes[0][column], cells, lambda row: row["over_ar"][row["winner"]], _winner_text)
        axes[0][column].set_title(f"winner, {concurrency} at a time")
        for place, name in enumerate(shown, 1):
            _mode_map(axes[place][column], cells, name)
        axes[-1][column].set_xticks(range(len(outputs)), outputs, fontsize=7)
        axes[-1][column].set_xlabel("output tokens")
    for line in axes:
        line[0].set_yticks(range(len(prompts)), prompts, fontsize=7)
        line[0].set_ylabel("prompt tokens")
    if image is not None:
        factors = (1 / 6, 1 / 3, 1 / 2, 1, 2, 3, 6)
        bar = figure.colorbar(image, ax=axes, shrink=0.4, label="tokens per second over AR's")
        bar.set_ticks([float(np.log(factor)) for factor in factors], labels=[f"{factor:.2g}" for factor in factors])
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _mode_map(axis: Axes, cells: Cells, name: str) -> None:
    """One mode over AR."""

    def over_ar(row: dict[str, Any]) -> float:
        return float(row["over_ar"][name])

    _map(axis, cells, over_ar, lambda row: f"{over_ar(row):.2f}")
    axis.set_title(name)


def _map(
    axis: Axes,
    cells: Cells,
    ratio: Callable[[dict[str, Any]], float],
    text: Callable[[dict[str, Any]], str],
) -> AxesImage:
    """One map; a cell without a measurement stays empty."""
    values = np.array([[np.nan if cell is None else np.log(ratio(cell)) for cell in line] for line in cells])
    most = float(np.log(FURTHEST))
    image = axis.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for up, line in enumerate(cells):
        for across, cell in enumerate(line):
            if cell is not None:
                dark = abs(values[up, across]) > 0.6 * most
                axis.text(
                    across, up, text(cell), ha="center", va="center", fontsize=7, color="white" if dark else "black"
                )
    axis.set_xticks([])
    axis.set_yticks([])
    return image


def _winner_text(row: dict[str, Any]) -> str:
    name = row["winner"].replace("self-speculation", "drafts").replace("diffusion", "diff.")
    return f"{name}\n{row['over_ar'][row['winner']]:.2f} x AR\n{row['winner_over_second']:.2f} x second"
