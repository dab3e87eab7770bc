"""What a forward's time goes to: its kernels by what they do, and what lies between them, from torch's profiler.

Where a forward is above its floor this says why. The profiler makes kernels a little longer: shares count, not sums. Of
kernels that overlap each has the time that none before it had, because one that has begun may only be waiting. A
section of its own, and the last one, so that nothing is timed in a process that was profiled.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.forward import PRODUCTS, executor_of, step_of
from benchmarks.gpu.paged import canvases
from benchmarks.gpu.section import Row, Section, overlapped
from benchmarks.gpu.shapes import MODELS, TINY
from benchmarks.gpu.timing import Clock
from engine.executor import Executor

GROUPS = (
    ("attention", r"^_attention_kernel|^_merge_kernel"),
    ("norm", r"^_add_and_norm_kernel"),
    ("rope", r"^_rope_and_kv_kernel"),
    ("swiglu", r"^_swiglu_kernel"),
    ("head", r"^_fused_kernel|^_pieces_kernel|^_combine_kernel"),
    ("products", r"product_kernel|gemm|gemv|nvjet|cutlass|cublas|split[kK]|^aten::(mm|matmul|linear)$"),
)
"""What kernels are called, by what they do; the first that fits. `other`: embedding, gathers, copies."""
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Of a trace's events, those that the device spends its time on."""

CELLS = {
    "14B": ((1, 512), (1, 16_384), (32, 512)),
    "14B narrow": ((1, 512),),
    "14B narrow overlapped": ((1, 512),),
}
"""Canvases and contexts, by model and what its products are made by."""


def run(section: Section) -> None:
    """One row per model, number of canvases and context, named as in `forward`."""
    for name, cells in ({"tiny": ((1, 40),)} if section.tiny else CELLS).items():
        with overlapped(name.endswith("overlapped")):
            try:
                model(section, name, cells)
            except Exception as error:
                section.fail(name, error)
        section.release()


def model(section: Section, name: str, cells: tuple[tuple[int, int], ...]) -> None:
    """The rows of one model."""
    if section.omits(name):
        return
    size, _, products = name.partition(" ")
    executor = executor_of(section, TINY if section.tiny else MODELS[size], PRODUCTS[products], cells)
    for count, context in cells:
        make = partial(its_kernels, section, executor, count, context)
        section.row(f"{name}, {count} x {context}: its kernels", make)


def its_kernels(section: Section, executor: Executor, count: int, context: int) -> Row:
    """What one batch's forward spends its time on, replayed as a CUDA graph on a GPU."""
    step = step_of(executor, executor.batch(canvases(count, context, executor.model.config.vocab_size)))
    if not section.clock.cuda:
        return kernels_of(section.clock, step)
    graph = section.clock.capture(step)
    try:
        return kernels_of(section.clock, graph.replay)
    finally:
        graph.reset()


def kernels_of(clock: Clock, call: Callable[[], Any]) -> Row:
    """Milliseconds of one call by group, between its kernels, and its ten longest kernels with their number.

    Args:
        call: on a GPU a replay of a CUDA graph, so that no launch is waited for. On a CPU torch's operations stand for
            kernels.

    Raises RuntimeError if the profiler has seen no kernel.
    """
    call()
    clock.synchronize()
    with profile(activities=[ProfilerActivity.CUDA if clock.cuda else ProfilerActivity.CPU]) as seen:
        call()
        clock.synchronize()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "trace.json"
        seen.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    kinds = ON_DEVICE if clock.cuda else ("cpu_op",)
    return summed([(event["name"], event["ts"], event["dur"]) for event in events if event.get("cat") in kinds])


def summed(spans: list[tuple[str, float, float]]) -> Row:
    """The row of kernels with their names, starts and durations in microseconds.

    Raises RuntimeError without any.
    """
    if not spans:
        raise RuntimeError("the profiler has seen no kernel")
    row: Row = dict.fromkeys([f"{group}_ms" for group, _ in GROUPS] + ["other_ms", "between_ms"], 0.0)
    longest: dict[str, list[float]] = {}
    ends = min(start for _, start, _ in spans)
    for name, start, duration in sorted(spans, key=lambda span: span[1]):
        group = next((group for group, pattern in GROUPS if re.search(pattern, name)), "other")
        own_ms = max(start + duration - max(start, ends), 0) / 1e3
        row[f"{group}_ms"] += own_ms
        row["between_ms"] += max(start - ends, 0) / 1e3
        ends = max(ends, start + duration)
        count, total = longest.get(name, (0, 0.0))
        longest[name] = [count + 1, total + own_ms]
    ten = sorted(longest.items(), key=lambda item: -item[1][1])[:10]
    kernels = [{"kernel": name, "launches": count, "ms": total} for name, (count, total) in ten]
    return {"launches": len(spans), **row, "kernels": kernels}
