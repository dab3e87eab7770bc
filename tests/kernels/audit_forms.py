"""Forms of the audit kernel, compiled by `aot.py`: blocks of up to 16, 32 and 64 tokens."""

from __future__ import annotations

from kernels.audit import _accept_kernel
from tests.kernels.aot import Form

TYPES = {
    "canvas_ptr": "*i64",
    "picks_ptr": "*i64",
    "ratios_ptr": "*fp32",
    "length_ptr": "*i64",
    "floor_ptr": "*fp32",
    "kept_ptr": "*i64",
    "pending_ptr": "*i64",
    "width": "i32",
}
FORMS = [Form(f"audit/{lanes}", _accept_kernel, TYPES, {"LANES": lanes}, warps=1) for lanes in (16, 32, 64)]
