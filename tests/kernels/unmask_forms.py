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
    "mask_id": "i32",
    "width": "i32",
    "stop_count": "i32",
}
POLICIES = ("entropy_ptr", "bound_ptr", "standing_ptr", "remask_ptr")


def _unmask(lanes: int, policies: bool = False) -> Form:
    types = TYPES | (dict.fromkeys(POLICIES, "*fp32") if policies else {})
    constants = {"LANES": lanes} | ({} if policies else dict.fromkeys(POLICIES))
    name = f"unmask/{lanes}{'/policies' * policies}"
    return Form(name, _unmask_kernel, types, constants, warps=max(1, lanes // 64))


FORMS = [*(_unmask(lanes) for lanes in (16, 32, 64)), *(_unmask(lanes, policies=True) for lanes in (32, 64))]
