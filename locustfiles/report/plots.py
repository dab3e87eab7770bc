"""The report's plots, each as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from locustfiles.report.prediction import PROMISED, pairs_by_mode

if TYPE_CHECKING:
    from locustfiles.cluster_metrics import ClusterSample
    from locustfiles.record import Record
    from locustfiles.report.files import Report

WIDTH_IN, HEIGHT_IN, DPI = 9.0, 3.4, 110
COLORS = ("#3366aa", "#e08214", "#2a9d63", "#b2457e", "#7a6ac7", "#8c6d46", "#d64f4f", "#5f9ea0", "#999999")
GOOD, LATE, REFUSED, FAILED = "#2a9d63", "#e0b214", "#9aa5b1", "#c0392b"
SHOWN_PROCESSES = 7
MOST_BINS = 60


def draw_all(report: Report, records: Sequence[Record], samples: Sequence[ClusterSample]) -> dict[str, bytes]:
    """PNGs by title; a plot without data is left out."""
    plots = {
        "Arrivals and what became of them": outcomes(records, report.run["span_s"]),
        "Latency from the scheduled arrival": latencies(records),
        "Rungs used, by share of output tokens": rungs(report),
        "Replicas and queued work over time": replicas(samples, report.run["drained_s"]),
        "CPU by process": cpu(samples, report),
        "Predicted p95 and actual latency": predictions(report, records),
    }
    return {title: to_png(figure) for title, figure in plots.items() if figure is not None}


def to_png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def canvas(columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN if rows == 1 else 1.5 * HEIGHT_IN), layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    return figure, axes


def logarithmic(axis: Any, which: str, bounds: tuple[float, float] | None = None) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5; without `bounds`, half as wide again on both sides."""
    getattr(axis, f"set_{which}scale")("log")
    line = getattr(axis, f"{which}axis")
    line.set_major_locator(LogLocator(subs=(1, 2, 5)))
    line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    line.set_minor_locator(NullLocator())
    low, high = line.get_data_interval()
    getattr(axis, f"set_{which}lim")(*(bounds or (low / 1.5, high * 1.5)))


def outcomes(records: Sequence[Record], span_s: float) -> Figure | None:
    """Arrivals per second, stacked by outcome."""
    if not records or span_s <= 0:
        return None
    width_s = max(1.0, math.ceil(span_s / MOST_BINS))
    bins = math.ceil(span_s / width_s)
    groups: dict[str, tuple[str, list[float]]] = {
        name: (color, [0.0] * bins)
        for name, color in (("in time", GOOD), ("late", LATE), ("refused", REFUSED), ("error", FAILED))
    }
    for record in records:
        name = "error" if not (record.answered or record.refused) else "refused" if record.refused else "late"
        if record.in_time:
            name = "in time"
        groups[name][1][min(bins - 1, int(record.due_s / width_s))] += 1 / width_s
    figure, axis = canvas()
    begins_s = [index * width_s for index in range(bins)]
    below = [0.0] * bins
    for name, (color, heights) in groups.items():
        axis.bar(begins_s, heights, width_s, below, align="edge", color=color, label=name)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axis.set(xlabel="scheduled arrival, s", ylabel="requests per second", xlim=(0, bins * width_s))
    axis.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.16), frameon=False)
    return figure


