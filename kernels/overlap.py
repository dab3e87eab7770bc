"""Kernels that begin before the one before them has ended (programmatic dependent launch, from compute capability 9.0).

Between the end of a kernel and the start of the next one about a microsecond passes, also in a CUDA graph; a forward of
one canvas has four hundred of them. A kernel that is launched to overlap starts as soon as all programs of the one
before have what they waited for: its own start lies under that one's run, and a product has its first weights on their
way to L2 by then. Behind a kernel that is no such one it starts at that one's end.

The rule that keeps this right: every program of a kernel that is launched so calls `wait_for_inputs` before it reads or
writes what other kernels write or read, and before it returns. So a kernel ends only after all before it have ended.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

VARIABLE = "STEPDIAL_OVERLAP"
CHOICES = ("0", "1")


def overlapping(tensor: Tensor) -> dict[str, Any]:
    """What a kernel on `tensor`'s device is launched with besides its arguments: the constant `OVERLAPS`, and how.

    The environment variable STEPDIAL_OVERLAP decides: `0` (default) launches one after the other, `1` overlaps where a
    GPU can. Raises ValueError for another value of it.
    """
    choice = os.environ.get(VARIABLE, "0")
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} is {choice!r}; allowed: {', '.join(CHOICES)}")
    if choice == "1" and tensor.is_cuda and _can_overlap(tensor.device):
        return {"OVERLAPS": True, "launch_pdl": True}
    return {"OVERLAPS": False}


@lru_cache(maxsize=16)
def _can_overlap(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit  # type: ignore[untyped-decorator]
def wait_for_inputs(OVERLAPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Waits until all kernels before this one have ended and what they wrote can be read; then the next may start."""
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit  # type: ignore[untyped-decorator]
def prefetch(at, BYTES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Begins to read `BYTES` (a multiple of 16) from each of the pointers `at` into L2; waits for none of them."""
    tl.inline_asm_elementwise(
        f"cp.async.bulk.prefetch.L2.global [$1], {BYTES}; mov.b32 $0, 0;",
        "=r,l",
        [at.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
