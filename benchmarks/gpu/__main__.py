"""The GPU path, checked and measured in one go: `python -m benchmarks.gpu [--sections ...] [--minutes 8]`

NOT YET RUN ON A GPU. It was written where there is none: everything but the timing itself runs in the tests on a CPU
(`--device cpu --tiny`), and a first run on a GPU may find errors in it, which it then reports.

Sections, in this order. Each runs in a process of its own, because a kernel that reads outside its memory ends CUDA for
its process; what fails, hangs or dies is reported in its place and does not stop the rest:

- `ceilings`: copy bandwidth and bf16 product rate of this machine; all floors are computed from them;
- `correctness`: kernels against plain references, bf16 against float32, and whole answers against the CPU's;
- `kernels`: kernel by kernel against torch eager and torch.compile, on the 14B's shapes;
- `forward`: forwards of 14B-, 8B- and 3B-shaped random weights against the floor, launched eagerly and as a CUDA graph;
- `end_to_end`: tokens per second of the modes at forced tokens per forward against the released loops on the same
  weights, and the share of time in which the GPU waits between forwards;
- `breakdown`: which kernels the time of some forwards goes to.

Then the bars, each with its value or "not measured". Needs torch, Triton, NumPy, safetensors and tokenizers, for the
reference loops transformers; no checkpoint, no Ray, no network. JSON is written after every section. The exit status is
1 when something failed or a check was wrong, 0 otherwise; a bar that is missed does not change it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.command import command_parser, parsed, write_report
from benchmarks.gpu.bars import judge
from benchmarks.gpu.ceilings import measured
from benchmarks.gpu.tables import show_bars, show_section
from benchmarks.gpu.task import Task, run_apart, run_here

SHARES = {"ceilings": 1, "correctness": 6, "kernels": 7, "forward": 7, "end_to_end": 6, "breakdown": 2}
"""Of the time: what a section does not need goes to those after it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chosen sections; returns the exit status."""
    options = _options(arguments)
    report: dict[str, Any] = {
        "device": device_facts(torch.device(options.device)),
        "tiny": options.tiny,
        "sections": {},
    }
    ends_s = time.monotonic() + 60 * options.minutes
    chosen = [name for name in SHARES if name in options.sections]
    for index, name in enumerate(chosen):
        begun = time.monotonic()
        share = SHARES[name] / sum(SHARES[later] for later in chosen[index:])
        ceilings = measured(report["sections"].get("ceilings", {}).get("rows", []))
        task = Task(name, options.device, options.tiny, ceilings, share * max(ends_s - begun, 0))
        found = run_apart(task) if options.apart else run_here(task)
        report["sections"][name] = {"seconds": round(time.monotonic() - begun, 1), **found}
        report["bars"] = judge(report["sections"], rehearsal=options.tiny)
        write_report(options, report)
        show_section(name, report["sections"][name])
    show_bars(report["bars"])
    return 0 if succeeded(report["sections"]) else 1


def succeeded(sections: dict[str, Any]) -> bool:
    """Whether nothing failed and no check was wrong."""
    rows = [row for section in sections.values() for row in section["rows"]]
    failed = any(section["errors"] for section in sections.values())
    return not failed and all(row.get("passed", True) for row in rows)


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, driver and versions of what is measured."""
    facts: dict[str, Any] = {
        "type": device.type,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "processors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return facts


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("gpu", __doc__)
    parser.add_argument("--sections", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--minutes", type=float, default=8.0, help="shared between the sections")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a rehearsal, whose figures mean nothing")
    parser.add_argument(
        "--apart", action=argparse.BooleanOptionalAction, default=True, help="every section in a process of its own"
    )
    options = parsed(parser, arguments)
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu is a rehearsal: add --tiny")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this process sees no GPU; --device cpu --tiny rehearses without one")
    return options


if __name__ == "__main__":
    sys.exit(main())