def latencies(records: Sequence[Record]) -> Figure | None:
    """Share of each kind's answers that were there after so long: first block, and total."""
    labels = list(dict.fromkeys(record.label for record in records if record.answered))
    if not labels:
        return None
    figure, axes = canvas(columns=2, sharey=True)
    for axis, name in zip(axes, ("first", "total"), strict=True):
        for index, label in enumerate(labels):
            values = sorted(
                value for record in records if record.answered and record.label == label
                if (value := getattr(record, f"{name}_ms")) is not None
            )  # fmt: skip
            if values:
                heights = [(place + 1) / len(values) for place in range(len(values))]
                axis.step(values, heights, where="post", color=COLORS[index % len(COLORS)], label=label)
        axis.set(xlabel=f"{'first block' if name == 'first' else 'last byte'}, ms")
        logarithmic(axis, "x")
    axes[0].set(ylabel="share of answers", ylim=(0, 1.02))
    axes[1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def rungs(report: Report) -> Figure | None:
    """A bar per kind, divided into rungs."""
    kinds = [kind for kind in report.kinds if kind.rungs]
    names = list(report.total.rungs)
    if not kinds:
        return None
    figure, axis = canvas()
    left = [0.0] * len(kinds)
    for index, name in enumerate(names):
        shares = [kind.rungs.get(name, 0.0) for kind in kinds]
        color, hatch = COLORS[index % len(COLORS)], "//" if index >= len(COLORS) else None
        axis.barh([kind.label for kind in kinds], shares, left=left, color=color, hatch=hatch, label=name)
        left = [low + part for low, part in zip(left, shares, strict=True)]
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of output tokens")
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def replicas(samples: Sequence[ClusterSample], load_end_s: float | None) -> Figure | None:
    """Replicas, and predicted seconds of work, second by second."""
    good = [sample for sample in samples if sample.error is None]
    if not good:
        return None
    figure, (above, below) = canvas(rows=2, sharex=True)
    times = [sample.at_s for sample in good]
    above.step(times, [sample.replicas for sample in good], where="post", color=COLORS[0])
    above.set(ylabel="replicas", ylim=(0, 0.5 + max(sample.replicas for sample in good)))
    above.yaxis.get_major_locator().set_params(integer=True)
    below.plot(times, [sum(sample.queue_s.values()) for sample in good], color=COLORS[1], label="queued work, s")
    below.plot(times, [sample.running for sample in good], color=COLORS[2], label="sequences running")
    below.plot(times, [sample.waiting for sample in good], color=COLORS[3], label="sequences waiting")
    below.set(xlabel="s", ylim=(0, None))
    below.legend(fontsize=8, frameon=False)
    mark_end(figure, load_end_s)
    return figure


def cpu(samples: Sequence[ClusterSample], report: Report) -> Figure | None:
    """Cores in use by the busiest processes, from one reading to the next."""
    names = [use.name for use in report.cluster.processes[:SHOWN_PROCESSES]]
    if not names or len(samples) < 2:
        return None
    figure, axis = canvas()
    for index, name in enumerate(names):
        points = [(sample.at_s, sample.cpu_s[name]) for sample in samples if name in sample.cpu_s]
        pairs = list(pairwise(points))
        cores = [(later[1] - earlier[1]) / (later[0] - earlier[0]) for earlier, later in pairs]
        axis.plot([later[0] for _, later in pairs], cores, color=COLORS[index], label=name)
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel="s", ylabel="cores", ylim=(0, None))
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    mark_end(figure, report.run["drained_s"])
    return figure


def mark_end(figure: Figure, load_end_s: float | None) -> None:
    """A line where the load's last answer came; the refusals follow."""
    if load_end_s is not None:
        for axis in figure.axes:
            axis.axvline(load_end_s, color="black", linewidth=0.8, linestyle="--")


def predictions(report: Report, records: Sequence[Record]) -> Figure | None:
    """Each answer's prediction against its latency, and how often the promise was kept by size of the prediction."""
    modes = pairs_by_mode(records)
    if not modes:
        return None
    figure, (left, right) = canvas(columns=2)
    every = [value for pairs in modes.values() for pair in pairs for value in pair]
    bounds = (0.8 * min(every), 1.25 * max(every))
    left.plot(bounds, bounds, color="black", linewidth=0.8, linestyle=":", label="actual = predicted p95")
    for index, (mode, pairs) in enumerate(sorted(modes.items())):
        left.scatter(
            [pair[0] for pair in pairs], [pair[1] for pair in pairs], s=10, alpha=0.6, color=COLORS[index], label=mode
        )
    left.set(xlabel="predicted p95, ms", ylabel="actual, ms")
    logarithmic(left, "x", bounds)
    logarithmic(left, "y", bounds)
    left.legend(fontsize=8, frameon=False)
    deciles = report.prediction.deciles
    places = range(1, len(deciles) + 1)
    right.bar(places, [group.within for group in deciles], color=COLORS[0])
    right.axhline(PROMISED, color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="groups by predicted p95, smallest first", ylabel="share within the prediction", ylim=(0, 1.05))
    right.set_xticks(list(places))
    return figure
