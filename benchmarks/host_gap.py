"""How long a device would wait for the host between two forwards, with a device that only keeps time.

`python -m benchmarks.host_gap [--canvases 1 8 32] [--device-ms 6] [--context 512]`

The engine's loop (`EngineCore`) lays out, schedules and postprocesses as for a GPU that runs the 14B. The model is not
there: a forward is noted and takes `--device-ms` of the device's time, which the host spends spinning when it comes to
wait for it; tokens and their probabilities are drawn. Forwards are those of `cuda_graphs`, one launch each. A gap is
the time from the device's last result to its next forward. What a GPU would do between two forwards itself, and copies
to and from it, are not in it; the rules for canvases and audits, kernels on a GPU, run in plain torch on the host.
So this compares one host path with another. What a GPU waits is for `python -m benchmarks.gpu` to say.

That the host has spun for milliseconds matters: the same code takes it two to four times as long then as in a tight
loop, because caches went cold.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import torch

from benchmarks.command import command_parser, parsed, write_report
from benchmarks.gpu.engine_loop import answer, core_around
from benchmarks.gpu.shapes import BLOCK, MODELS
from engine import packing
from engine.executor import Executor
from engine.model.parallel import TensorParallel
from engine.plan import AR, Rung, diffusion, self_speculation
from engine.sequence import Sequence
from kernels.row_statistics import RowRules, Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from engine.batch import ForwardBatch
    from engine.core import EngineCore

STEPS = 8
THRESHOLD = 0.8
"""Of confidences that are drawn evenly: a fifth of the masks is committed by every step."""
MODES: dict[str, Rung] = {
    "ar": AR,
    "diffusion": diffusion(BLOCK, STEPS),
    "diffusion by threshold": diffusion(BLOCK, STEPS, THRESHOLD),
    "self-speculation": self_speculation(BLOCK),
}
TOKENS = 8 * BLOCK


@dataclass(slots=True)
class Timeline:
    """The device's time.

    Attributes:
        forward_s: of every forward. free_s: when it has done all that it was given. gaps: seconds that it had nothing
            to do before a forward, for each of them.
    """

    forward_s: float
    free_s: float = 0.0
    gaps: list[float] = field(default_factory=list)

    def launch(self) -> None:
        """Gives it a forward."""
        now = perf_counter()
        self.gaps.append(max(0.0, now - self.free_s))
        self.free_s = max(now, self.free_s) + self.forward_s

    def after_waiting(self, fetch: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`fetch` as of a device that has to have done all that it was given."""

        def waited(tensors: Any) -> Any:
            while perf_counter() < self.free_s:
                pass
            return fetch(tensors)

        return waited


class AbsentModel:
    """What an executor needs of a 14B-shaped model, without its weights: its forwards are times, its tokens drawn."""

    def __init__(self, timeline: Timeline, seed: int) -> None:
        # The host's part is the same for any number of layers, but for K/V that nobody reads.
        self.config = replace(MODELS["14B"], num_layers=1)
        self.timeline = timeline
        self.dtype, self.device = torch.bfloat16, torch.device("cpu")
        self.embedding = torch.empty(0)
        self.head_by_kernels = True
        self.adapter = None
        self.parallel = TensorParallel()
        self._hidden = torch.empty(0)
        self._draw = torch.Generator().manual_seed(seed)
        self._confidence = torch.rand(1 << 16, generator=self._draw)
        self._tokens = torch.randint(200, self.config.vocab_size, (1 << 16,), generator=self._draw)
        self._at = 0

    def forward(self, batch: ForwardBatch, kv: Tensor) -> Tensor:
        """Takes time, later."""
        self.timeline.launch()
        return self._hidden

    def statistics(self, hidden: Tensor, rows: Tensor, rules: RowRules) -> Statistics:
        """Any tokens, with any confidence."""
        count = len(rows)
        self._at = 0 if self._at + count > len(self._tokens) else self._at
        part = slice(self._at, self._at + count)
        self._at += count
        nothing = torch.zeros(count)
        return Statistics(
            self._tokens[part].clone(), self._confidence[part].clone(), nothing, nothing, nothing, nothing
        )


