"""Timing, on a GPU with events and on a CPU with a clock.

On a GPU work is asynchronous and launches hide small kernels, so a kernel's time is that of a CUDA graph that holds it
once for each of several inputs: together they are larger than L2 where the caller asks for cold data, and every kernel
runs right after the last. A first run compiles and warms up outside the clock. Medians are reported.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.graphs import recorded

Call = Callable[[], Any]

REPEATS = 20
LEAST_S = 0.05
"""A measurement goes on for so long, or for `REPEATS` runs, whichever is later; but not longer than `MOST_S`."""
MOST_S = 2.0
LEAST_GRAPH_MS = 1.0
"""Of a graph of kernels, so that what its start and its end cost is a hundredth at most."""
MOST_CALLS = 256
"""In one graph."""
LAUNCH_CYCLES = 400_000
"""Cycles that the device waits for a graph's launch: about 0.2 ms, far more than a launch takes."""


@dataclass(slots=True)
class Clock:
    """How calls are timed on `device`."""

    device: torch.device

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def run_ms(self, call: Call, repeats: int = REPEATS, most_s: float = MOST_S, hide_launch: bool = False) -> float:
        """Median milliseconds of a call, launches from the host included.

        Args:
            hide_launch: the device is kept busy until the call has been launched, so that the time until it is does not
                count: for graphs, which are one launch.
        """
        call()
        self.synchronize()
        begun, taken = time.perf_counter(), []
        while True:
            taken.append(self._once_ms(call, hide_launch))
            spent = time.perf_counter() - begun
            if (len(taken) >= repeats and spent >= LEAST_S) or (len(taken) >= 3 and spent >= most_s):
                return statistics.median(taken)

    def kernel_ms(self, calls: Sequence[Call]) -> float:
        """Mean milliseconds of one of `calls` when they run one after the other, without the host.

        On a GPU all are captured in one graph, again and again in their order until it takes `LEAST_GRAPH_MS`, so none
        of them may wait for the device. On a CPU they just run.
        """
        if not self.cuda:
            return self.run_ms(lambda: _in_turn(calls)) / len(calls)
        once_ms = self._graph_ms(calls)
        rounds = min(math.ceil(LEAST_GRAPH_MS / once_ms), MOST_CALLS // len(calls))
        if rounds <= 1:
            return once_ms / len(calls)
        return self._graph_ms([*calls] * rounds) / len(calls) / rounds

    def graph_ms(self, call: Call) -> float:
        """Median milliseconds of one replay of the call as a CUDA graph. Raises what `capture` raises."""
        graph = self.capture(call)
        try:
            return self.run_ms(graph.replay, hide_launch=True)
        finally:
            graph.reset()

    def _graph_ms(self, calls: Sequence[Call]) -> float:
        return self.graph_ms(lambda: _in_turn(calls))

    def capture(self, call: Call) -> torch.cuda.CUDAGraph:
        """The call as a CUDA graph. Raises what `engine.graphs.recorded` raises."""
        return recorded(call)[0]

    def extra_bytes(self, call: Call) -> int | None:
        """The most bytes that a call allocates beyond what was there before it; None where it is not counted (CPU)."""
        if not self.cuda:
            return None
        call()  # cuBLAS's workspace and the like come once and stay
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        kept = call()
        self.synchronize()
        most: int = torch.cuda.max_memory_allocated(self.device)
        del kept
        return most - before

    def l2_bytes(self) -> int:
        """Bytes of the device's L2; 0 where it is not known."""
        return torch.cuda.get_device_properties(self.device).L2_cache_size if self.cuda else 0

    def _once_ms(self, call: Call, hide_launch: bool) -> float:
        if not self.cuda:
            begun = time.perf_counter()
            call()
            return (time.perf_counter() - begun) * 1e3
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if hide_launch:
            torch.cuda._sleep(LAUNCH_CYCLES)
        first.record()
        call()
        last.record()
        last.synchronize()
        elapsed: float = first.elapsed_time(last)
        return elapsed


def _in_turn(calls: Sequence[Call]) -> None:
    """All calls; what one returns is let go before the next, as a forward does."""
    for call in calls:
        call()


def copies(clock: Clock, bytes_each: int, most: int = 128) -> int:
    """Of how many inputs of `bytes_each` bytes a graph goes through: all together four times L2, but at most `most`."""
    return max(1, min(most, -(-4 * clock.l2_bytes() // bytes_each)))
