"""What a forward's time goes to: its kernels by what they do, and what lies between them, from torch's profiler.

Where a forward is above its floor this says why. The profiler makes kernels a little longer: shares count, not sums.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.section import Row
from benchmarks.gpu.timing import Clock

GROUPS = (
    ("attention", r"^_attention_kernel|^_merge_kernel"),
    ("norm", r"^_add_and_norm_kernel"),
    ("rope", r"^_rope_and_kv_kernel"),
    ("swiglu", r"^_swiglu_kernel"),
    ("head", r"^_fused_kernel|^_pieces_kernel|^_combine_kernel"),
    ("products", r"product_kernel|gemm|gemv|nvjet|cutlass|cublas|split[kK]|^aten::mm$"),
)
"""What kernels are called, by what they do; the first that fits. `other`: embedding, rotary tables, copies."""
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Of a trace's events, those that the device spends its time on."""


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
    """The row of kernels with their names, starts and durations in microseconds; durations of some at once all count.

    Raises RuntimeError without any.
    """
    if not spans:
        raise RuntimeError("the profiler has seen no kernel")
    row: Row = dict.fromkeys([f"{group}_ms" for group, _ in GROUPS] + ["other_ms", "between_ms"], 0.0)
    longest: dict[str, list[float]] = {}
    ends = min(start for _, start, _ in spans)
    for name, start, duration in sorted(spans, key=lambda span: span[1]):
        group = next((group for group, pattern in GROUPS if re.search(pattern, name)), "other")
        row[f"{group}_ms"] += duration / 1e3
        row["between_ms"] += max(start - ends, 0) / 1e3
        ends = max(ends, start + duration)
        count, total = longest.get(name, (0, 0.0))
        longest[name] = [count + 1, total + duration / 1e3]
    ten = sorted(longest.items(), key=lambda item: -item[1][1])[:10]
    kernels = [{"kernel": name, "launches": count, "ms": total} for name, (count, total) in ten]
    return {"launches": len(spans), **row, "kernels": kernels}