def main(arguments: Seq[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = _options(arguments)
    torch.set_num_threads(1)
    results = []
    print("microseconds that the device waits before a forward, a mean; p50 and p95 of those that are waited for")
    for canvases in options.canvases:
        for mode, rung in MODES.items():
            runs = [
                measured(rung, canvases, options.context, options.device_ms / 1e3, seed) for seed in range(options.runs)
            ]
            row = {"mode": mode, "canvases": canvases, **_of_all(runs, options.device_ms * 1e3)}
            results.append(row)
            _show(row)
    settings = {"device_ms": options.device_ms, "context": options.context, "runs": options.runs}
    write_report(options, {"settings": settings, "results": results})


def measured(rung: Rung, canvases: int, context: int, forward_s: float, seed: int) -> list[float]:
    """The gaps of some answers at once, those of their prompts left out."""
    timeline = Timeline(forward_s)
    core = waited_for(timeline, canvases * (context + TOKENS + BLOCK), seed)
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.randint(200, 1000, (canvases, context), generator=draw).tolist()
    with patch.object(packing, "fetched", timeline.after_waiting(packing.fetched)):
        # A short answer first: what is compiled or made once is not the loop's.
        answer(core, rung, prompts, BLOCK)
        timeline.gaps.clear()
        first: list[int] = []

        def after_step() -> None:
            if not first and not any(reading for _, reading in map(Sequence.wanted, [*core.waiting, *core.running])):
                first.append(len(timeline.gaps))

        answer(core, rung, prompts, TOKENS, after_step)
    return timeline.gaps[first[0] :]


def waited_for(timeline: Timeline, kv_tokens: int, seed: int) -> EngineCore:
    """The engine's loop around a device of that time."""
    model = cast(Any, AbsentModel(timeline, seed))
    executor = Executor(model, -(-kv_tokens // BLOCK) + 1, BLOCK)
    executor.on_kernels = True
    executor.record_graphs(lambda call: call)
    return core_around(executor)


def _of_all(runs: list[list[float]], device_us: float) -> dict[str, Any]:
    means = [statistics.mean(gaps) * 1e6 for gaps in runs]
    waits = sorted(gap * 1e6 for gaps in runs for gap in gaps if gap > 0)
    mean = statistics.median(means)
    return {
        "forwards": sum(len(gaps) for gaps in runs),
        "waits": len(waits),
        "mean_us": mean,
        "mean_us_of_runs": means,
        "wait_p50_us": waits[len(waits) // 2],
        "wait_p95_us": waits[int(len(waits) * 0.95)],
        "waiting": mean / (mean + device_us),
    }


def _show(row: dict[str, Any]) -> None:
    print(
        f"{row['canvases']:3} {row['mode']:24} {row['mean_us']:7.0f}  "
        f"[{min(row['mean_us_of_runs']):.0f} to {max(row['mean_us_of_runs']):.0f}]"
        f"  {row['wait_p50_us']:7.0f} {row['wait_p95_us']:7.0f}   {row['waits']} of {row['forwards']} forwards"
        f"   {row['waiting']:.1%} of the time",
        flush=True,
    )


def _options(arguments: Seq[str] | None) -> argparse.Namespace:
    parser = command_parser("host_gap", __doc__)
    parser.add_argument("--canvases", type=int, nargs="+", default=[1, 8, 32], help="answers at once")
    parser.add_argument("--device-ms", type=float, default=6.0, help="milliseconds of a forward")
    parser.add_argument("--context", type=int, default=512, help="prompt tokens")
    parser.add_argument("--runs", type=int, default=5)
    return parsed(parser, arguments)


if __name__ == "__main__":
    main()
