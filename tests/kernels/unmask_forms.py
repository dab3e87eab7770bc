"""Forms of the unmask kernel, compiled by `aot.py`: canvases of up to 16, 32 and 64 slots."""

from __future__ import annotations

from kernels.unmask import _unmask_kernel
from tests.kernels.aot import Form

TYPES = {
    "canvas_ptr": "*i64",
    "masked_ptr": "*u8",
    "candidate_ptr": "*i64",
    "confidence_ptr": "*fp32",
    "length_ptr": "*i64",
    "steps_left_ptr": "*i64",
    "threshold_ptr": "*fp32",
    "stop_ids_ptr": "*i64",
    "masks_left_ptr": "*i64",
    "first_stop_ptr": "*i64",
    "done_ptr": "*u8",
    "width": "i32",
    "stop_count": "i32",
}
FORMS = [
    Form(f"unmask/{lanes}", _unmask_kernel, TYPES, {"LANES": lanes}, warps=max(1, lanes // 64))
    for lanes in (16, 32, 64)
]
